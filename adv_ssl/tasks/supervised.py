"""Classification: adversarial or nominal supervision, and what fine-tuning trains."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.keys import named
from adv_ssl.models.vit import ViT, apply, encode
from adv_ssl.task import Aux, Batch, Prepared, PyTree, Task


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Options of the task."""

    label_smoothing: float  # share of the target spread over all classes
    head_std: float  # of the head's initial weights; its bias starts at 0
    views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: must be in [0, 1).")
        if self.head_std < 0:
            raise UserError(f"head_std={self.head_std}: must be 0 or more.")


def smoothed(labels: Array, classes: int, smoothing: float) -> Array:
    """Labels [B] -> targets [B, C]: smoothing/C everywhere, 1 - smoothing more at the label."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def make(options: Supervised, encoder: ViT, classes: int) -> Task:
    """Cross-entropy to soft targets; the attack raises the same loss (A17)."""
    head = nn.Dense(classes, kernel_init=nn.initializers.normal(options.head_std))

    def init(key: Array, batch: Batch) -> PyTree:
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        features, encoder_params = encoder.init_with_output(named(key, "encoder"), image)
        return {
            "encoder": encoder_params["params"],
            "head": head.init(named(key, "head"), features)["params"],
        }

    def prepare(params: PyTree, ema: PyTree, batch: Batch, key: Array) -> Prepared:
        del params, ema, key
        targets = smoothed(batch["label"], classes, options.label_smoothing)
        return Prepared(batch["image"].astype(jnp.float32) / 255, targets)

    def loss(params: PyTree, x: Array, context: Array, key: Array | None) -> tuple[Array, Aux]:
        features = encode(encoder, params["encoder"], x, key)
        logits = apply(head, params["head"], features)
        correct = logits.argmax(-1) == context.argmax(-1)
        aux = {"accuracy": correct.astype(jnp.float32), "logits": logits}
        return optax.softmax_cross_entropy(logits, context), aux

    return Task(init, prepare, loss)
