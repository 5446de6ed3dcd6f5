"""What is done to whole training images on device: random erasing, mixup and cutmix (C, D11)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.keys import named
from adv_ssl.ranges import Options, Part, Positive, Share


@dataclasses.dataclass(frozen=True)
class Mixing(Options):
    """Mixup or cutmix, one draw for each group of images (the reference's batch of one device)."""

    mixup: Positive  # both parameters of the Beta distribution of mixup's weight
    cutmix: Positive  # the same of cutmix's share of the area
    cutmix_prob: Share  # of cutmix instead of mixup
    group: int  # images; the partner of image i is image group - 1 - i of the same group

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise UserError(f"group={self.group}: must be 2 images or more.")


def mix(images: Array, targets: Array, key: Array, options: Mixing) -> tuple[Array, Array]:
    """Images [B, H, W, 3] and targets [B, C], each mixed with its partner; B = groups * group."""
    groups = len(images) // options.group
    height, width = images.shape[1:3]

    def one(images: Array, targets: Array, key: Array) -> tuple[Array, Array]:
        share, own = _shares(key, height, width, options)
        mixed = share * images + (1 - share) * images[::-1]
        return mixed, own * targets + (1 - own) * targets[::-1]

    def split(x: Array) -> Array:
        return x.reshape(groups, options.group, *x.shape[1:])

    keys = jax.random.split(key, groups)
    mixed, soft = jax.vmap(one)(split(images), split(targets), keys)
    return mixed.reshape(images.shape), soft.reshape(targets.shape)


def _shares(key: Array, height: int, width: int, options: Mixing) -> tuple[Array, Array]:
    """The image's own share of each pixel [H, W, 1] or [1, 1, 1], and of its target []."""
    weight = jax.random.beta(named(key, "mixup"), options.mixup, options.mixup)
    area = jax.random.beta(named(key, "cutmix"), options.cutmix, options.cutmix)
    outside = ~cutmix_box(named(key, "box"), area, height, width)
    cut = jax.random.bernoulli(named(key, "which"), options.cutmix_prob)
    share = jnp.where(cut, outside, weight)[..., None]
    return share, jnp.where(cut, outside.mean(), weight)  # cutmix: by what was really cut


def cutmix_box(key: Array, own: Array, height: int, width: int) -> Array:
    """True [H, W] inside a box of sides sqrt(1 - own) anywhere, clipped to the image."""

    def inside(name: str, size: int) -> Array:
        half = jnp.int32(size * jnp.sqrt(1 - own)) // 2
        centre = jax.random.randint(named(key, name), (), 0, size)
        place = jnp.arange(size)
        return (place >= centre - half) & (place < centre + half)

    return inside("row", height)[:, None] & inside("column", width)


@dataclasses.dataclass(frozen=True)
class Erasing(Options):
    """Random erasing of one box an image, with noise of mean 0 and variance 1 *after* mean/std
    normalisation: outside of [0, 1], and so nothing that an attack may start from (A23).
    """

    prob: Share
    area: tuple[float, float]  # least and largest share of the image's area
    ratio: Part  # height over width is log-uniform between this and its inverse

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"area={self.area}: two shares in (0, 1], the least first.")


def erase(images: Array, key: Array, mean: np.ndarray, std: np.ndarray, options: Erasing) -> Array:
    """Images [B, H, W, 3] with, in some, a box of N(mean, std) noise; each has a key of its own."""
    height, width = images.shape[1:3]

    def one(image: Array, key: Array) -> Array:
        noise = mean + std * jax.random.normal(named(key, "noise"), image.shape)
        chosen = jax.random.bernoulli(named(key, "chosen"), options.prob)
        box = chosen & erased_box(named(key, "box"), height, width, options)
        return jnp.where(box[..., None], noise, image)

    return jax.vmap(one)(images, jax.random.split(key, len(images)))


def erased_box(key: Array, height: int, width: int, options: Erasing) -> Array:
    """True [H, W] inside the first of ten boxes that is smaller than the image; or nowhere."""
    tries = (10,)
    low, high = options.area
    area = height * width * jax.random.uniform(named(key, "area"), tries, minval=low, maxval=high)
    log_ratio = jnp.log(options.ratio) * jax.random.uniform(named(key, "ratio"), tries, minval=-1)
    h = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio)))
    w = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio)))
    fits = (h < height) & (w < width)
    first = fits.argmax()

    def inside(name: str, side: Array, size: int) -> Array:
        begin = jnp.floor(jax.random.uniform(named(key, name)) * (size - side + 1))
        place = jnp.arange(size)
        return (place >= begin) & (place < begin + side)

    box = inside("row", h[first], height)[:, None] & inside("column", w[first], width)
    return fits.any() & box
