"""The attack that scores are made with: PGD on the margin, each image by a key of its own (A25)."""

import jax
from jax import Array

from adv_ssl.attacks import pgd
from adv_ssl.robustness.losses import Logits, margin


def margin_pgd(
    logits: Logits,
    x: Array,
    labels: Array,
    keys: Array,
    norm: str,
    epsilon: float | Array,
    steps: int,
    step_size: float,
    start: str = "ball",
) -> Array:
    """``x`` [B, H, W, C] moved to where the margin is largest; ``keys`` [B], the rest as ``pgd``'s.

    An image's result depends on that image and its key alone.
    """
    search = pgd(norm, epsilon, steps, step_size, start)
    x_adv, _ = search(lambda x: margin(logits(x), labels), x, keys)
    return x_adv


def per_image(key: Array, indices: Array) -> Array:
    """A key for each image, [B], by its index in the data set."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
