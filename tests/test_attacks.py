"""Attacks where their result is known: linear objectives, and the distributions of their start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adv_ssl.attacks import ATTACKS, BALLS, pgd
from adv_ssl.config import AttackConfig

KEY = jax.random.key(0)
ALPHA = 5 / 8
AXES = (1, 2, 3)


def images(count: int = 4, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.3, 0.7, (count, size, size, 3)).astype(np.float32)


def slopes(count: int = 4, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, size, size, 3)).astype(np.float32)


def norms(x: np.ndarray) -> np.ndarray:
    """L2 norm of each example."""
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


@functools.partial(jax.jit, static_argnames=("norm", "steps", "step_size", "start", "name"))
def climb(x, w, key=KEY, *, norm, epsilon, steps, step_size=ALPHA, start="ball", name="pgd"):
    """The attack on the linear objective with slopes ``w``: (x_adv, health)."""
    attack = ATTACKS[name](norm, epsilon, steps, step_size, start)
    return attack(lambda x: (w * x).sum(AXES), x, key)


def direction(norm: str, w: np.ndarray) -> np.ndarray:
    return np.sign(w) if norm == "linf" else w / norms(w)[:, None, None, None]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("norm", BALLS)
def test_linear_objective_is_climbed_straight_from_zero(norm, steps, name):
    x, w, epsilon = images(), slopes(), 0.2
    x_adv, _ = climb(x, w, norm=norm, epsilon=epsilon, steps=steps, start="zero", name=name)
    expected = x + min(1, steps * ALPHA) * epsilon * direction(norm, w)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.4), ("l2", 3.0)])
def test_pixels_end_at_the_edges_of_their_range(norm, epsilon):
    x = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    w = slopes()
    x_adv, _ = climb(x, w, norm=norm, epsilon=epsilon, steps=2, start="zero")
    expected = x
    for _ in range(2):
        delta = expected + ALPHA * epsilon * direction(norm, w) - x
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        else:
            delta = delta * np.minimum(1, epsilon / norms(delta))[:, None, None, None]
        expected = np.clip(x + delta, 0, 1)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)
    assert 0.01 < np.mean((x_adv == 0) | (x_adv == 1)) < 0.9


@pytest.mark.parametrize("count", [1, 64])
def test_an_l2_step_goes_by_the_images_own_gradient_also_where_it_is_tiny(count):
    """A9, A14: g / (|g| + 1e-10), g of the sum: of a mean it would shrink with the batch."""
    x, w = images(count), slopes(count)
    w *= 1e-9 / norms(w)[:, None, None, None]
    x_adv, _ = climb(x, w, norm="l2", epsilon=0.2, steps=1, start="zero")
    expected = x + ALPHA * 0.2 * direction("l2", w) / 1.1
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.4), ("l2", 3.0)])
def test_no_point_outside_is_looked_at(norm, epsilon):
    """A11: the start is projected and clipped as well, before its gradient is taken."""
    x = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    size = np.inf if norm == "linf" else 2

    def objective(point):
        length = jnp.linalg.norm((point - x).reshape(4, -1), ord=size, axis=1)
        inside = jnp.all((point >= 0) & (point <= 1), AXES) & (length <= epsilon * (1 + 1e-5))
        return jnp.where(inside, (slopes() * point).sum(AXES), jnp.nan)

    _, health = jax.jit(lambda x: pgd(norm, epsilon, 2)(objective, x, KEY))(x)
    assert np.all(np.isfinite(health["loss_start"])), "the start"
    assert np.all(np.isfinite(health["gain"])), "the point after the first step"


@pytest.mark.parametrize(
    ("start", "reached"), [("ball", 0.806), ("radius_uniform", 0.918), ("zero", 1.0)]
)
def test_two_l2_steps_reach_this_share_of_the_radius_along_the_gradient(start, reached):
    """What the start costs in high dimension (A7): there it is at right angles to the gradient."""
    # In the plane of start and gradient, for a start of norm r: all on the sphere, or r ~ U(0, 1).
    across = {"ball": np.ones(1), "radius_uniform": np.linspace(0, 1, 1001), "zero": np.zeros(1)}
    point = np.stack([np.zeros_like(across[start]), across[start]])
    for _ in range(2):
        point[0] += ALPHA
        point /= np.maximum(1, np.hypot(*point))
    np.testing.assert_allclose(point[0].mean(), reached, atol=1e-3)

    x, w = images(1000, 16), slopes(1000, 16)
    x_adv, _ = climb(x, w, norm="l2", epsilon=1.0, steps=2, start=start)
    along = ((np.asarray(x_adv) - x) * direction("l2", w)).sum(AXES)
    error = 4 * along.std() / np.sqrt(len(along)) + 2e-3
    np.testing.assert_allclose(along.mean(), reached, atol=error)


def test_two_linf_steps_bring_most_pixels_to_the_edge_of_the_ball():
    x, w, epsilon = images(16, 32), slopes(16, 32), 8 / 255
    x_adv, _ = climb(x, w, norm="linf", epsilon=epsilon, steps=2)
    along = (np.asarray(x_adv) - x) * np.sign(w) / epsilon
    # min(1, u + 1.25), u ~ U(-1, 1): 0.859 on average, and 1 where u > -0.25.
    error = 4 / np.sqrt(along.size)
    np.testing.assert_allclose(along.mean(), 0.859, atol=error)
    np.testing.assert_allclose(np.mean(along > 1 - 1e-4), 0.625, atol=error)


def starts(norm: str, shape: tuple[int, ...], start: str, epsilon: float = 0.25) -> np.ndarray:
    """Where the attack starts, in epsilons, from the middle of the range: no step is made."""
    x = jnp.full(shape, 0.5)
    attack = jax.jit(pgd(norm, epsilon, 1, 0.0, start), static_argnums=0)
    x_adv, _ = attack(lambda x: x.sum(-1), x, KEY)
    return (np.asarray(x_adv) - 0.5) / epsilon


def assert_follows(draws: np.ndarray, law) -> None:
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3


def test_linf_start_is_uniform_in_every_pixel():
    draws = starts("linf", (4000, 3), "ball")
    for pixel in draws.T:
        assert_follows(pixel, stats.uniform(-1, 2))
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=4 / np.sqrt(4000))


@pytest.mark.parametrize(("start", "power"), [("ball", 3), ("radius_uniform", 1)])
def test_l2_start_has_its_radius_and_any_direction(start, power):
    draws = starts("l2", (4000, 3), start)
    radius = norms(draws)
    assert_follows(radius**power, stats.uniform(0, 1))
    # On the sphere in three dimensions each coordinate is uniform (Archimedes).
    points = draws / radius[:, None]
    for coordinate in points.T:
        assert_follows(coordinate, stats.uniform(-1, 2))
    np.testing.assert_allclose(np.corrcoef(points.T), np.eye(3), atol=4 / np.sqrt(4000))
    assert stats.spearmanr(radius, points[:, 0]).pvalue > 1e-3


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", BALLS)
def test_with_a_key_each_an_image_is_attacked_the_same_alone_and_in_a_batch(norm, name):
    x, w, keys = images(), slopes(), jax.random.split(KEY, 4)
    attack = ATTACKS[name](norm, 0.1, 3, ALPHA, "ball")

    def run(x, w, keys):
        return attack(lambda x: jnp.sin(5 * w * x).sum(AXES), x, keys)

    run = jax.jit(run)
    together, health = run(x, w, keys)
    for i in (0, 3):
        alone, alone_health = run(x[i : i + 1], w[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
        for key, value in alone_health.items():
            np.testing.assert_allclose(value[0], health[key][i], rtol=1e-4, err_msg=key)
    swapped, _ = run(x, w, keys[::-1])
    assert np.abs(swapped - together).max() > 1e-3  # the key matters


@pytest.mark.parametrize("norm", BALLS)
def test_each_leaf_has_a_ball_of_its_own(norm):
    x, epsilon = {"a": images(4, 8), "b": images(4, 4)}, 0.2
    w = {"a": slopes(4, 8), "b": 1e-3 * slopes(4, 4)}  # one leaf matters far less than the other
    attack = pgd(norm, epsilon, 2, ALPHA, "zero")

    def objective(x):
        return sum((w[leaf] * x[leaf]).sum(AXES) for leaf in x)

    x_adv, health = jax.jit(lambda x: attack(objective, x, KEY))(x)
    for leaf in x:
        expected = x[leaf] + epsilon * direction(norm, w[leaf])
        np.testing.assert_allclose(x_adv[leaf], expected, atol=1e-6)
    np.testing.assert_allclose(health["radius"], np.ones(4), rtol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_without_a_gradient_the_attack_stays_where_it_started(norm):
    x = images()
    flat = np.zeros_like(x)
    at_zero, health = climb(x, flat, norm=norm, epsilon=0.1, steps=2, start="zero")
    np.testing.assert_array_equal(at_zero, x)
    np.testing.assert_array_equal(health["radius"], np.zeros(4))
    np.testing.assert_array_equal(health["zero_grad"], np.ones(4))
    in_ball, health = climb(x, flat, norm=norm, epsilon=0.1, steps=2)
    assert np.all(np.abs(in_ball - x).max(AXES) > 0)
    assert all(np.all(np.isfinite(value)) for value in health.values())


@pytest.mark.parametrize("norm", BALLS)
def test_health_says_how_far_and_how_high_the_attack_came(norm):
    x, w, epsilon, alpha = images(), slopes(), 0.1, 0.25
    w[:, :4] = 0
    _, health = climb(x, w, norm=norm, epsilon=epsilon, steps=3, step_size=alpha, start="zero")
    step = (w * direction(norm, w)).sum(AXES) * alpha * epsilon
    np.testing.assert_allclose(health["loss_start"], (w * x).sum(AXES), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(health["gain"], step, rtol=1e-3)
    np.testing.assert_allclose(health["radius"], np.full(4, 3 * alpha), rtol=1e-4)
    np.testing.assert_allclose(health["zero_grad"], np.full(4, 0.5))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", BALLS)
def test_no_steps_give_back_the_very_input(norm, name):
    x = {"a": images()}
    x_adv, health = ATTACKS[name](norm, 0.1, 0, ALPHA, "ball")(lambda x: x["a"].sum(AXES), x, KEY)
    assert x_adv is x
    assert health == {}


def test_a_loss_of_the_whole_batch_is_refused_in_words():
    with pytest.raises(ValueError, match=r"needs a loss for each image, not \(\)"):
        pgd("l2", 1.0, 2)(lambda x: x.sum(), jnp.zeros((2, 4, 4, 3)), KEY)


@pytest.mark.parametrize("norm", BALLS)
def test_program_does_not_grow_with_the_steps(norm):
    def size(steps: int) -> int:
        attack = pgd(norm, 0.1, steps)
        run = jax.jit(lambda x: attack(lambda x: jnp.sin(x).sum(AXES), x, KEY))
        return len(run.lower(images()).as_text().splitlines())

    assert size(1) <= size(2) == size(50)


def test_attack_passes_no_gradient_on():
    def total(x):
        x_adv, health = climb(x, slopes(), norm="l2", epsilon=0.1, steps=2)
        return x_adv.sum() + health["gain"].sum()

    assert not np.any(jax.grad(total)(images()))


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_image_has_its_own_start(name, norm):
    """Equal images, and equal views, start from different points of the ball (A4)."""
    same = jnp.full((2, 8, 8, 3), 0.5)
    attack = ATTACKS[name](norm, 0.1, 1, 1e-6, "ball")
    x, _ = attack(lambda x: x["a"].sum(AXES) + x["b"].sum(AXES), {"a": same, "b": same}, KEY)
    starts = np.concatenate([x["a"], x["b"]]).reshape(4, -1)
    assert len(np.unique(starts, axis=0)) == 4


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_a_configuration_has_its_values(name, monkeypatch):
    monkeypatch.setitem(ATTACKS, name, lambda *values: values)
    values = ("l2", 0.5, 3, 0.25, "zero")
    assert AttackConfig(name, *values).make() == values
