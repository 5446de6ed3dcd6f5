"""FAB: its projections against general solvers, and linear models with known distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robust import (
    SHAPE,
    classify,
    distances,
    images,
    linear_classify,
    linear_distances,
    mlp_params,
    predicted,
)  # fmt: skip
from scipy import optimize

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.fab import fab, multiplier, onto_plane
from adv_ssl.robustness.losses import wrong_class

PIXELS = int(np.prod(SHAPE))


def solve(norm: str, point: np.ndarray, slopes: np.ndarray, value: float) -> float:
    """Length of the shortest step from ``point`` onto the plane within the box, by scipy."""
    bounds = [(-p, 1 - p) for p in point]
    n = len(point)
    if norm == "linf":  # least t with |d| <= t
        eye, ones = np.eye(n), np.ones((n, 1))
        result = optimize.linprog(
            np.append(np.zeros(n), 1.0),
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.append(slopes, 0.0)[None],
            b_eq=[-value],
            bounds=[*bounds, (0, None)],
        )
        return result.fun
    result = optimize.minimize(
        lambda d: d @ d,
        np.zeros(n),
        jac=lambda d: 2 * d,
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda d: slopes @ d + value, "jac": lambda d: slopes},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return np.sqrt(result.fun)


def planes(count: int, pixels: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, slopes and values: the box allows the value to be brought ``share`` beyond 0."""
    rng = np.random.default_rng(3)
    points = rng.random((count, pixels))
    points[:, 0], points[:, 1] = 0.0, 1.0  # at the edges
    slopes = rng.standard_normal((count, pixels)) * rng.choice([0.01, 1, 5], (count, pixels))
    slopes[:, 2] = 0.0
    signs = rng.choice([-1.0, 1.0], count)
    downhill = -signs[:, None] * slopes
    most = np.sum(np.abs(slopes) * np.where(downhill > 0, 1 - points, points), axis=1)
    return tuple(a.astype(np.float32) for a in (points, slopes, signs * share * most))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("norm", BALLS)
def test_step_onto_a_plane_is_the_shortest_in_the_box(norm, share):
    points, slopes, values = planes(12, 7, share)
    d = np.asarray(onto_plane(norm, points, slopes, values))
    assert np.all((points + d >= -1e-6) & (points + d <= 1 + 1e-6))
    np.testing.assert_allclose(values + (slopes * d).sum(1), 0, atol=2e-5)
    exact = map(np.float64, (points, slopes, values))
    shortest = [solve(norm, *plane) for plane in zip(*exact, strict=True)]
    np.testing.assert_allclose(distances(norm, d, 0 * d), shortest, rtol=1e-3)
    clipped = np.isclose(points + d, 0) | np.isclose(points + d, 1)
    assert np.any(clipped & (np.abs(d) > 1e-3))  # the box matters


@pytest.mark.parametrize("norm", BALLS)
def test_step_onto_a_plane_far_from_the_edges_by_the_closed_form(norm):
    rng = np.random.default_rng(0)
    points = rng.uniform(0.4, 0.6, (5, 30)).astype(np.float32)
    slopes = rng.standard_normal((5, 30)).astype(np.float32)
    values = np.float32([0.1, -0.1, 0.5, 0.0, -0.01])
    d = onto_plane(norm, points, slopes, values)
    if norm == "l2":
        expected = -values[:, None] * slopes / np.square(slopes).sum(1, keepdims=True)
    else:
        expected = -values[:, None] * np.sign(slopes) / np.abs(slopes).sum(1, keepdims=True)
    np.testing.assert_allclose(d, expected, atol=1e-6)


@pytest.mark.parametrize("norm", BALLS)
def test_a_plane_out_of_reach_is_approached_to_the_edge(norm):
    points, slopes, values = planes(6, 7, 1.5)
    d = np.asarray(onto_plane(norm, points, slopes, values))
    edge = np.where(-np.sign(values)[:, None] * slopes > 0, 1, 0)
    np.testing.assert_allclose((points + d)[slopes != 0], edge[slopes != 0], atol=1e-6)
    assert np.all(d[slopes == 0] == 0)


@pytest.mark.parametrize("norm", BALLS)
def test_without_a_slope_there_is_no_step(norm):
    points = np.full((2, 5), 0.5, np.float32)
    d = onto_plane(norm, points, 0 * points, np.float32([1.0, 0.0]))
    np.testing.assert_array_equal(d, 0 * points)


def test_multiplier_by_hand():
    rates = jnp.array([[1.0, 2.0, 4.0]])
    limits = jnp.array([[1.0, 1.0, 1.0]])  # reached at t = 1, 0.5 and 0.25
    for total, t in [(0.0, 0.0), (0.7, 0.1), (1.75, 0.25), (2.05, 0.35), (2.75, 0.75), (3.0, 1.0)]:
        found = multiplier(rates, limits, jnp.array([total]))
        np.testing.assert_allclose(found, [t], rtol=1e-6, err_msg=str(total))
    assert np.isinf(multiplier(rates, limits, jnp.array([3.1]))[0])


def test_multiplier_of_rates_over_many_scales():
    """Each pass ends a few terms only: the number of passes must not be cut short."""
    rates = jnp.asarray(np.geomspace(1e-6, 1e6, 49)[None], jnp.float32)
    limits = jnp.asarray(np.geomspace(1e-3, 1e3, 49)[::-1][None], jnp.float32)
    found = multiplier(rates, limits, jnp.array([0.999]) * limits.sum())[0]
    total = np.minimum(found * np.asarray(rates, np.float64), limits).sum()
    np.testing.assert_allclose(total, 0.999 * limits.sum(), rtol=1e-5)


def linear_model(classes: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    slopes = rng.standard_normal((PIXELS, classes)).astype(np.float32)
    return {"slopes": slopes, "bias": -slopes.sum(0) / 2}


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("norm", BALLS)
def test_least_distance_of_a_linear_model_is_found(norm, edge):
    """Over all targets; also where the nearest point is at the edge of the box."""
    params = linear_model()
    x = images(6) if edge else images(6, low=0.3, high=0.7)
    if edge:
        x = np.clip(2 * x - 0.5, 0, 1)  # half of the pixels are 0 or 1
    labels = predicted(params, x, linear_classify)
    logits = functools.partial(linear_classify, params)

    @jax.jit
    def nearest(rank):
        targets = wrong_class(logits(x), labels, rank)
        return fab(norm, 100)(logits, x, labels, 0.0, targets)

    found = np.full(6, np.inf)
    for rank in range(5):
        x_adv, distance = nearest(rank)
        hit = np.isfinite(distance)
        np.testing.assert_allclose(distances(norm, x_adv, x)[hit], distance[hit], rtol=1e-5)
        assert np.all(predicted(params, x_adv, linear_classify)[hit] != labels[hit])
        found = np.minimum(found, distance)
    expected = linear_distances(norm, params, x, labels).min(1)
    if edge:
        values = np.asarray(logits(x), np.float64)
        ahead = values - np.take_along_axis(values, labels[:, None], 1)
        slopes = np.asarray(params["slopes"], np.float64).T
        expected = np.array([
            min(
                solve(norm, np.float64(x[i].ravel()), slopes[t] - slopes[y], ahead[i, t])
                for t in range(6) if t != y
            )
            for i, y in enumerate(labels)
        ])  # fmt: skip
        assert np.all(expected > linear_distances(norm, params, x, labels).min(1) * 1.02)
    assert np.all(found >= expected * (1 - 1e-4))
    np.testing.assert_allclose(found, expected, rtol=0.015)


def plain_fab(norm, params, clean, label, target, steps):
    """The paper's algorithm for one image far from the box's edges, in float64.

    Returns: (least distance, the last one of a misclassified point).
    """
    inner, outer = np.float64(params["in"]), np.float64(params["out"])
    size = lambda d: np.abs(d).max() if norm == "linf" else np.linalg.norm(d)  # noqa: E731
    x, nearest, last = clean, np.inf, np.inf
    for _ in range(steps):
        hidden = np.tanh((x - 0.5) @ inner)
        ahead = hidden @ (outer[:, target] - outer[:, label])
        slope = inner @ ((1 - hidden**2) * (outer[:, target] - outer[:, label]))
        uphill = np.sign(slope) if norm == "linf" else slope
        rate = uphill @ slope
        from_x = -ahead / rate * uphill
        from_clean = -(ahead + slope @ (clean - x)) / rate * uphill
        alpha = min(size(from_x) / (size(from_x) + size(from_clean)), 0.1)
        x = (1 - alpha) * (x + 1.05 * from_x) + alpha * (clean + 1.05 * from_clean)
        if np.argmax(np.tanh((x - 0.5) @ inner) @ outer) != label:
            last = size(x - clean)
            nearest = min(nearest, last)
            x = clean + 0.9 * (x - clean)
    return nearest, last


@pytest.mark.parametrize("norm", BALLS)
def test_path_is_that_of_a_plain_reading_of_the_paper(norm):
    params, x, steps = mlp_params(), images(12, low=0.4, high=0.6), 15
    labels = predicted(params, x)
    logits = functools.partial(classify, params)
    targets = np.asarray(wrong_class(logits(x), labels, 1))
    _, found = jax.jit(lambda: fab(norm, steps)(logits, x, labels, 0.0, targets))()
    plain = np.array([
        plain_fab(norm, params, np.float64(image.ravel()), label, target, steps)
        for image, label, target in zip(x, labels, targets, strict=True)
    ])  # fmt: skip
    assert np.isfinite(plain).all()
    assert plain.max() < 0.4  # the edges were never reached
    assert np.any(plain[:, 1] > 1.001 * plain[:, 0])  # the last point is not always the nearest
    np.testing.assert_allclose(found, plain[:, 0], rtol=1e-3)


@pytest.mark.parametrize("norm", BALLS)
def test_more_steps_come_no_farther(norm):
    params, x = mlp_params(), images(16)
    labels = predicted(params, x)
    logits = functools.partial(classify, params)
    targets = wrong_class(logits(x), labels, 0)
    found = [
        np.asarray(jax.jit(lambda s=s: fab(norm, s)(logits, x, labels, 0.0, targets)[1])())
        for s in (5, 20)
    ]
    assert np.all(found[1] <= found[0])
    assert np.mean(found[1] < found[0]) > 0.5


def test_search_for_an_image_ends_within_the_radius():
    params = linear_model()
    x = images(8, low=0.3, high=0.7)
    labels = predicted(params, x, linear_classify)
    logits = functools.partial(linear_classify, params)
    targets = wrong_class(logits(x), labels, 0)

    def distance(epsilon):
        return np.asarray(
            jax.jit(fab("l2", 50), static_argnums=0)(logits, x, labels, epsilon, targets)[1]
        )

    nearest = distance(0.0)
    wide = 1.5 * np.median(nearest)
    stopped = distance(wide)
    inside = nearest < wide
    assert np.all(stopped[inside] <= wide)
    assert np.any(stopped[inside] > 1.001 * nearest[inside])
    np.testing.assert_array_equal(stopped[~inside], nearest[~inside])
