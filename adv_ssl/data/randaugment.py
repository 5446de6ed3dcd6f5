"""RandAugment in the increasing set of operations, on the host (C RandAugment).

An operation takes a magnitude from 0 to 10, and a sign where it has a direction.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from adv_ssl.errors import UserError
from adv_ssl.ranges import Count, NotNegative, Options, Share

MAX_MAGNITUDE = 10.0
FILL = (124, 116, 104)  # what comes in from outside the image: the mean of ImageNet's pixels

Operation = Callable[[Image.Image, float, int], Image.Image]  # (image, magnitude, sign)


@dataclasses.dataclass(frozen=True)
class RandAugment(Options):
    """``rand-m9-mstd0.5-inc1`` is (2, 0.5, 9, 0.5)."""

    ops: Count  # operations drawn for each image, with replacement
    prob: Share  # of doing a drawn operation
    magnitude: NotNegative  # mean
    magnitude_std: NotNegative  # what is drawn is clipped to 0..10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnitude > MAX_MAGNITUDE:
            raise UserError(f"magnitude={self.magnitude}: must be in [0, 10].")


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def _rotate(image: Image.Image, m: float, sign: int) -> Image.Image:
    return image.rotate(sign * 3 * m, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


def _posterize(image: Image.Image, m: float, sign: int) -> Image.Image:
    bits = 4 - int(m / 10 * 4)  # 0 of them, black, is more than ImageOps.posterize would do
    return image.point([i & (256 - 2 ** (8 - bits)) for i in range(256)] * 3)


def _solarize(image: Image.Image, m: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(m / 10 * 256))


def _solarize_add(image: Image.Image, m: float, sign: int) -> Image.Image:
    added = int(m / 10 * 110)
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, m, sign: kind(image).enhance(1 + sign * 0.09 * m)


OPS: dict[str, Operation] = {
    "AutoContrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, m, sign: ImageOps.equalize(image),
    "Invert": lambda image, m, sign: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, m, sign: _affine(image, 1, sign * 0.03 * m, 0, 0, 1, 0),
    "ShearY": lambda image, m, sign: _affine(image, 1, 0, 0, sign * 0.03 * m, 1, 0),
    "TranslateX": lambda image, m, sign: _affine(
        image, 1, 0, sign * (m / 10 * 0.45) * image.width, 0, 1, 0
    ),
    "TranslateY": lambda image, m, sign: _affine(
        image, 1, 0, 0, 0, 1, sign * (m / 10 * 0.45) * image.height
    ),
}
_OPERATIONS = tuple(OPS.values())


def randaugment(image: np.ndarray, rng: np.random.Generator, options: RandAugment) -> np.ndarray:
    """uint8 [H, W, 3] -> the same, by up to ``ops`` operations one after another."""
    drawn = rng.integers(len(OPS), size=options.ops)
    chosen = rng.random(options.ops) < options.prob
    magnitudes = rng.normal(options.magnitude, options.magnitude_std, options.ops)
    signs = rng.choice((-1, 1), options.ops)
    changed = Image.fromarray(image)
    for op, m, sign in zip(
        drawn[chosen], magnitudes.clip(0, MAX_MAGNITUDE)[chosen], signs[chosen], strict=True
    ):
        changed = _OPERATIONS[op](changed, float(m), int(sign))
    return np.asarray(changed)
