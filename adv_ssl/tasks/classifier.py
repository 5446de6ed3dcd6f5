"""What tasks with classes share: a linear head on the features, cross-entropy to soft targets."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from adv_ssl.keys import named
from adv_ssl.models.vit import ViT, encode, init_encoder
from adv_ssl.task import Aux, Batch, Prepared, PyTree, Task


def smoothed(labels: Array, classes: int, smoothing: float) -> Array:
    """Labels [B] -> targets [B, C]: smoothing/C everywhere, 1 - smoothing more at the label."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def classify(encoder: ViT, params: PyTree, images: Array, key: Array | None) -> Array:
    """Logits [B, C] of images [B, H, W, 3]; ``key`` drives drop path, ``None`` turns it off."""
    head = params["head"]
    return encode(encoder, params["encoder"], images, key) @ head["kernel"] + head["bias"]


def make(
    encoder: ViT, classes: int, head_std: float, prepare: Callable[[Batch, Array], Prepared]
) -> Task:
    """Cross-entropy to the targets [B, C] that ``prepare`` makes of a batch and a key (A17)."""
    # The reference's truncated normal is cut at +-2, not at two deviations: it is a normal (B11).
    head = nn.Dense(classes, kernel_init=nn.initializers.normal(head_std))

    def init(key: Array) -> PyTree:
        features, params = init_encoder(encoder, named(key, "encoder"))
        return {"encoder": params, "head": head.init(named(key, "head"), features)["params"]}

    def loss(params: PyTree, x: Array, context: Array, key: Array | None) -> tuple[Array, Aux]:
        logits = classify(encoder, params, x, key)
        correct = logits.argmax(-1) == context.argmax(-1)
        aux = {"accuracy": correct.astype(jnp.float32), "logits": logits}
        return optax.softmax_cross_entropy(logits, context), aux

    return Task(init, lambda params, ema, batch, key: prepare(batch, key), loss)
