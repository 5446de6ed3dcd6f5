"""Square: its schedule by hand, and what one proposal may change."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robust import SHAPE, classify, images, keys, mlp_params, predicted
from scipy import stats

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.losses import margin
from adv_ssl.robustness.square import SEARCHES, _moved, bumps, sides, square

HEIGHT, WIDTH, CHANNELS = SHAPE


def changes(norm: str, queries: int, side: int) -> dict[int, int]:
    """{query: side of the square} where it changes."""
    sizes = sides(norm, queries, side, side)
    starts = [0, *(np.flatnonzero(np.diff(sizes)) + 1)]
    return {int(start): int(sizes[start]) for start in starts}


def test_schedule_of_5000_queries_at_224_pixels():
    # 224 sqrt(0.8 / 2^k) rounded: 200.35, 141.67, 100.18, 70.84, 50.09, 35.42, 25.04, 17.71
    assert changes("linf", 5000, 224) == {
        0: 200, 11: 142, 51: 100, 201: 71, 501: 50, 1001: 35, 2001: 25, 4001: 18,
    }  # fmt: skip
    assert changes("l2", 5000, 224) == {
        0: 201, 11: 143, 51: 101, 201: 71, 501: 51, 1001: 35, 2001: 25, 4001: 19,
    }  # fmt: skip


def test_schedule_ends_at_one_pixel_and_at_three_in_l2():
    # 8 sqrt(0.8 / 2^k): 7.16, 5.06, 3.58, 2.53, 1.79, 1.26, 0.89, 0.63, 0.45, 0.32
    assert changes("linf", 10_000, 8) == {0: 7, 11: 5, 51: 4, 201: 3, 501: 2, 1001: 1}
    assert changes("l2", 10_000, 8) == {0: 7, 11: 5, 201: 3}
    assert sides("linf", 20_000, 1000, 1000)[8001] == 40  # 1000 sqrt(0.8 / 512) = 39.5
    assert sides("linf", 20_000, 1000, 1000)[8000] == 56
    assert max(sides("l2", 100, 4, 6)) == 4  # a square fits the image


def test_bumps_by_hand():
    # Sides 3: one row over two. Rings of 1 + 1/4 in the middle and 1/4 around it.
    upper = np.array([[1, 5, 1]]) / np.sqrt(27)
    lower = np.array([[1, 1, 1], [1, 5, 1]]) / np.sqrt(30)
    np.testing.assert_allclose(bumps(3), np.concatenate([upper, -lower]) / np.sqrt(2))
    np.testing.assert_allclose(bumps(1), [[-1.0]])
    middle = bumps(7)[3:]  # rings of the lower four rows: 1 + 1/4 + 1/9, + 1/16 in the middle...
    levels = np.array([1 / 16, 1 / 16 + 1 / 9, 1 / 16 + 1 / 9 + 1 / 4, 1 / 16 + 1 / 9 + 1 / 4 + 1])
    np.testing.assert_allclose(middle[2] / middle[2, 0], levels[[0, 1, 2, 3, 2, 1, 0]] / levels[0])


# ---- proposals --------------------------------------------------------------------------------

SIDE, RADIUS, DRAWS = 3, 0.25, 2000


def proposals(norm: str, best: np.ndarray) -> np.ndarray:
    """[DRAWS, H, W, C]: squares of 3 x 3 tried from ``best`` around a grey image."""
    _, propose = SEARCHES[norm](np.array([SIDE]), SHAPE, RADIUS)
    grey = jnp.full(SHAPE, 0.5)
    draw = jax.jit(jax.vmap(lambda key: propose(key, jnp.int32(0), grey, best)))
    return np.asarray(draw(keys(np.arange(DRAWS))))


def bounds(changed: np.ndarray) -> tuple[int, int, int, int]:
    """(first row, rows, first column, columns) of the pixels [H, W] that are True."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return rows[0], rows[-1] - rows[0] + 1, columns[0], columns[-1] - columns[0] + 1


def test_linf_proposal_sets_one_square_to_a_corner_of_the_ball():
    tried = proposals("linf", np.full(SHAPE, 0.5, np.float32))
    places, signs = [], []
    for points in tried:
        changed = points[..., 0] != 0.5
        row, height, column, width = bounds(changed)
        assert (height, width, changed.sum()) == (SIDE, SIDE, SIDE**2)
        inside = points[row : row + SIDE, column : column + SIDE] - 0.5
        np.testing.assert_allclose(np.abs(inside), RADIUS, atol=1e-6)
        assert np.all(inside == inside[:1, :1])  # one sign for each channel
        places.append((row, column))
        signs.append(tuple(inside[0, 0] > 0))
    for draws, cells in [(places, (HEIGHT - SIDE + 1) * (WIDTH - SIDE + 1)), (signs, 4)]:
        _, counts = np.unique(draws, axis=0, return_counts=True)
        assert len(counts) == cells  # all places, the last row and column too
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("norm", SEARCHES)
def test_proposals_stay_within_the_range_of_pixels(norm):
    begin, propose = SEARCHES[norm](np.array([SIDE]), SHAPE, RADIUS)
    x = jnp.asarray(np.round(images(1)[0]))
    start = begin(keys([0])[0], x)
    assert np.all((start >= 0) & (start <= 1))
    tried = propose(keys([1])[0], jnp.int32(0), x, start)
    assert np.all((tried >= 0) & (tried <= 1))
    assert np.any(tried != start)


def test_linf_search_starts_from_stripes_from_top_to_bottom():
    begin, _ = SEARCHES["linf"](np.array([SIDE]), SHAPE, RADIUS)
    start = np.asarray(jax.vmap(lambda key: begin(key, jnp.full(SHAPE, 0.5)))(keys(np.arange(400))))
    np.testing.assert_allclose(np.abs(start - 0.5), RADIUS, atol=1e-6)
    assert np.all(start == start[:, :1])
    up = (start[:, 0] > 0.5).reshape(400, -1)
    np.testing.assert_allclose(up.mean(0), 0.5, atol=0.1)
    assert np.abs(np.corrcoef(up.T) - np.eye(WIDTH * CHANNELS)).max() < 0.2


def test_l2_search_starts_from_the_whole_radius_spread_over_the_image():
    begin, _ = SEARCHES["l2"](np.array([SIDE]), (11, 12, 2), RADIUS)
    start = np.asarray(begin(keys([0])[0], jnp.full((11, 12, 2), 0.5))) - 0.5
    np.testing.assert_allclose(np.linalg.norm(start), RADIUS, rtol=1e-5)
    filled = np.abs(start) > 1e-6  # tiles of 2 x 2, from the first row (of 11) and column
    assert filled[:10].all()
    assert not filled[10].any()
    tiles = start[:10].reshape(5, 2, 6, 2, 2)
    lengths = np.sqrt(np.square(tiles).sum((1, 3)))
    np.testing.assert_allclose(lengths, RADIUS / np.sqrt(60), rtol=1e-5)
    np.testing.assert_allclose(tiles[:, 0], -tiles[:, 1], rtol=1e-5)


def test_l2_proposal_keeps_the_radius_and_moves_one_square_into_another():
    rng = np.random.default_rng(1)
    d = rng.standard_normal(SHAPE)
    best = np.float32(0.5 + RADIUS * d / np.linalg.norm(d))
    tried = proposals("l2", best)
    lengths = np.linalg.norm((tried - 0.5).reshape(DRAWS, -1), axis=1)
    np.testing.assert_allclose(lengths, RADIUS, rtol=1e-5)
    emptied = np.all(np.abs(tried - 0.5) < 1e-7, axis=-1)
    # All else is scaled by one number in both channels, so that the whole has the radius again.
    (before, other), (after, others) = (
        np.moveaxis(np.float64(x) - 0.5, -1, 0) for x in (best, tried)
    )
    changed = emptied | (np.abs(after * other - others * before) > 2e-8)
    apart = []
    for was, empty in zip(changed, emptied, strict=True):
        assert 9 <= was.sum() <= 18
        if was.sum() == 18:  # the squares do not overlap
            assert empty.sum() == 9
            assert bounds(empty)[1::2] == (SIDE, SIDE)
            assert bounds(was & ~empty)[1::2] == (SIDE, SIDE)
            apart.append((*bounds(was & ~empty)[::2], *bounds(empty)[::2]))
    given, taken = np.array(apart)[:, :2], np.array(apart)[:, 2:]
    for places in (given, taken):
        assert places.min(0).tolist() == [0, 0]
        assert places.max(0).tolist() == [HEIGHT - SIDE, WIDTH - SIDE]


def test_l2_proposal_from_nothing_is_a_pair_of_bumps_either_way_round():
    tried = proposals("l2", np.full(SHAPE, 0.5, np.float32)) - 0.5
    ways = {"upright": 0, "lying": 0}
    for d in tried:
        row, height, column, width = bounds(np.any(np.abs(d) > 1e-6, axis=-1))
        assert (height, width) == (SIDE, SIDE)
        for channel in np.moveaxis(d[row : row + SIDE, column : column + SIDE], -1, 0):
            signed = channel * np.sqrt(CHANNELS) / RADIUS * np.sign(channel[0, 0])
            upright = np.allclose(signed, bumps(SIDE), atol=1e-5)
            assert upright or np.allclose(signed, bumps(SIDE).T, atol=1e-5)
            ways["upright" if upright else "lying"] += 1
    assert min(ways.values()) > 0.4 * CHANNELS * DRAWS


def test_mass_moved_in_l2_by_hand():
    """Both have 3 in the square that is taken, 4 in the one given; the unused is halved."""
    d = np.zeros((4, 4, 2), np.float32)
    d[0, 0, 0], d[3, 3, 0], d[1, 2, 1] = 3, 4, 2
    given, taken = np.zeros((2, 4, 4, 1), bool)
    given[2:, 2:], taken[:2, :2] = True, True
    bump = np.zeros((4, 4, 2), np.float32)
    bump[2, 2] = 1  # of norm 1 in both channels
    radius = np.sqrt(29 + 2 * 11)
    moved = np.asarray(_moved(d, given, taken, bump, radius))
    # Channel 0 had its whole mass at one corner: half of that direction, half of the bump's.
    expected = np.zeros((4, 4, 2))
    expected[3, 3, 0] = expected[2, 2, 0] = np.sqrt((25 + 11) / 2)
    expected[2, 2, 1], expected[1, 2, 1] = np.sqrt(25 + 11), 2  # and 2 is in neither square
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_more_queries_are_never_worse(norm):
    params, x = mlp_params(), images(16)
    labels = predicted(params, x)
    logits = functools.partial(classify, params)
    losses = [margin(logits(x), labels)]
    for queries in (8, 64):
        run = jax.jit(
            lambda n=queries: square(norm, n)(logits, x, labels, 0.02, keys(np.arange(16)))
        )
        losses.append(np.asarray(margin(logits(run()), labels)))
    for before, after in itertools.pairwise(losses):
        assert np.all((after >= before - 1e-5) | (after > 0))
        assert np.mean(after > before) > 0.2
