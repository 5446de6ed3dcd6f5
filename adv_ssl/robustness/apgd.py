"""APGD: projected gradient ascent that sets its own step (Croce and Hein 2020, ICML; A27)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.losses import Logits, Loss

MOMENTUM = 0.75  # weight of the new point; the rest goes to the previous move
RHO = 0.75  # a window in which no larger share of the steps raised the loss halves the step
ROUNDING = 2.0**-25  # of a pixel in [0, 1] in float32

NOISE: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "linf": lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
    "l2": jax.random.normal,
}


class _Search(NamedTuple):
    """Points are [B, pixels], the rest [B]."""

    made: Array  # steps, a scalar
    x: Array
    previous: Array
    gradient: Array  # at x, as all of these
    loss: Array
    best: Array  # the first misclassified point, or so far the one of the highest loss
    best_gradient: Array
    best_loss: Array
    broken: Array  # best is misclassified, and final
    size: Array  # of a step
    raised: Array  # steps since the last checkpoint that raised the loss
    checked_loss: Array  # best_loss at the last checkpoint
    halved: Array  # the step, at the last checkpoint


def windows(steps: int) -> np.ndarray:
    """[steps]: the length of the window that ends after this step, 0 where none does."""
    ends = np.zeros(steps, np.int32)
    window, end = max(int(0.22 * steps), 1), 0
    while (end := end + window) <= steps:
        ends[end - 1] = window
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return ends


def inner_radius(norm: str, epsilon: float | Array, shape: tuple[int, ...]) -> Array:
    """``epsilon`` less what rounding x + d may add to d: so no point leaves the ball."""
    return jnp.maximum(epsilon - BALLS[norm].norm(jnp.full(shape, ROUNDING)), 0.0)


def apgd(
    norm: str, steps: int, loss: Loss
) -> Callable[[Logits, Array, Array, float | Array, Array], Array]:
    """The attack ``(logits, x, labels, epsilon, keys) -> x_adv``; pure, to be jitted by the caller.

    Args of the attack:
      logits: float32 [B, H, W, C] in [0, 1] -> [B, classes].
      x: [B, H, W, C] in [0, 1].
      labels: [B], the right classes.
      epsilon: radius, in the unit of ``x``.
      keys: [B], one per example: an image's result depends on that image and its key alone.

    Returns:
      [B, H, W, C] in the ball and in [0, 1]: ``x`` where that is misclassified already, else the
      first misclassified point, else the point of the highest loss, ``x`` included.
    """
    ball = BALLS[norm]
    ends = jnp.asarray(windows(steps))

    def attack(
        logits: Logits, x: Array, labels: Array, epsilon: float | Array, keys: Array
    ) -> Array:
        clean = x.reshape(len(x), -1)
        radius = inner_radius(norm, epsilon, clean.shape[1:])

        def into_ball(points: Array) -> Array:
            project = jax.vmap(lambda d: ball.project(d, radius))
            return jnp.clip(clean + project(points - clean), 0.0, 1.0)

        def judge(points: Array) -> tuple[Array, tuple[Array, Array]]:
            outputs = logits(points.reshape(x.shape))
            losses = loss(outputs, labels)
            return losses.sum(), (losses, outputs.argmax(-1) != labels)

        slope = jax.grad(judge, has_aux=True)

        def climb(state: _Search) -> Array:
            a = jnp.where(state.made == 0, 1.0, MOMENTUM)
            # A sure model's gradient is small, not zero: scaled, it keeps its direction in float32.
            largest = jnp.abs(state.gradient).max(1, keepdims=True)
            uphill = jax.vmap(ball.ascend)(state.gradient / jnp.maximum(largest, 1e-37))
            moved = into_ball(state.x + state.size[:, None] * uphill)
            onward = a * (moved - state.x) + (1 - a) * (state.x - state.previous)
            return into_ball(state.x + onward)

        def advance(state: _Search) -> _Search:
            window = ends[state.made]
            points = climb(state)
            gradient, (losses, wrong) = slope(points)
            state = _record(state, points, gradient, losses, wrong)
            return jax.lax.cond(window > 0, lambda s: _review(s, window), lambda s: s, state)

        start = into_ball(clean + epsilon * _directions(norm, keys, clean.shape[1:]))
        gradient, (losses, wrong) = slope(start)
        _, (clean_losses, clean_wrong) = judge(clean)
        state = _begin(start, gradient, losses, wrong | clean_wrong, 2.0 * epsilon)
        state = jax.lax.while_loop(lambda s: (s.made < steps) & ~jnp.all(s.broken), advance, state)
        return _not_worse(state, clean, clean_losses, clean_wrong).reshape(x.shape)

    return attack


def _directions(norm: str, keys: Array, shape: tuple[int, ...]) -> Array:
    """Random points of norm 1, one per key."""

    def draw(key: Array) -> Array:
        noise = NOISE[norm](key, shape)
        return noise / BALLS[norm].norm(noise)

    return jax.vmap(draw)(keys)


def _begin(
    start: Array, gradient: Array, losses: Array, broken: Array, size: float | Array
) -> _Search:
    return _Search(
        made=jnp.int32(0),
        x=start,
        previous=start,
        gradient=gradient,
        loss=losses,
        best=start,
        best_gradient=gradient,
        best_loss=losses,
        broken=broken,
        size=jnp.full(len(start), size),
        raised=jnp.zeros(len(start), jnp.int32),
        checked_loss=losses,
        halved=jnp.ones(len(start), bool),
    )


def _record(state: _Search, points: Array, gradient: Array, losses: Array, wrong: Array) -> _Search:
    """The step to ``points`` is made."""
    better = ~state.broken & ((losses > state.best_loss) | wrong)
    return state._replace(
        made=state.made + 1,
        x=points,
        previous=state.x,
        gradient=gradient,
        loss=losses,
        best=jnp.where(better[:, None], points, state.best),
        best_gradient=jnp.where(better[:, None], gradient, state.best_gradient),
        best_loss=jnp.where(better, losses, state.best_loss),
        broken=state.broken | wrong,
        raised=state.raised + (losses > state.loss),
    )


def _review(state: _Search, window: Array) -> _Search:
    """A checkpoint: where the step is too long it is halved, and the search back at its best."""
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = (state.raised <= RHO * window) | stuck
    return state._replace(
        x=jnp.where(halve[:, None], state.best, state.x),
        gradient=jnp.where(halve[:, None], state.best_gradient, state.gradient),
        size=jnp.where(halve, state.size / 2, state.size),
        raised=jnp.zeros_like(state.raised),
        checked_loss=state.best_loss,
        halved=halve,
    )


def _not_worse(state: _Search, clean: Array, losses: Array, wrong: Array) -> Array:
    """The best point, or the clean one where the search did not get above it."""
    better = ~wrong & (state.broken | (state.best_loss > losses))
    return jnp.where(better[:, None], state.best, clean)
