"""Square attack: random search by squares, no gradients (Andriushchenko et al. 2020, ECCV; A26)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.apgd import inner_radius
from adv_ssl.robustness.losses import Logits, margin

P_INIT = 0.8  # share of the pixels in the first squares
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of that share, after these queries
TINY = 1e-12

Begin = Callable[[Array, Array], Array]  # (key, x) -> where the search for one image starts
Propose = Callable[[Array, Array, Array, Array], Array]  # (key, query, x, best) -> the next try


class _Search(NamedTuple):
    made: Array  # queries, a scalar
    best: Array  # [B, H, W, C]
    loss: Array  # [B], its margin
    broken: Array  # [B], best is misclassified, and final


def sides(norm: str, queries: int, height: int, width: int) -> np.ndarray:
    """[queries]: side of the square of each query, in pixels; odd in L2, and at least 3 there."""
    share = P_INIT / 2.0 ** np.searchsorted(HALVINGS, np.arange(queries))
    side = np.rint(np.sqrt(share * height * width)).astype(np.int32)
    side = np.maximum(side, 3) // 2 * 2 + 1 if norm == "l2" else np.maximum(side, 1)
    return np.minimum(side, min(height, width))


def square(
    norm: str, queries: int
) -> Callable[[Logits, Array, Array, float | Array, Array], Array]:
    """The attack ``(logits, x, labels, epsilon, keys) -> x_adv`` on the margin; pure.

    Args of the attack:
      logits: float32 [B, H, W, C] in [0, 1] -> [B, classes].
      x: [B, H, W, C] in [0, 1].
      labels: [B], the right classes.
      epsilon: radius, in the unit of ``x``.
      keys: [B], one per example: an image's result depends on that image and its key alone.

    Returns:
      [B, H, W, C] in the ball and in [0, 1]: ``x`` where that is misclassified already, else the
      first misclassified point, else the point of the highest margin, ``x`` included. The search
      ends when all images are misclassified or ``queries`` proposals were made.
    """

    def attack(
        logits: Logits, x: Array, labels: Array, epsilon: float | Array, keys: Array
    ) -> Array:
        shape = x.shape[1:]
        radius = inner_radius(norm, epsilon, shape)
        begin, propose = SEARCHES[norm](sides(norm, queries, *shape[:2]), shape, radius)

        def judge(points: Array) -> tuple[Array, Array]:
            outputs = logits(points)
            return margin(outputs, labels), outputs.argmax(-1) != labels

        def query(state: _Search) -> _Search:
            def draw(key: Array, x: Array, best: Array) -> Array:
                return propose(jax.random.fold_in(key, state.made), state.made, x, best)

            points = jax.vmap(draw)(keys, x, state.best)
            losses, wrong = judge(points)
            better = ~state.broken & ((losses > state.loss) | wrong)
            return _Search(
                made=state.made + 1,
                best=_where(better, points, state.best),
                loss=jnp.where(better, losses, state.loss),
                broken=state.broken | wrong,
            )

        start = jax.vmap(begin)(keys, x)
        (losses, wrong), (clean_losses, clean_wrong) = judge(start), judge(x)
        state = _Search(jnp.int32(0), start, losses, wrong | clean_wrong)
        state = jax.lax.while_loop(lambda s: (s.made < queries) & ~jnp.all(s.broken), query, state)
        better = ~clean_wrong & (state.broken | (state.loss > clean_losses))
        return _where(better, state.best, x)

    return attack


def _where(chosen: Array, points: Array, others: Array) -> Array:
    return jnp.where(chosen[:, None, None, None], points, others)


def _place(draw: Array, side: Array, length: int) -> Array:
    """The first of ``side`` pixels in a row of ``length``, from a uniform draw."""
    return (draw * (length - side + 1)).astype(jnp.int32)


def _signs(draws: Array) -> Array:
    return jnp.where(draws < 0.5, -1.0, 1.0)


def _window(row: Array, column: Array, side: Array, shape: tuple[int, ...]) -> Array:
    """[H, W, 1] bool: the pixels of a square."""
    height, width, _ = shape
    rows, columns = jnp.arange(height), jnp.arange(width)
    inside = ((rows >= row) & (rows < row + side))[:, None]
    return (inside & (columns >= column) & (columns < column + side))[..., None]


def _linf_search(
    side_of: np.ndarray, shape: tuple[int, ...], radius: Array
) -> tuple[Begin, Propose]:
    """Starts from vertical stripes; a try sets a square to a corner of the ball."""
    height, width, channels = shape

    def begin(key: Array, x: Array) -> Array:
        stripes = _signs(jax.random.uniform(key, (1, width, channels)))
        return jnp.clip(x + radius * stripes, 0.0, 1.0)

    def propose(key: Array, query: Array, x: Array, best: Array) -> Array:
        side = jnp.asarray(side_of)[query]
        draws = jax.random.uniform(key, (2 + channels,))
        row, column = _place(draws[0], side, height), _place(draws[1], side, width)
        corner = jnp.clip(x + radius * _signs(draws[2:]), 0.0, 1.0)
        return jnp.where(_window(row, column, side, shape), corner, best)

    return begin, propose


def _l2_search(side_of: np.ndarray, shape: tuple[int, ...], radius: Array) -> tuple[Begin, Propose]:
    """Starts from a grid of bumps; a try moves the perturbation of one square into another."""
    height, width, channels = shape
    sizes, stage_of = np.unique(side_of, return_inverse=True)
    canvases = jnp.asarray(np.stack([_canvas(int(size), height, width) for size in sizes]))
    tiles = _tiles(height, width)

    def scaled(x: Array, d: Array) -> Array:
        return jnp.clip(x + d * (radius / (BALLS["l2"].norm(d) + TINY)), 0.0, 1.0)

    def begin(key: Array, x: Array) -> Array:
        signs = _signs(jax.random.uniform(key, (len(tiles), channels)))
        return scaled(x, jnp.einsum("thw,tc->hwc", tiles, signs))

    def propose(key: Array, query: Array, x: Array, best: Array) -> Array:
        stage = jnp.asarray(stage_of)[query]
        side = jnp.asarray(sizes)[stage]
        draws = jax.random.uniform(key, (5 + channels,))
        row, column = _place(draws[0], side, height), _place(draws[1], side, width)
        taken = _window(_place(draws[2], side, height), _place(draws[3], side, width), side, shape)
        upright = (draws[4] < 0.5).astype(jnp.int32)
        origin = (stage, upright, height - row, width - column)
        bump = jax.lax.dynamic_slice(canvases, origin, (1, 1, height, width))[0, 0, :, :, None]
        given = _window(row, column, side, shape)
        return scaled(x, _moved(best - x, given, taken, bump * _signs(draws[5:]), radius))

    return begin, propose


def _moved(d: Array, given: Array, taken: Array, bump: Array, radius: Array) -> Array:
    """``d`` [H, W, C] with the mass of ``taken``, and what is unused, moved into ``given``.

    There each channel is the mean of its old direction and of the bump's. Each gets the mass that
    all channels together had in both, as in AutoAttack's release (A26): scaled to the radius, more
    than what lies elsewhere.
    """

    def norm(values: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(values), axis=(0, 1)))  # of each channel

    unused = jnp.maximum(jnp.square(radius) - jnp.sum(jnp.square(d)), 0.0) / d.shape[-1]
    mass = jnp.sqrt(unused + jnp.sum(jnp.square(jnp.where(given | taken, d, 0.0))))
    old = jnp.where(given, d, 0.0)
    new = old / (norm(old) + TINY) + bump
    new = new * (mass / (norm(new) + TINY))
    return jnp.where(given, new, jnp.where(taken, 0.0, d))


def bumps(side: int) -> np.ndarray:
    """[side, side] of L2 norm 1: two opposite bumps, one over the other.

    Each falls by the sums of 1/k^2 with the distance (of the farther coordinate) from its middle.
    """

    def bump(height: int) -> np.ndarray:
        middle = height // 2, side // 2
        rows, columns = np.indices((height, side))
        ring = np.maximum(abs(rows - middle[0]), abs(columns - middle[1]))
        levels = 1.0 / np.arange(1, max(middle) + 2) ** 2
        values = levels[::-1].cumsum()[::-1][ring]
        return values / max(np.linalg.norm(values), TINY)

    both = np.concatenate([bump(side // 2), -bump(side - side // 2)])
    return both / np.linalg.norm(both)


def _canvas(side: int, height: int, width: int) -> np.ndarray:
    """[2, 2 height, 2 width]: the bumps, both ways, to be cut out in any place of the image."""
    canvas = np.zeros((2, 2 * height, 2 * width), np.float32)
    for way, pattern in enumerate((bumps(side), bumps(side).T)):
        canvas[way, height : height + side, width : width + side] = pattern
    return canvas


def _tiles(height: int, width: int) -> np.ndarray:
    """[tiles, H, W]: bumps on a grid of at least 5 x 5."""
    side = max(1, min(height, width) // 5)
    rows = (height % side) // 2 + side * np.arange(height // side)
    columns = (width % side) // 2 + side * np.arange(width // side)
    tiles = np.zeros((len(rows) * len(columns), height, width), np.float32)
    for tile, (row, column) in zip(
        tiles, ((row, column) for row in rows for column in columns), strict=True
    ):
        tile[row : row + side, column : column + side] = bumps(side)
    return tiles


SEARCHES = {"linf": _linf_search, "l2": _l2_search}
