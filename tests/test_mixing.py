"""Mixup, cutmix and random erasing: by hand, and their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adv_ssl.data import mixing
from adv_ssl.data.mixing import Erasing, Mixing
from adv_ssl.errors import UserError
from adv_ssl.tasks import classifier

KEY = jax.random.key(0)
MIXUP, CUTMIX = (Mixing(0.8, 1.0, cutmix_prob=p, group=4) for p in (0.0, 1.0))
ERASING = Erasing(0.25, (0.02, 1 / 3), 0.3)


def constant_images(count: int, size: int = 32) -> np.ndarray:
    """Image i is i + 1 everywhere."""
    return np.broadcast_to(
        np.arange(1.0, count + 1, dtype=np.float32)[:, None, None, None], (count, size, size, 3)
    )


def mixed(options: Mixing, count: int = 8, key: jax.Array = KEY) -> tuple[np.ndarray, np.ndarray]:
    """Constant images and one-hot targets of a class each."""
    mix = jax.jit(mixing.mix, static_argnums=3)
    return mix(constant_images(count), jnp.eye(count), key, options)


def test_mixup_by_hand():
    images, targets = map(np.asarray, mixed(MIXUP))
    for first in (0, 4):
        own = targets[first, first]  # one weight a group
        for i in range(4):
            me, partner = first + i, first + 3 - i
            np.testing.assert_allclose(targets[me, me], own, rtol=1e-6)
            np.testing.assert_allclose(targets[me, partner], 1 - own, rtol=1e-6)
            expected = own * (me + 1) + (1 - own) * (partner + 1)
            np.testing.assert_allclose(images[me], expected, rtol=1e-5)
    assert targets[0, 0] != targets[4, 4]
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_cutmix_by_hand():
    images, targets = map(np.asarray, mixed(CUTMIX))
    for me in range(8):
        partner = me // 4 * 4 + 3 - me % 4
        pasted = images[me] == partner + 1
        assert np.all(pasted | (images[me] == me + 1))
        box = pasted[..., 0]
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, np.outer(rows, columns))
        assert all(np.abs(np.diff(side.astype(int))).sum() <= 2 for side in (rows, columns))
        # The target's share is the area that was really pasted.
        np.testing.assert_allclose(targets[me, partner], box.mean(), atol=1e-6)
        np.testing.assert_allclose(targets[me, me], 1 - box.mean(), atol=1e-6)


def test_targets_are_mixed_after_smoothing():
    smooth = classifier.smoothed(jnp.array([0, 1, 2, 3]), 10, 0.1)
    np.testing.assert_allclose(smooth[0], [0.91] + [0.01] * 9, rtol=1e-5)
    _, soft = mixing.mix(jnp.zeros((4, 8, 8, 3)), smooth, KEY, MIXUP)
    own = (soft[0, 0] - 0.01) / 0.9
    np.testing.assert_allclose(soft[0], own * smooth[0] + (1 - own) * smooth[3], rtol=1e-5)


def test_weights_have_their_distributions():
    """Beta(0.8, 0.8) for mixup: mean 1/2, variance 1/(4 (2 * 0.8 + 1))."""
    groups = 4000

    def own(options: Mixing) -> np.ndarray:
        images, targets = jnp.zeros((4 * groups, 16, 16, 3)), jnp.tile(jnp.eye(4), (groups, 1))
        soft = jax.jit(mixing.mix, static_argnums=3)(images, targets, KEY, options)[1]
        return np.asarray(soft).reshape(groups, 4, 4)[:, 0, 0]

    weight = own(MIXUP)
    assert weight.mean() == pytest.approx(0.5, abs=0.02)
    assert weight.var() == pytest.approx(1 / (4 * 2.6), rel=0.05)
    # Beta(1, 1) is uniform; what is pasted is less, since the box is clipped to the image.
    kept = own(CUTMIX)
    assert 0.5 < kept.mean() < 0.75
    # Always a half: no box is larger than 10 x 10 of 16 x 16 pixels.
    assert own(Mixing(0.8, 1e4, 1.0, 4)).min() == pytest.approx(1 - 100 / 256)
    half = own(Mixing(0.8, 1.0, 0.5, 4))
    is_cutmix = np.isclose(half * 256 % 1, 0, atol=1e-3)  # whole pixels
    assert 0.45 < is_cutmix.mean() < 0.6


@pytest.mark.parametrize("own", [0.0, 0.36, 0.84, 1.0])
def test_the_box_of_cutmix_has_the_references_sides(own):
    """int(size * sqrt(1 - own)) // 2 on both sides of a uniform centre, clipped."""
    boxes = jax.vmap(lambda key: mixing.cutmix_box(key, own, 20, 30))(jax.random.split(KEY, 3000))
    for size, axis in ((20, 2), (30, 1)):
        side = np.asarray(boxes.any(axis=axis))
        half = int(size * (1 - own) ** 0.5 + 1e-6) // 2
        lengths = [min(c + half, size) - max(c - half, 0) for c in range(size)]
        assert set(side.sum(1)) <= set(lengths) | {0}
        area = np.asarray(boxes).any((1, 2))
        if half:
            np.testing.assert_allclose(side[area].sum(1).mean(), np.mean(lengths), rtol=0.03)


def erased(size: int = 32, count: int = 6000) -> np.ndarray:
    """The erased pixels of grey images [B, S, S]."""
    images = jnp.full((count, size, size, 3), 0.5)
    mean, std = jnp.zeros(3), jnp.ones(3)
    erase = jax.jit(mixing.erase, static_argnums=4)
    return np.asarray(erase(images, KEY, mean, std, ERASING) != 0.5)[..., 0]


def test_a_quarter_of_the_images_have_one_erased_box_of_the_right_size():
    boxes = erased()
    chosen = boxes.any((1, 2))
    assert chosen.mean() == pytest.approx(0.25, abs=4 * (0.1875 / 6000) ** 0.5)
    for box in boxes[chosen][:200]:
        np.testing.assert_array_equal(box, np.outer(box.any(1), box.any(0)))
    area = boxes[chosen].mean((1, 2))
    assert area.min() > 0.015
    assert area.max() < 0.36
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, rel=0.05)
    height, width = boxes[chosen].any(2).sum(1), boxes[chosen].any(1).sum(1)
    log_ratio = np.log(height / width)
    assert abs(log_ratio.mean()) < 0.08
    assert np.abs(log_ratio).max() < np.log(1 / 0.3) + 0.4  # sides are whole pixels
    assert log_ratio.std() == pytest.approx(2 * np.log(1 / 0.3) / 12**0.5, rel=0.1)
    rows = boxes[chosen].any(2).mean(0)
    np.testing.assert_allclose(rows, rows[::-1], atol=0.08)  # nowhere preferred


def test_what_is_erased_is_noise_in_normalised_units():
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    always = Erasing(1.0, (0.3, 0.3), 1.0)
    images = np.asarray(mixing.erase(jnp.full((64, 16, 16, 3), 9.0), KEY, mean, std, always))
    for c in range(3):
        noise = images[..., c][images[..., c] != 9.0]
        assert len(noise) == 64 * 81  # round(sqrt(0.3) * 16) is 9
        assert noise.mean() == pytest.approx(mean[c], abs=5 * std[c] / 72)
        assert noise.std() == pytest.approx(std[c], rel=0.05)
    assert images[images != 9.0].min() < 0


def test_no_box_that_fits_erases_nothing():
    wide = Erasing(1.0, (1.0, 1.0), 1.0)
    images = mixing.erase(jnp.full((4, 8, 8, 3), 0.5), KEY, 0.0, 1.0, wide)
    np.testing.assert_array_equal(images, 0.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mixing(0.0, 1.0, 0.5, 32), "mixup=0.0: must be above 0"),
        (lambda: Mixing(0.8, -1.0, 0.5, 32), "cutmix=-1.0: must be above 0"),
        (lambda: Mixing(0.8, 1.0, 1.5, 32), "cutmix_prob=1.5"),
        (lambda: Mixing(0.8, 1.0, 0.5, 1), "group=1: must be 2 images or more"),
        (lambda: Erasing(2.0, (0.1, 0.2), 0.3), "prob=2.0"),
        (lambda: Erasing(0.5, (0.3, 0.2), 0.3), "area="),
        (lambda: Erasing(0.5, (0.1, 0.2), 0.0), "ratio=0.0"),
    ],
)
def test_impossible_options_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
