"""Laws of the photometric augmentation: each operation against numpy, chance by its frequencies."""

import colorsys
import dataclasses
import itertools

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adv_ssl.data import photometric
from adv_ssl.data.photometric import Photometric, augment
from adv_ssl.errors import UserError

NOTHING = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)
VIEW1 = Photometric(0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1.0, (0.1, 2.0), 0.0)
VIEW2 = dataclasses.replace(VIEW1, blur_prob=0.1, solarize_prob=0.2)
KEY = jax.random.key(0)


def images(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, size, size, 3), np.float32)


apply = jax.jit(augment, static_argnums=2)


def changed(x: np.ndarray, y: jax.Array) -> np.ndarray:
    return np.abs(np.asarray(y) - x).max((1, 2, 3)) > 1e-3


def test_nothing_is_the_identity_and_costs_nothing():
    x = images(4)
    np.testing.assert_array_equal(apply(x, KEY, NOTHING), x)
    text = str(jax.make_jaxpr(lambda x: augment(x, KEY, NOTHING))(x))
    assert "dot_general" not in text
    assert "sort" not in text


@pytest.mark.parametrize("p", [VIEW1, VIEW2])
def test_range_shape_and_type(p: Photometric):
    y = apply(images(16, 24), KEY, p)
    assert y.shape == (16, 24, 24, 3)
    assert y.dtype == jnp.float32
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1


def test_each_image_is_changed_by_itself():
    x, p = images(16, 24), VIEW2
    y = apply(x, KEY, p)
    np.testing.assert_array_equal(apply(x, KEY, p), y)
    other = x.copy()
    other[5] = images(1, 24, seed=1)[0]
    differs = np.abs(np.asarray(apply(other, KEY, p) - y)).max((1, 2, 3)) > 0
    assert differs.nonzero()[0].tolist() == [5]
    np.testing.assert_allclose(apply(x[:3], KEY, p), y[:3], atol=1e-6)
    same = np.repeat(x[:1], 16, 0)  # one image, sixteen keys
    assert len(np.unique(np.asarray(apply(same, KEY, p)).sum((1, 2, 3)))) > 10
    assert changed(np.asarray(y), apply(x, jax.random.key(1), p)).mean() > 0.8


@pytest.mark.parametrize(
    ("name", "prob"), [("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.1), ("solarize", 0.2)]
)
def test_frequency_of_each_operation(name: str, prob: float):
    p = dataclasses.replace(NOTHING, **{f"{name}_prob": prob}, brightness=0.4, blur_sigma=(1, 2))
    n = 2000
    x = images(n, 20)
    share = changed(x, apply(x, KEY, p)).mean()
    assert abs(share - prob) < 4 * np.sqrt(prob * (1 - prob) / n)


def test_operations_are_independent():
    p = dataclasses.replace(NOTHING, grayscale_prob=0.5, solarize_prob=0.5)
    x = images(2000)
    y = np.asarray(apply(x, KEY, p))
    grey = np.ptp(y, axis=-1).max((1, 2)) < 1e-6
    solar = y.max((1, 2, 3)) < 0.5001
    assert abs((grey & solar).mean() - 0.25) < 0.04


def test_brightness_is_added_and_uniform():
    p = dataclasses.replace(NOTHING, jitter_prob=1.0, brightness=0.4)
    x = np.full((2000, 2, 2, 3), 0.5, np.float32)
    delta = np.asarray(apply(x, KEY, p))[:, 0, 0, 0] - 0.5
    counts, _ = np.histogram(delta, bins=8, range=(-0.4, 0.4))
    assert counts.sum() == 2000
    assert np.abs(counts - 250).max() < 70  # 4.5 sigma


def test_contrast_is_about_the_mean_of_each_channel():
    p = dataclasses.replace(NOTHING, jitter_prob=1.0, contrast=0.4)
    x = 0.4 + 0.2 * images(500)
    x[..., 0] += 0.1
    y = np.asarray(apply(x, KEY, p))
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(y.mean((1, 2), keepdims=True), mean, atol=1e-5)
    factor = np.median((y - mean) / (x - mean), axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, mean + factor * (x - mean), atol=1e-5)
    assert 0.6 - 1e-3 < factor.min() < 0.65
    assert 1.35 < factor.max() < 1.4 + 1e-3


@pytest.mark.parametrize(("shift", "saturation"), [(0.1, 1.0), (-0.1, 1.0), (0, 0.8), (0.05, 1.2)])
def test_hsv_against_colorsys_and_pix(shift: float, saturation: float):
    x = images(1)[0]
    x[0, 0] = 0.3  # grey, without a hue
    y = photometric.adjust_hsv(jnp.asarray(x), shift, saturation)
    expected = np.empty_like(x)
    for i in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*x[i])
        expected[i] = colorsys.hsv_to_rgb((h + shift) % 1, min(s * saturation, 1), v)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    two = pix.adjust_saturation(pix.adjust_hue(x, shift), saturation)
    np.testing.assert_allclose(y, two, atol=2e-6)


def test_jitter_applies_its_four_operations_in_every_order_alike():
    """Strengths are constants here, and the image tells which of the 24 orders it went through."""
    p = dataclasses.replace(VIEW1, jitter_prob=1.0)
    x = jnp.asarray(images(1, 6)[0])
    n = 2400

    def strengths(key: jax.Array) -> list[jax.Array]:
        bounds = {"brightness": (-0.4, 0.4), "contrast": (0.6, 1.4)}
        bounds |= {"saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
        return [photometric._uniform(key, name, *bound) for name, bound in bounds.items()]

    operations = (
        pix.adjust_brightness,
        pix.adjust_contrast,
        pix.adjust_saturation,
        pix.adjust_hue,
    )

    def distances(key: jax.Array) -> jax.Array:
        """Of the jittered image from what each order gives."""
        y, values, results = photometric.color_jitter(x, key, p), strengths(key), []
        for order in itertools.permutations(range(4)):
            z = x
            for op in order:
                z = jnp.clip(operations[op](z, values[op]), 0, 1)
            results.append(jnp.abs(z - y).max())
        return jnp.stack(results)

    d = np.asarray(jax.jit(jax.vmap(distances))(jax.random.split(KEY, n)))
    assert d.min(-1).max() < 1e-5
    hits = d < 1e-5  # hue and saturation commute, so an image can match several orders
    counts = (hits / hits.sum(-1, keepdims=True)).sum(0)
    assert np.abs(counts - n / 24).max() < 50  # 5 sigma


def test_grayscale_weights():
    x = images(1)[0]
    grey = x @ np.array([0.2989, 0.5870, 0.1140], np.float32)
    y = photometric.grayscale(jnp.asarray(x))
    np.testing.assert_allclose(y, np.repeat(grey[..., None], 3, -1), atol=1e-6)


def test_solarize_inverts_from_one_half_on():
    x = np.array([0, 0.4999, 0.5, 0.75, 1], np.float32).reshape(1, 5, 1, 1).repeat(3, -1)
    y = apply(x, KEY, dataclasses.replace(NOTHING, solarize_prob=1.0))
    np.testing.assert_allclose(np.asarray(y)[0, :, 0, 0], [0, 0.4999, 0.5, 0.25, 0], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (60, 45)])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_pix_blur(height: int, width: int, sigma: float):
    x = np.random.default_rng(0).random((height, width, 3), np.float32)
    y = photometric.gaussian_blur(jnp.asarray(x), sigma, int(height / 20))
    np.testing.assert_allclose(y, pix.gaussian_blur(x, sigma, height / 10), atol=1e-5)


def test_blur_has_23_taps_at_224_and_a_sigma_in_bounds():
    x = np.zeros((4, 224, 224, 3), np.float32)
    x[:, 112, 112] = 1
    p = dataclasses.replace(NOTHING, blur_prob=1.0, blur_sigma=(1.5, 2.0))
    row = np.asarray(apply(x, KEY, p))[:, :, :, 0].sum(1)  # summed over the height: the taps
    assert not row[:, : 112 - 11].any()
    assert not row[:, 112 + 12 :].any()
    assert (row[:, [112 - 11, 112 + 11]] > 0).all()
    np.testing.assert_allclose(row.sum(1), 1, atol=1e-5)
    sigma = np.sqrt((row * (np.arange(224) - 112) ** 2).sum(1))
    assert (sigma >= 1.5 - 1e-3).all()
    assert (sigma <= 2 + 1e-3).all()
    assert np.unique(sigma).size == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [({"blur_prob": 1.2}, "blur_prob=1.2"), ({"hue": -0.1}, "hue=-0.1")]
    + [({"blur_sigma": s}, "blur_sigma") for s in ((0.0, 1.0), (2.0, 1.0))],
)
def test_mistakes_are_named(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(VIEW1, **change)
