"""Host transforms of one image, uint8 [H, W, 3]; chance only from an explicit generator."""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image

from adv_ssl.data.randaugment import RandAugment, randaugment
from adv_ssl.errors import UserError
from adv_ssl.ranges import Options, Part

cv2.setNumThreads(0)  # the loader has the threads: OpenCV's own would only compete with them

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels
LEAST_RATIO, LARGEST_RATIO = 3 / 4, 4 / 3  # width over height of a crop
CROPS = ("torchvision", "byol", "none")


@dataclasses.dataclass(frozen=True)
class Augment(Options):
    """What the host does to a training image."""

    crop: str  # torchvision (C-SUP, C-MAE), byol (C-BYOL crops) or none: the image is stretched (E)
    min_area: Part  # smallest share of the image's area in a crop
    flip: bool  # left to right, half the time
    randaugment: RandAugment | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop not in CROPS:
            raise UserError(f"crop={self.crop!r}: choose from {', '.join(CROPS)}.")
        if self.crop == "none" and self.min_area != 1:
            raise UserError(f"min_area={self.min_area}: crop='none' keeps the whole image: 1.0.")


def augment(image: np.ndarray, rng: np.random.Generator, size: int, options: Augment) -> np.ndarray:
    """The training image, uint8 [size, size, 3]."""
    if options.crop == "none":
        image = resize(image, size, size)
    else:
        image = random_resized_crop(image, rng, size, options.min_area, options.crop)
    if options.flip:
        image = random_flip(image, rng)
    if options.randaugment:
        image = randaugment(image, rng, options.randaugment)
    return image


def random_resized_crop(
    image: np.ndarray, rng: np.random.Generator, size: int, min_area: float, crop: str
) -> np.ndarray:
    """A random part of the image, between ``min_area`` and all of it, resized to a square.

    torchvision's (C-SUP, C-MAE) is antialiased, BYOL's is not (C-BYOL crops).
    """
    box = torchvision_box if crop == "torchvision" else byol_box
    top, left, height, width = box(image.shape[0], image.shape[1], rng, min_area)
    part = image[top : top + height, left : left + width]
    if crop == "torchvision":
        return resize(part, size, size)
    # OpenCV's cubic has coefficient -0.75 where TensorFlow's, of the reference, has -0.5: slightly
    # sharper. Its uint8 result is rounded and clipped to 0..255, as the reference clips to [0, 1].
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_CUBIC)


def _draw_sides(area: float, rng: np.random.Generator, min_area: float) -> tuple[int, int]:
    """Height and width of a crop: share of ``area`` uniform, ratio log-uniform."""
    area *= rng.uniform(min_area, 1)
    ratio = math.exp(rng.uniform(math.log(LEAST_RATIO), math.log(LARGEST_RATIO)))
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


def _place(height: int, width: int, h: int, w: int, rng: np.random.Generator) -> Box:
    """A box of h x w anywhere in height x width."""
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def torchvision_box(height: int, width: int, rng: np.random.Generator, min_area: float) -> Box:
    """Ten tries to fit a crop into the image, then the largest central one allowed (C-SUP)."""
    for _ in range(10):
        h, w = _draw_sides(height * width, rng, min_area)
        if 0 < h <= height and 0 < w <= width:
            return _place(height, width, h, w, rng)
    h = min(height, round(width / LEAST_RATIO))
    w = min(width, round(height * LARGEST_RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


def byol_box(height: int, width: int, rng: np.random.Generator, min_area: float) -> Box:
    """One draw, its sides clipped to the image (C-BYOL crops)."""
    h, w = _draw_sides(height * width, rng, min_area)
    return _place(height, width, min(max(h, 1), height), min(max(w, 1), width), rng)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left to right, half the time."""
    # OpenCV's copy: numpy would walk backwards, pixel by pixel, when the batch is assembled.
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def eval_crop(image: np.ndarray, short_side: int, size: int) -> np.ndarray:
    """Resizes the short side, then takes the central square (F); ``short_side >= size``.

    ``short_side`` 0: the whole image, stretched to a square (E).
    """
    if short_side == 0:
        return resize(image, size, size)
    image = _within(image, 16)
    height, width = image.shape[:2]
    short = min(height, width)
    if short != short_side:
        height, width = short_side * height // short, short_side * width // short
        image = resize(image, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def _within(image: np.ndarray, ratio: int) -> np.ndarray:
    """Its middle, no longer than so many short sides: a line of pixels would fill the memory."""
    height, width = image.shape[:2]
    longest = ratio * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[top : top + longest, left : left + longest]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing, as Pillow and torchvision do it."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
