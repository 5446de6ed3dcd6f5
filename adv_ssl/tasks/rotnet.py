"""RotNet: tell by how much an image was rotated (paper B.1, eq. 5)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.keys import named
from adv_ssl.models.vit import ViT
from adv_ssl.ranges import Below1, NotNegative, Options
from adv_ssl.task import Aux, Batch, Prepared, Task, pixels
from adv_ssl.tasks import classifier

ANGLES = ("0°", "90°", "180°", "270°")  # the classes
TURNS = len(ANGLES)


@dataclasses.dataclass(frozen=True)
class RotNet(Options):
    """Options of the task. There is no mixup and no cutmix: a mix of rotations has none (C)."""

    label_smoothing: Below1  # share of the target spread over the four rotations
    head_std: NotNegative  # of the head's initial weights; its bias starts at 0
    views: ClassVar[int] = 1


def make(options: RotNet, encoder: ViT, classes: int) -> Task:
    """One rotation an image: rotate first, then attack (A18)."""
    del classes

    def prepare(batch: Batch, key: Array) -> Prepared:
        images = pixels(batch)
        turns = jax.random.randint(named(key, "turns"), (len(images),), 0, TURNS)
        targets = classifier.smoothed(turns, TURNS, options.label_smoothing)
        return Prepared(rotated(images, turns), targets)

    return classifier.make(encoder, TURNS, options.head_std, prepare)


def rotated(images: Array, turns: Array) -> Array:
    """Square images [B, S, S, C], each turned by its number of quarters, as ``numpy.rot90``."""
    turns = turns[:, None, None, None]
    images = jnp.where(turns >= 2, jnp.rot90(images, 2, axes=(1, 2)), images)
    return jnp.where(turns % 2 == 1, jnp.rot90(images, 1, axes=(1, 2)), images)


def pictures(x: Array, context: Array, aux: Aux) -> dict[str, Array]:
    """The turned image, by how much it was turned and by how much the model says: in quarters."""
    return {
        "input": x,
        "label": context.argmax(axis=-1),
        "prediction": aux["logits"].argmax(axis=-1),
    }
