"""Attacks search a ball around ``x`` for the point where an objective is largest.

    attack(objective, x, key) -> (x_adv, health)

``objective`` maps ``x`` to one loss per example, ``[B]``; an attack knows no model and no task.
``x`` is a pytree of float32 arrays ``[B, ...]`` in [0, 1]. Each leaf of each example has a ball of
its own, its radius in the same unit (docs/method.md, A3 and A12). ``health`` holds ``[B]`` arrays
for the log.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.keys import named

PyTree = Any
Objective = Callable[[PyTree], Array]
Health = dict[str, Array]
Attack = Callable[[Objective, PyTree, Array], tuple[PyTree, Health]]
Start = Callable[[Array, tuple[int, ...]], Array]  # (key, shape) -> d in the unit ball


class Ball(NamedTuple):
    """The geometry of one norm, for the perturbation ``d`` of one example, of any shape."""

    norm: Callable[[Array], Array]  # d -> scalar
    project: Callable[[Array, float | Array], Array]  # (d, radius) -> the nearest point of the ball
    ascend: Callable[[Array], Array]  # gradient -> steepest direction of norm 1
    starts: dict[str, Start]


def _l2_norm(d: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(d)))


def _l2_ascend(gradient: Array) -> Array:
    # The paper prints sign() for every norm, which is not the steepest direction in L2 (A9).
    return gradient / (_l2_norm(gradient) + 1e-10)


def _l2_project(d: Array, radius: float | Array) -> Array:
    return d * jnp.minimum(1.0, radius / jnp.maximum(_l2_norm(d), 1e-12))


def _on_sphere(key: Array, shape: tuple[int, ...]) -> Array:
    direction = jax.random.normal(key, shape)
    return direction / _l2_norm(direction)


def _in_cube(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in the unit ball of L-inf (A5)."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _in_l2_ball(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in the unit ball: r = u^(1/d) on a uniform direction (A6)."""
    direction, radius = jax.random.split(key)
    dimensions = math.prod(shape)
    return jax.random.uniform(radius) ** (1.0 / dimensions) * _on_sphere(direction, shape)


def _uniform_radius(key: Array, shape: tuple[int, ...]) -> Array:
    """Norm ~ U(0, 1): not uniform in the ball, but it spares the attack more of its reach (A7)."""
    direction, radius = jax.random.split(key)
    return jax.random.uniform(radius) * _on_sphere(direction, shape)


def _zero(key: Array, shape: tuple[int, ...]) -> Array:
    del key
    return jnp.zeros(shape)


BALLS = {
    "linf": Ball(
        norm=lambda d: jnp.max(jnp.abs(d)),
        project=lambda d, radius: jnp.clip(d, -radius, radius),
        ascend=jnp.sign,  # A8
        starts={"ball": _in_cube, "zero": _zero},
    ),
    "l2": Ball(
        norm=_l2_norm,
        project=_l2_project,
        ascend=_l2_ascend,
        starts={"ball": _in_l2_ball, "radius_uniform": _uniform_radius, "zero": _zero},
    ),
}


def check_radius(setting: str, norm: str, radius: float, values: int) -> None:
    """UserError where all inputs have one and the same grey in their ball: another unit.

    It is the middle of [0, 1]^d, d being ``values``; the farthest from it are the corners.
    """
    name, farthest = ("L2", values**0.5 / 2) if norm == "l2" else ("L-inf", 0.5)
    if radius >= farthest:
        raise UserError(
            f"{setting}={radius:g} in {name}: from {farthest:.4g} on, any {values:,} values in "
            f"[0, 1] can be made plain grey; did you mean {radius:g}/255 = {radius / 255:.5f}?"
        )


def pgd(
    norm: str, epsilon: float | Array, steps: int, step_size: float = 5 / 8, start: str = "ball"
) -> Attack:
    """Projected gradient ascent with a fixed step (paper eq. 2; A2-A15).

    Args:
      norm: "linf" or "l2".
      epsilon: radius, in the unit of ``x``: pixels in [0, 1].
      steps: number of gradient steps, any; 0 returns ``x`` itself, without the random start.
      step_size: of each step, as a share of ``epsilon`` (A2: 5/8).
      start: where in the ball the search starts: a key of ``BALLS[norm].starts``.
    """
    return projected_ascent(norm, epsilon, steps, step_size, start, steepest(norm))


def steepest(norm: str) -> optax.GradientTransformation:
    """Each example's gradient -> the direction of norm 1 in which the objective rises most."""
    climb = jax.vmap(BALLS[norm].ascend)
    return optax.stateless(lambda gradient, _: jax.tree.map(climb, gradient))


def projected_ascent(
    norm: str,
    epsilon: float | Array,
    steps: int,
    step_size: float,
    start: str,
    direction: optax.GradientTransformation,
) -> Attack:
    """What ``pgd`` and its variants share: all but the direction of a step.

    ``direction`` maps the gradient of the images' losses, a tree like ``x``, to a direction of norm
    1; what it remembers from step to step is its state. The rest is as of ``pgd``.

    Returns:
      An attack. Its key is one key, or ``[B]`` keys, one per example: then the result for an
      image depends on that image and its key alone. Its health is described at ``_health``.
    """
    ball = BALLS[norm]
    sample = ball.starts[start]

    def into_ball(x: Array, x_adv: Array) -> Array:
        # x is in [0, 1]: the clip only shrinks coordinates, so the point stays in the ball (A11).
        project = jax.vmap(lambda d: ball.project(d, epsilon))
        return jnp.clip(x + project(x_adv - x), 0.0, 1.0)

    def random_start(path: Any, x: Array, keys: Array) -> Array:
        # Every leaf draws by its name: the two views of BYOL have independent starts.
        name = jax.tree_util.keystr(path)
        draw = jax.vmap(lambda key: sample(named(key, name), x.shape[1:]))
        return into_ball(x, x + epsilon * draw(keys))

    def attack(objective: Objective, x: PyTree, key: Array) -> tuple[PyTree, Health]:
        if steps == 0:
            return x, {}
        examples = jax.tree.leaves(x)[0].shape[0]
        keys = key if key.ndim else jax.random.split(key, examples)

        def total(x_adv: PyTree) -> tuple[Array, Array]:
            losses = objective(x_adv)
            if losses.ndim != 1:
                raise ValueError(f"an attack needs a loss for each image, not {losses.shape}")
            return losses.sum(), losses  # A14: an image's step does not depend on the batch's size

        def ascend(point: PyTree, _: None) -> tuple[PyTree, tuple[Array, Array]]:
            x_adv, state = point
            gradient, losses = jax.grad(total, has_aux=True)(x_adv)
            ways, state = direction.update(gradient, state)
            moved = jax.tree.map(lambda p, way: p + step_size * epsilon * way, x_adv, ways)
            zeros = _per_example(lambda g: jnp.mean(g == 0.0), gradient)
            return (jax.tree.map(into_ball, x, moved), state), (losses, zeros)

        x_adv = jax.tree_util.tree_map_with_path(lambda p, leaf: random_start(p, leaf, keys), x)
        begin = x_adv, direction.init(x)
        (x_adv, _), (losses, zeros) = jax.lax.scan(ascend, begin, length=steps)
        radius = _per_example(ball.norm, jax.tree.map(jnp.subtract, x_adv, x)) / epsilon
        return jax.lax.stop_gradient((x_adv, _health(losses, zeros, radius)))

    return attack


def _health(losses: Array, zeros: Array, radius: Array) -> Health:
    """What is told of an attack, [B] each, from its steps' losses and zeros [steps, B].

    ``loss_start`` at the random start, ``gain`` in loss per step (of the first steps - 1, the last
    is not seen from here), ``radius`` |x_adv - x| / epsilon, ``zero_grad``: share of gradient
    entries exactly zero.
    """
    return {
        "loss_start": losses[0],
        "gain": (losses[-1] - losses[0]) / max(1, len(losses) - 1),
        "radius": radius,
        "zero_grad": zeros.mean(0),
    }


def _per_example(measure: Callable[[Array], Array], tree: PyTree) -> Array:
    """``measure`` of every example, averaged over the leaves: [B]."""
    leaves = [jax.vmap(measure)(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(leaves[1:], leaves[0]) / len(leaves)


# The attacks of ``attack.name`` in a configuration: each takes the arguments of ``pgd``.
ATTACKS: dict[str, Callable[[str, float, int, float, str], Attack]] = {
    "pgd": pgd,
}
