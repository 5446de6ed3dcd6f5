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
BATCH = make_batch("rotnet", size=8)


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
    table = [
        np.bincount(turns[label == c], minlength=4) / (label == c).sum() for c in range(CLASSES)
    ]
    np.testing.assert_allclose(table, 0.25, atol=0.08)


@pytest.fixture(scope="module")
def turned():
    """(parameters, what is prepared of BATCH, what the loss says beside itself)."""

    @jax.jit
    def make():
        params = TASK.init(KEY)
        assert params["head"]["kernel"].shape[1] == 4
        params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
        prepared = TASK.prepare(params, None, BATCH, KEY)
        return params, prepared, TASK.loss(params, prepared.x, prepared.context, None)[1]

    return make()


def test_the_attack_climbs_the_loss_of_the_rotated_image(turned):
    """A18, eq. 5: one step from rot(x, y), along the gradient of cross-entropy to y."""
    params, (x, targets, _), _ = turned

    def total(x):
        logits = TASK.loss(params, x, targets, None)[1]["logits"]
        return -(targets * jax.nn.log_softmax(logits)).sum()

    up = np.asarray(jax.jit(jax.grad(total))(x))
    up = up / np.linalg.norm(up.reshape(8, -1), axis=1)[:, None, None, None]
    attacked = adversarial(TASK, attacks.pgd("l2", 0.2, 1, 5 / 8, "zero"))
    made = jax.jit(attacked.prepare)(params, None, BATCH, KEY)
    np.testing.assert_allclose(made.x, np.clip(x + 5 / 8 * 0.2 * up, 0, 1), atol=1e-5)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"label_smoothing=1\.0"):
        rotnet.RotNet(1.0, 0.02)
    with pytest.raises(UserError, match=r"head_std=-1\.0"):
        rotnet.RotNet(0.1, -1.0)


def test_pictures_say_how_far_an_image_was_turned_and_what_the_model_says(turned):
    _, (x, context, _), aux = turned
    shown = rotnet.pictures(x, context, aux)
    for image, picture, k in zip(BATCH["image"], shown["input"], shown["label"], strict=True):
        np.testing.assert_allclose(picture, np.rot90(image, k) / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(shown["prediction"], np.asarray(aux["logits"]).argmax(1))
    assert rotnet.ANGLES == ("0°", "90°", "180°", "270°")
