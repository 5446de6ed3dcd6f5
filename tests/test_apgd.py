"""APGD: its schedule, its whole path against a plain reading of the paper, and linear models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robust import SHAPE, images, keys, linear_classify, linear_distances, predicted

from adv_ssl.attacks import BALLS
from adv_ssl.robustness.apgd import _directions, _review, _Search, apgd, inner_radius, windows
from adv_ssl.robustness.losses import cross_entropy, targeted_dlr

PIXELS = int(np.prod(SHAPE))


def checkpoints(steps: int) -> list[int]:
    return [int(end) + 1 for end in np.flatnonzero(windows(steps))]


def test_checkpoints_of_100_steps():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    lengths = windows(100)
    assert list(lengths[lengths > 0]) == [22, 19, 16, 13, 10, 7, 6, 6]


def test_checkpoints_of_few_steps():
    assert checkpoints(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert checkpoints(20) == [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert checkpoints(1) == [1]
    assert checkpoints(0) == []


# ---- the whole path, on -sum(curvature (x - top)^2): ill conditioned, so that steps are halved --

CURVATURE = np.geomspace(1, 300, PIXELS)


def tops(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0.35, 0.65, (count, PIXELS))


def project(norm: str, clean: np.ndarray, point: np.ndarray, radius: float) -> np.ndarray:
    d = point - clean
    if norm == "linf":
        d = np.clip(d, -radius, radius)
    else:
        d = d * min(1, radius / max(np.linalg.norm(d), 1e-30))
    return np.clip(clean + d, 0, 1)


def plain_apgd(norm, clean, start, top, radius, epsilon, steps):
    """Algorithm 1 of the paper for one image in float64: (best loss, best point, halvings)."""

    loss = lambda x: -np.sum(CURVATURE * (x - top) ** 2)  # noqa: E731
    gradient = lambda x: -2 * CURVATURE * (x - top)  # noqa: E731
    points = [start]
    values = [loss(start)]
    best, best_value, size, halvings = start, values[0], 2 * epsilon, 0
    x, previous = start, start
    last_end, last_best, last_halved = 0, values[0], True
    ends = {22, 41, 57, 70, 80, 87, 93, 99}
    for k in range(1, steps + 1):
        g = gradient(x)
        uphill = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
        z = project(norm, clean, x + size * uphill, radius)
        if k > 1:
            z = project(norm, clean, x + 0.75 * (z - x) + 0.25 * (x - previous), radius)
        previous, x = x, z
        values.append(loss(x))
        points.append(x)
        if values[-1] > best_value:
            best, best_value = x, values[-1]
        if k in ends:
            raised = sum(values[i] > values[i - 1] for i in range(last_end + 1, k + 1))
            few = raised <= 0.75 * (k - last_end)
            stuck = not last_halved and best_value == last_best
            last_halved = few or stuck
            if last_halved:
                size, x, halvings = size / 2, best, halvings + 1
            last_end, last_best = k, best_value
    return best_value, best, halvings


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.2), ("l2", 0.8)])
def test_path_is_that_of_a_plain_reading_of_the_paper(norm, epsilon):
    count, steps = 6, 100
    x, top, far = images(count, low=0.3, high=0.7), tops(count), keys(np.arange(count))

    def logits(x):  # class 0 is always ahead; class 1 carries the objective
        d = x.reshape(len(x), -1) - top.astype(np.float32)
        value = -jnp.sum(CURVATURE.astype(np.float32) * d**2, axis=1)
        return jnp.stack([jnp.full(len(x), 1e6), value], axis=1)

    attack = jax.jit(
        lambda x: apgd(norm, steps, lambda z, _: z[:, 1])(logits, x, jnp.zeros(count), epsilon, far)
    )
    x_adv = np.asarray(attack(x)).reshape(count, -1)
    clean = x.reshape(count, -1).astype(np.float64)
    radius = float(inner_radius(norm, epsilon, (PIXELS,)))
    halved = []
    for i, direction in enumerate(np.asarray(_directions(norm, far, (PIXELS,)), np.float64)):
        start = project(norm, clean[i], clean[i] + epsilon * direction, radius)
        value, best, halvings = plain_apgd(norm, clean[i], start, top[i], radius, epsilon, steps)
        np.testing.assert_allclose(x_adv[i], best, atol=2e-4)
        reached = -np.sum(CURVATURE * (x_adv[i] - top[i]) ** 2)
        np.testing.assert_allclose(reached, value, rtol=1e-3)
        halved.append(halvings)
    assert min(halved) >= 3


@pytest.mark.parametrize(
    ("raised", "halved", "gain", "halves"),
    [
        (15, False, 1.0, True),  # 3/4 of the steps are not enough
        (16, False, 1.0, False),
        (16, True, 1.0, False),
        (16, False, 0.0, True),  # the steps climbed, but to nothing new
        (16, True, 0.0, False),  # a step that has just been halved gets its time
        (15, True, 0.0, True),
    ],
)
def test_step_is_halved_and_the_search_set_back_to_its_best(raised, halved, gain, halves):
    state = _Search(
        made=jnp.int32(20), x=jnp.zeros((1, 2)), previous=jnp.full((1, 2), 3.0),
        gradient=jnp.full((1, 2), 4.0), loss=jnp.array([5.0]), best=jnp.ones((1, 2)),
        best_gradient=jnp.full((1, 2), 2.0), best_loss=jnp.array([6.0 + gain]),
        broken=jnp.array([False]), size=jnp.array([0.5]), raised=jnp.array([raised]),
        checked_loss=jnp.array([6.0]), halved=jnp.array([halved]),
    )  # fmt: skip
    after = _review(state, jnp.int32(20))
    expected = state._replace(
        x=state.best if halves else state.x,
        gradient=state.best_gradient if halves else state.gradient,
        size=jnp.array([0.25 if halves else 0.5]),
        raised=jnp.array([0]),
        checked_loss=state.best_loss,
        halved=jnp.array([halves]),
    )
    for name, value in expected._asdict().items():
        np.testing.assert_array_equal(getattr(after, name), value, err_msg=name)


@pytest.mark.parametrize("norm", BALLS)
def test_search_starts_at_random_on_the_sphere(norm):
    directions = np.asarray(_directions(norm, keys(np.arange(400)), (PIXELS,)), np.float64)
    lengths = [np.asarray(BALLS[norm].norm(d)) for d in directions]
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    np.testing.assert_allclose(directions.mean(0), 0, atol=4 * directions.std() / np.sqrt(400))
    assert np.abs(np.corrcoef(directions.T) - np.eye(PIXELS)).max() < 0.25


# ---- a linear model, where the nearest misclassified point is known ----------------------------


def linear_model(classes: int) -> dict[str, np.ndarray]:
    """Two classes that matter, and others that are never likely."""
    slopes = np.zeros((PIXELS, classes), np.float32)
    slopes[:, :2] = np.random.default_rng(2).standard_normal((PIXELS, 2))
    bias = np.full(classes, -20, np.float32)
    bias[:2] = -slopes[:, :2].sum(0) / 2
    return {"slopes": slopes, "bias": bias}


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", BALLS)
def test_exactly_the_images_within_the_radius_are_broken(norm, loss):
    params = linear_model(4)
    x = images(64, low=0.3, high=0.7)
    labels = predicted(params, x, linear_classify)
    distance = linear_distances(norm, params, x, labels).min(1)
    epsilon = np.median(distance)
    objective = cross_entropy if loss == "ce" else targeted_dlr(1 - labels)
    attack = apgd(norm, 100, objective)
    logits = functools.partial(linear_classify, params)
    x_adv = jax.jit(lambda x: attack(logits, x, labels, epsilon, keys(np.arange(64))))(x)
    broken = predicted(params, x_adv, linear_classify) != labels
    clear = np.abs(distance / epsilon - 1) > 0.005
    assert clear.sum() >= 56
    np.testing.assert_array_equal(broken[clear], (distance < epsilon)[clear])


def test_a_sure_model_is_attacked_too():
    """The gradient of the cross-entropy is far below float32's 1e-10, but not zero."""
    params = linear_model(2)
    params = {name: 30 * value for name, value in params.items()}
    x = images(32, low=0.3, high=0.7)
    labels = predicted(params, x, linear_classify)
    distance = linear_distances("l2", params, x, labels).min(1)
    logits = functools.partial(linear_classify, params)
    gaps = np.abs(np.diff(np.asarray(logits(x)), axis=1)[:, 0])
    epsilon = 1.02 * distance[gaps < 80].max()
    attack = apgd("l2", 30, cross_entropy)
    x_adv = jax.jit(lambda x: attack(logits, x, labels, epsilon, keys(np.arange(32))))(x)
    broken = predicted(params, x_adv, linear_classify) != labels
    assert np.all(broken[gaps < 80])
    assert np.sum((gaps > 40) & (gaps < 80)) >= 3
