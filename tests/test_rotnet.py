"""RotNet: rotate first, then attack."""

import jax
import numpy as np
import pytest
from conftest import CLASSES, make_batch, make_task

from adv_ssl import attacks
from adv_ssl.errors import UserError
from adv_ssl.task import adversarial
from adv_ssl.tasks import rotnet

KEY = jax.random.key(0)
TASK = make_task("rotnet")


def test_rotations_are_those_of_numpy():
    images = np.random.default_rng(0).random((4, 6, 6, 3), np.float32)
    turned = rotnet.rotated(images, np.arange(4))
    for k in range(4):
        np.testing.assert_array_equal(turned[k], np.rot90(images[k], k))


def test_the_target_is_the_rotation_and_all_four_are_as_frequent():
    """One rotation an image (eq. 5), whatever its label."""
    batch = make_batch("rotnet", size=2000)
    x, targets, _ = TASK.prepare(None, None, batch, KEY)
    assert targets.shape == (2000, 4)
    turns = np.asarray(targets).argmax(1)
    np.testing.assert_allclose(targets.max(axis=1), 0.9 + 0.1 / 4, rtol=1e-6)
    for image, rotated, k in zip(batch["image"][:50], x[:50], turns, strict=False):
        np.testing.assert_allclose(rotated, np.rot90(image, k) / np.float32(255), rtol=1e-6)
    counts = np.bincount(turns)
    assert np.abs(counts - 500).max() < 4 * np.sqrt(2000 * 3 / 16)
    label = batch["label"]
    table = [np.bincount(turns[label == c], minlength=4) / (label == c).sum() for c in range(3)]
    np.testing.assert_allclose(table, 0.25, atol=0.08)
    assert CLASSES == 3


def test_the_attack_is_of_the_rotated_image():
    attacked = adversarial(TASK, attacks.pgd("linf", 2 / 255, 2))
    params = jax.jit(TASK.init)(KEY)
    assert params["head"]["kernel"].shape[1] == 4
    batch = make_batch("rotnet", size=8)
    clean, turned = (jax.jit(t.prepare)(params, None, batch, KEY) for t in (TASK, attacked))
    np.testing.assert_array_equal(clean.context, turned.context)
    assert 0 < np.abs(turned.x - clean.x).max() <= 2 / 255 + 1e-6


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"label_smoothing=1\.0"):
        rotnet.RotNet(1.0, 0.02)
    with pytest.raises(UserError, match=r"head_std=-1\.0"):
        rotnet.RotNet(0.1, -1.0)
