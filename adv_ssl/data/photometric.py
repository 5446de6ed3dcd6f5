"""BYOL's photometric augmentation, on device (C-BYOL photometric)."""

import dataclasses
from collections.abc import Callable

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.keys import named
from adv_ssl.ranges import Options, Share

GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue


@dataclasses.dataclass(frozen=True)
class Photometric(Options):
    """How often and how much a view is changed."""

    jitter_prob: Share  # of the next four, together, in random order
    brightness: Share  # largest shift, added
    contrast: Share  # largest change of the factor 1, about each channel's mean
    saturation: Share  # largest change of the factor 1, in HSV
    hue: Share  # largest shift, share of the circle
    grayscale_prob: Share
    blur_prob: Share
    blur_sigma: tuple[float, float]  # least and largest, pixels
    solarize_prob: Share

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise UserError(f"blur_sigma={self.blur_sigma}: two numbers above 0, the least first.")


def augment(images: Array, key: Array, p: Photometric) -> Array:
    """Changes each image by itself: image i depends on ``key`` and i, not on the rest of the batch.

    Args:
      images: float32 [B, H, W, 3] in [0, 1].
      key: one key for the batch.
      p: what to do, constant under ``jit``.

    Returns:
      float32 [B, H, W, 3] in [0, 1].
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
    return jax.vmap(lambda image, key: _augment_one(image, key, p))(images, keys)


def _augment_one(image: Array, key: Array, p: Photometric) -> Array:
    """One image [H, W, 3]; the operations and their order are the reference's."""

    def maybe(name: str, prob: float, change: Callable[[Array, Array], Array], x: Array) -> Array:
        if prob == 0:
            return x
        chosen = jax.random.bernoulli(named(key, f"{name}?"), prob)
        return jnp.where(chosen, change(x, named(key, name)), x)

    image = maybe("jitter", p.jitter_prob, lambda x, k: color_jitter(x, k, p), image)
    image = maybe("grayscale", p.grayscale_prob, lambda x, _: grayscale(x), image)
    image = maybe("blur", p.blur_prob, lambda x, k: random_blur(x, k, p.blur_sigma), image)
    image = maybe("solarize", p.solarize_prob, lambda x, _: pix.solarize(x, 0.5), image)
    return jnp.clip(image, 0, 1)


def color_jitter(image: Array, key: Array, p: Photometric) -> Array:
    """Brightness, contrast, saturation and hue in one of 24 orders, clipped after each.

    The order is data, so at each of the four places the image passes through one affine and one HSV
    map, of which all but the chosen one's parameters are those of the identity. A switch would,
    under ``vmap``, compute all four operations at each place.
    """
    delta = _uniform(key, "brightness", -p.brightness, p.brightness)
    factor = _uniform(key, "contrast", 1 - p.contrast, 1 + p.contrast)
    saturation = _uniform(key, "saturation", 1 - p.saturation, 1 + p.saturation)
    shift = _uniform(key, "hue", -p.hue, p.hue)
    for op in jax.random.permutation(named(key, "order"), 4):
        affine = pix.adjust_contrast(image, jnp.where(op == 1, factor, 1.0))
        affine = pix.adjust_brightness(affine, jnp.where(op == 0, delta, 0.0))
        hsv = adjust_hsv(image, jnp.where(op == 3, shift, 0.0), jnp.where(op == 2, saturation, 1.0))
        image = jnp.clip(jnp.where(op < 2, affine, hsv), 0, 1)
    return image


def adjust_hsv(image: Array, shift: Array, saturation: Array) -> Array:
    """Shifts the hue, scales the saturation of [H, W, 3] in [0, 1], in one round trip to HSV."""
    hue, sat, value = jnp.moveaxis(pix.rgb_to_hsv(image), -1, 0)
    hsv = jnp.stack([(hue + shift) % 1, jnp.clip(sat * saturation, 0, 1), value], -1)
    return pix.hsv_to_rgb(hsv)


def grayscale(image: Array) -> Array:
    """[H, W, 3] to its luma, in all three channels."""
    return jnp.broadcast_to((image * jnp.array(GREY)).sum(-1, keepdims=True), image.shape)


def random_blur(image: Array, key: Array, sigma: tuple[float, float]) -> Array:
    """Gaussian blur of [H, W, 3] with 2 * int(H / 20) + 1 taps (23 at 224) and a random sigma."""
    return gaussian_blur(image, _uniform(key, "sigma", *sigma), int(image.shape[0] / 20))


def gaussian_blur(image: Array, sigma: Array, radius: int) -> Array:
    """Convolves [H, W, 3], with zeros around it, with a Gaussian of ``2 * radius + 1`` taps.

    As two products with banded matrices: under ``vmap`` every image has its own kernel, and a
    convolution with thousands of groups is slow on every device.
    """

    def band(n: int) -> Array:
        distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n))
        return jnp.where(distance <= radius, jnp.exp(-(distance**2) / (2 * sigma**2)), 0) / total

    taps = jnp.arange(-radius, radius + 1)
    total = jnp.exp(-(taps**2) / (2 * sigma**2)).sum()
    # Full precision: a TPU's default would round pixels to 8 bits
    height, width, _ = image.shape
    return jnp.einsum(
        "ih,hwc,jw->ijc", band(height), image, band(width), precision=jax.lax.Precision.HIGHEST
    )


def _uniform(key: Array, name: str, low: float, high: float) -> Array:
    return jax.random.uniform(named(key, name), minval=low, maxval=high)
