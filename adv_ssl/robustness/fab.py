"""FAB: the nearest misclassified point (Croce and Hein 2020, ICML; targeted; A26).

Each step takes the boundary between the right class and one target for a plane, and goes to where
that plane is nearest: to the point reached, and a little to the image itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.losses import Logits, of_class

ALPHA_MAX = 0.1  # the largest weight of the image itself
ETA = 1.05  # how far beyond the plane a step goes
BETA = 0.9  # how far a misclassified point stays from the image
ROUNDING = 2.0**-23  # of a pixel, with room


class _Search(NamedTuple):
    """Points are [B, pixels], the rest [B]."""

    made: Array  # steps, a scalar
    x: Array
    best: Array  # the nearest misclassified point
    distance: Array  # of it, infinite where there is none


def fab(
    norm: str, steps: int
) -> Callable[[Logits, Array, Array, float | Array, Array], tuple[Array, Array]]:
    """The attack ``(logits, x, labels, epsilon, targets) -> (x_adv, distance)``; pure.

    Args of the attack:
      logits: float32 [B, H, W, C] in [0, 1] -> [B, classes].
      x: [B, H, W, C] in [0, 1].
      labels: [B], the right classes.
      epsilon: the search for an image ends at a distance of at most ``epsilon``, in the unit of
        ``x``; 0 makes all steps, for the nearest point they find.
      targets: [B], the wrong class whose boundary is sought.

    Returns:
      ``x_adv`` [B, H, W, C] in [0, 1], misclassified (as any class), and its ``distance`` [B] from
      ``x``, which may be above ``epsilon``; ``x`` itself and infinity where none was found, ``x``
      and 0 where that is misclassified already. It does not depend on chance.
    """
    measure = jax.vmap(BALLS[norm].norm)

    def attack(
        logits: Logits, x: Array, labels: Array, epsilon: float | Array, targets: Array
    ) -> tuple[Array, Array]:
        clean = x.reshape(len(x), -1)

        def lead(points: Array) -> tuple[Array, Array]:
            outputs = logits(points.reshape(x.shape))
            leads = of_class(outputs, targets) - of_class(outputs, labels)
            return leads.sum(), leads

        def wrong(points: Array) -> Array:
            return logits(points.reshape(x.shape)).argmax(-1) != labels

        def advance(state: _Search) -> _Search:
            slopes, leads = jax.grad(lead, has_aux=True)(state.x)
            points = _step(norm, clean, state.x, slopes, leads)
            found, distance = wrong(points), measure(points - clean)
            nearer = (found & (distance < state.distance) & (state.distance > epsilon))[:, None]
            return _Search(
                made=state.made + 1,
                x=jnp.where(found[:, None], clean + BETA * (points - clean), points),
                best=jnp.where(nearer, points, state.best),
                distance=jnp.where(nearer[:, 0], distance, state.distance),
            )

        state = _Search(
            made=jnp.int32(0),
            x=clean,
            best=clean,
            distance=jnp.where(wrong(clean), 0.0, jnp.inf),
        )
        state = jax.lax.while_loop(
            lambda s: (s.made < steps) & jnp.any(s.distance > epsilon), advance, state
        )
        return state.best.reshape(x.shape), state.distance

    return attack


def _step(norm: str, clean: Array, x: Array, slopes: Array, leads: Array) -> Array:
    """From ``x`` to, and a little over, the plane {p: leads + slopes (p - x) = 0}; [B, pixels]."""
    # One rounding beyond the boundary: right before it a step would be lost in the pixels' last
    # digits, and all after it.
    leads = leads - ROUNDING * jnp.abs(slopes).sum(1)
    across = leads + jnp.sum(slopes * (clean - x), axis=1)
    from_x = onto_plane(norm, x, slopes, leads)
    from_clean = onto_plane(norm, clean, slopes, across)
    near, far = (jax.vmap(BALLS[norm].norm)(move) for move in (from_x, from_clean))
    alpha = jnp.minimum(near / jnp.maximum(near + far, 1e-8), ALPHA_MAX)[:, None]
    points = (1 - alpha) * (x + ETA * from_x) + alpha * (clean + ETA * from_clean)
    return jnp.clip(points, 0.0, 1.0)


def onto_plane(norm: str, points: Array, slopes: Array, values: Array) -> Array:
    """The shortest ``d`` with ``values + slopes d = 0`` and ``points + d`` in the box [0, 1].

    A shortest d moves every pixel downhill in |value|: in Linf by the same ``t``, in L2 by ``t``
    times its slope, but no farther than to the edge of the box. So the change of the value is a sum
    of terms ``min(t rate, limit)``, and the multiplier ``t`` is where it is |value|.

    Args:
      norm: "linf" or "l2".
      points: [B, pixels] in [0, 1].
      slopes: [B, pixels].
      values: [B].

    Returns:
      [B, pixels]; where the box does not reach the plane, all the way to the edge.
    """
    downhill = -jnp.sign(values)[:, None] * slopes
    room = jnp.where(downhill > 0, 1.0 - points, points)
    steepness = jnp.abs(slopes)
    speed = steepness if norm == "l2" else (steepness > 0).astype(points.dtype)
    reach = multiplier(speed * steepness, room * steepness, jnp.abs(values))
    # Where the plane is out of reach the multiplier is infinite, and 0 * inf is no move.
    moved = jnp.where(speed > 0, jnp.minimum(reach[:, None] * speed, room), 0.0)
    return jnp.sign(downhill) * moved


def multiplier(rates: Array, limits: Array, totals: Array) -> Array:
    """[B]: the t >= 0 with ``sum(min(t rates, limits)) = totals``; infinity where there is none.

    The sum is concave and piecewise linear in t, so Newton's method from 0 climbs to the root
    without stepping over it, and is there once no more terms reach their limit: a few passes, where
    sorting the [B, pixels] breakpoints would cost more than the model.
    """

    def refine(state: tuple[Array, Array]) -> tuple[Array, Array]:
        t, _ = state
        free = t[:, None] * rates < limits
        rest = totals - jnp.where(free, 0.0, limits).sum(1)
        slope = jnp.where(free, rates, 0.0).sum(1)
        refined = jnp.where(slope > 0, rest / slope, jnp.where(rest > 0, jnp.inf, t))
        return refined, refined > t

    # The set of free terms only shrinks, and the same set gives the same t: it comes to an end.
    start = jnp.zeros_like(totals), jnp.ones(totals.shape, bool)
    return jax.lax.while_loop(lambda s: jnp.any(s[1]), refine, start)[0]
