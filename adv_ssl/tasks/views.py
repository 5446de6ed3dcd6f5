"""What tasks that compare two views of an image share: the views, lengths and angles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.data.photometric import Photometric, augment
from adv_ssl.keys import named
from adv_ssl.task import Batch, pixels


class Views(NamedTuple):
    """An array for each view of a batch: images [B, H, W, 3] or what was made of them."""

    view1: Array
    view2: Array


def two_views(batch: Batch, key: Array, view1: Photometric, view2: Photometric) -> Views:
    """The two crops of each image [B, 2, H, W, 3], each with its colours changed."""
    images = pixels(batch)
    return Views(
        augment(images[:, 0], named(key, "view1"), view1),
        augment(images[:, 1], named(key, "view2"), view2),
    )


def normalise(x: Array) -> Array:
    """[B, D] -> rows of length 1, in float32, safe at 0 (A22)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between the rows: [B, D], [B, D] -> [B]."""
    return (normalise(a) * normalise(b)).sum(-1)


def feature_std(features: Array) -> Array:
    """The collapse meter: 0 where all images have one feature, about 1 where they spread evenly.

    Standard deviation over the batch of the features scaled to length 1, times sqrt(D), averaged
    over the D dimensions.
    """
    return normalise(features).std(axis=0).mean() * features.shape[-1] ** 0.5
