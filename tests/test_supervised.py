"""Supervised learning on mixed images: what is done to them first, and what is attacked."""

import jax
import numpy as np
from conftest import CLASSES, TINY, make_batch

from adv_ssl import attacks
from adv_ssl.data.mixing import Erasing, Mixing
from adv_ssl.models.vit import MEAN, STD, ViT
from adv_ssl.task import Task, adversarial
from adv_ssl.tasks import supervised

KEY = jax.random.key(0)
MIXING = Mixing(0.8, 1.0, cutmix_prob=0.5, group=4)


def make(erasing: Erasing | None = None) -> Task:
    return supervised.make(supervised.Supervised(0.1, 0.5, erasing, MIXING), ViT(TINY), CLASSES)


def test_the_attack_climbs_the_loss_of_the_mixed_image_to_its_mixed_target():
    """A17: one step from the mixed image, along the gradient of its own soft cross-entropy."""
    task, epsilon = make(), 0.2
    params = jax.jit(task.init)(KEY)
    prepared = jax.jit(task.prepare)(params, None, make_batch("supervised", 16), KEY)
    x, target, _ = prepared
    assert len(np.unique(np.round(target.max(axis=1), 3))) > 4  # really mixed, not labels

    def to_the_target(x: jax.Array) -> jax.Array:
        logits = task.loss(params, x, target, None)[1]["logits"]
        return -(target * jax.nn.log_softmax(logits)).sum()

    up = np.asarray(jax.jit(jax.grad(to_the_target))(x))
    up = up / np.linalg.norm(up.reshape(16, -1), axis=1)[:, None, None, None]
    step = attacks.pgd("l2", epsilon, 1, 5 / 8, "zero")
    attacked = adversarial(task._replace(prepare=lambda *_: prepared), step)
    made = jax.jit(attacked.prepare)(params, None, {}, KEY)
    np.testing.assert_allclose(made.x, np.clip(x + 5 / 8 * epsilon * up, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(made.context, target)


def test_accuracy_is_of_the_class_that_has_most_of_the_target():
    task, batch = make(), make_batch("supervised", 16)
    params = task.init(KEY)
    noise = jax.random.normal(KEY, params["head"]["kernel"].shape)
    params["head"]["kernel"] = noise
    x, target, _ = task.prepare(params, None, batch, KEY)
    _, aux = task.loss(params, x, target, None)
    right = np.asarray(aux["logits"]).argmax(1) == np.asarray(target).argmax(1)
    assert 0 < right.sum() < 16
    np.testing.assert_array_equal(aux["accuracy"], right)


def test_images_are_erased_in_normalised_units_and_mixed_then(monkeypatch):
    """D11: the box of one image is mixed with what stands there in its partner."""
    options = Erasing(0.25, (0.02, 1 / 3), 0.3)
    noise = np.full((16, 8, 8, 3), 7.0)

    keys = []

    def erase(images, key, mean, std, given):
        keys.append(key)
        np.testing.assert_allclose(images, batch["image"] / np.float32(255), rtol=1e-6)
        assert mean is MEAN
        assert std is STD
        assert given is options
        return noise

    def mix(images, targets, key, given):
        keys.append(key)
        assert images is noise
        assert given is MIXING
        np.testing.assert_allclose(targets.max(axis=1), 0.9 + 0.1 / CLASSES, rtol=1e-6)
        return "mixed", "targets"

    monkeypatch.setattr(supervised, "erase", erase)
    monkeypatch.setattr(supervised, "mix", mix)
    batch = make_batch("supervised", 16)
    x, target, _ = make(options).prepare(None, None, batch, KEY)
    assert (x, target) == ("mixed", "targets")
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2
