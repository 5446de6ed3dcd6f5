"""The fifteen corruptions of ImageNet-C and CIFAR-10-C, made on the fly for images of any size.

Operations and severities are those of Hendrycks and Dietterich (2019), as released in
hendrycks/robustness, ImageNet-C/create_c: ``make_imagenet_c.py`` and ``make_cifar_c.py``. OpenCV,
Pillow and numpy do the work. No package of corruptions fits: imagecorruptions and its forks have
ImageNet's severities alone, numpy's global generator and a second OpenCV; TFDS's functions call
ImageMagick and loop over pixels. Where this differs from the release:

- frost: the release blends in crops of photographs of unknown licence. Here the frost is
  **procedural**: needles of ice with the colour and contrast of those photographs. Scores under
  frost are not comparable with those on the published images.
- the result is rounded to whole pixels, as in TFDS; the release cuts the fraction off.
- the published images are JPEGs of quality 85; here no such loss is added.

TFDS's ``imagenet2012_corrupted`` differs from the release too: motion blur always at -45 degrees,
pixelate with bicubic resizing, fog from a wider map (F2). Never compare across sources.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from adv_ssl.errors import UserError

Seed = int | tuple[int, ...] | np.random.Generator
Severities = dict[str, tuple[Any, ...]]

# Of each type the parameters of its function below, for severities 1 to 5. Lengths are in pixels.
IMAGENET: Severities = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4, 24), (0.8, 0.6, 24), (0.7, 0.7, 24), (0.65, 0.7, 24), (0.6, 0.75, 24)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (  # of 244, not 224, in the release
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}
CIFAR: Severities = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}
TYPES = tuple(IMAGENET)  # in the order of F1
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: np.ndarray, name: str, severity: int, seed: Seed) -> np.ndarray:
    """The corrupted image: a pure function of its arguments.

    Args:
      image: uint8 [H, W, 3], of 16 pixels or more. 32x32 images have the severities of CIFAR-10-C,
        all others those of ImageNet-C.
      name: one of ``TYPES``.
      severity: 1 (weak) to 5.
      seed: what ``numpy.random.default_rng`` takes. Give each image its own, such as
        ``(seed, index)``, or all of them get the same noise.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: no such type or severity.
    """
    if name not in TYPES:
        raise UserError(f"corruption={name!r}: choose from {', '.join(TYPES)}.")
    if severity not in SEVERITIES:
        raise UserError(f"severity={severity!r} of {name}: choose a whole number from 1 to 5.")
    table = CIFAR if image.shape[:2] == (32, 32) else IMAGENET
    rng = np.random.default_rng(seed)
    x = image.astype(np.float32) / 255
    return _to_uint8(_FUNCTIONS[name](x, rng, table[name][severity - 1]))


def _to_uint8(x: np.ndarray) -> np.ndarray:
    return np.round(255 * x.clip(0, 1)).astype(np.uint8)


# Each takes x, float32 [H, W, 3] in [0, 1], and returns it corrupted, in any range.

# ---- noise ----------------------------------------------------------------------------------


def _gaussian_noise(x: np.ndarray, rng: np.random.Generator, std: float) -> np.ndarray:
    return x + rng.normal(0, std, x.shape)


def _shot_noise(x: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """``share`` of all values becomes 0 or 1."""
    draw = rng.random(x.shape)
    return np.where(draw < share / 2, 0, np.where(draw >= 1 - share / 2, 1, x))


# ---- blur -----------------------------------------------------------------------------------


def _defocus_blur(x: np.ndarray, rng: np.random.Generator, c: tuple[float, float]) -> np.ndarray:
    radius, alias_blur = c
    reach, size = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    offsets = np.arange(-reach, reach + 1)
    disk = np.float32(np.hypot(offsets, offsets[:, None]) <= radius)
    return cv2.filter2D(x, -1, cv2.GaussianBlur(disk / disk.sum(), (size, size), alias_blur))


def _gaussian_blur(x: np.ndarray, sigma: float, truncate: float, border: int) -> np.ndarray:
    size = 2 * int(truncate * sigma + 0.5) + 1
    return cv2.GaussianBlur(x, (size, size), sigma, borderType=border)


def _glass_blur(x: np.ndarray, rng: np.random.Generator, c: tuple[float, int, int]) -> np.ndarray:
    """Every pixel is replaced by one of its neighbours, between two blurs."""
    sigma, reach, times = c
    x = np.floor(255 * _gaussian_blur(x, sigma, 4, cv2.BORDER_REPLICATE)) / 255  # as the release
    for _ in range(times):
        x = _scatter(x, rng, reach)
    return _gaussian_blur(x, sigma, 4, cv2.BORDER_REPLICATE)


def _scatter(x: np.ndarray, rng: np.random.Generator, reach: int) -> np.ndarray:
    """One pass of glass blur: from the last pixel to the first, each takes a neighbour's colour.

    The release means to swap the two, but its loop only copies: a neighbour that had its turn
    hands on what it got. So each pixel's colour is that at the end of a chain of neighbours, and
    pointer doubling finds all ends at once.
    """
    height, width = x.shape[:2]
    rows = np.arange(height - reach, reach, -1)[:, None]
    columns = np.arange(width - reach, reach, -1)
    here = rows * width + columns
    offsets = rng.integers(-reach, reach, (*here.shape, 2))
    taken = here + offsets[..., 1] * width + offsets[..., 0]
    origin = np.arange(height * width)
    origin[here] = taken
    had_its_turn = np.zeros(height * width, bool)
    had_its_turn[here] = True
    chain = np.where(had_its_turn[origin] & (origin > np.arange(len(origin))), origin, -1)
    following = np.where(chain < 0, np.arange(len(origin)), chain)
    while np.any(following != following[following]):
        following = following[following]
    return x.reshape(-1, 3)[origin[following]].reshape(x.shape)


def _motion_blur(x: np.ndarray, rng: np.random.Generator, c: tuple[int, float]) -> np.ndarray:
    return _moved(x, *c, rng.uniform(-45, 45))


def _moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian along a line; ``angle`` in degrees."""
    length = 2 * radius + 1
    step = np.arange(length)
    weights = np.exp(-(step**2) / (2 * sigma**2))
    middle, angle = length - 1, math.radians(angle)
    rows = middle + np.ceil(step * math.sin(angle) - 0.5).astype(int)
    columns = middle + np.ceil(step * math.cos(angle) - 0.5).astype(int)
    kernel = np.zeros((2 * length - 1, 2 * length - 1), np.float32)
    np.add.at(kernel, (rows, columns), weights / weights.sum())
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _zoom_blur(x: np.ndarray, rng: np.random.Generator, c: tuple[float, float]) -> np.ndarray:
    factors = np.arange(1, *c)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of an image, enlarged to its size: bilinear, corners on corners."""
    axes = []
    for size in x.shape[:2]:
        part = math.ceil(size / factor)
        enlarged = round(part * factor)
        scale = (part - 1) / (enlarged - 1)
        axes.append((scale, (size - part) // 2 + scale * ((enlarged - size) // 2)))
    (scale_y, top), (scale_x, left) = axes
    matrix = np.array([[scale_x, 0, left], [0, scale_y, top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(x, matrix, x.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


# ---- weather --------------------------------------------------------------------------------


def _snow(x: np.ndarray, rng: np.random.Generator, c: tuple[Any, ...]) -> np.ndarray:
    mean, std, zoom, threshold, radius, sigma, kept = c
    flakes = _zoomed(rng.normal(mean, std, x.shape[:2]).astype(np.float32), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _moved(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    pale = np.maximum(x, 1.5 * cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] + 0.5)
    return kept * x + (1 - kept) * pale + flakes + np.rot90(flakes, 2)


# Mean colour and deviation of the five photographs of frost that the release draws from
_FROSTS = (
    ((78, 149, 166), 19),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 29),
    ((112, 123, 135), 43),
)


def _frost(x: np.ndarray, rng: np.random.Generator, c: tuple[float, float, int]) -> np.ndarray:
    """Blends in frost; the length of its needles is ours, the weights are the release's."""
    kept, added, needle = c
    colour, std = _FROSTS[rng.integers(len(_FROSTS))]
    frost = np.array(colour) + std * _needles(x.shape[:2], needle, rng)[..., None]
    return kept * x + added * frost.clip(0, 255) / 255


def _needles(shape: tuple[int, ...], length: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of mean 0 and deviation 1: patches of needles, all of a patch in one direction."""
    directions = 6
    height, width = (size + 2 * length for size in shape)  # the rim of the blurs is cut off

    def smooth(cell: float, channels: int) -> np.ndarray:
        grid = rng.normal(size=(math.ceil(height / cell), math.ceil(width / cell), channels))
        return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)

    patches = smooth(0.8 * length, directions)
    noise = rng.standard_normal((height, width, directions), np.float32)
    noise += 3 * _gaussian_blur(noise, length / 20, 3, cv2.BORDER_REFLECT)
    angles = rng.uniform(0, 360) + 360 * np.arange(directions) / directions
    streaks = [_moved(noise[..., i], length, length / 2, a) for i, a in enumerate(angles)]
    needles = np.take_along_axis(np.stack(streaks, -1), patches.argmax(-1)[..., None], -1)[..., 0]
    texture = needles / needles.std() + patches.max(-1) / patches.std() + smooth(3 * length, 1) / 2
    texture = texture[length:-length, length:-length]
    return (texture - texture.mean()) / texture.std()


def _fog(x: np.ndarray, rng: np.random.Generator, c: tuple[float, float]) -> np.ndarray:
    amount, decay = c
    size = 2 ** math.ceil(math.log2(max(x.shape[:2])))
    heights = _plasma(size, decay, rng)[: x.shape[0], : x.shape[1], None]
    return (x + amount * heights) * x.max() / (x.max() + amount)


def _plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Fractal heights in [0, 1] on a torus, by diamond-square; ``size`` is a power of two."""
    heights = np.zeros((size, size))
    step, wobble = size, 100.0

    def rough(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + wobble * rng.uniform(-wobble, wobble, sums.shape)

    while step >= 2:
        half = step // 2
        corners, centres = heights[::step, ::step], heights[half::step, half::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres[:] = rough(pairs + np.roll(pairs, -1, axis=1))
        beside = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = rough(beside + centres + np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = rough(pairs + centres + np.roll(centres, 1, axis=1))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


# ---- digital --------------------------------------------------------------------------------


def _brightness(x: np.ndarray, rng: np.random.Generator, added: float) -> np.ndarray:
    """Adds to the value of HSV, the largest channel; hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return np.where(value > 0, x * (brighter / np.maximum(value, 1 / 255)), brighter)


def _contrast(x: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    mean = x.mean((0, 1))
    return mean + factor * (x - mean)


def _elastic_transform(
    x: np.ndarray, rng: np.random.Generator, c: tuple[float, float, float]
) -> np.ndarray:
    """A random affine map, then a smooth random displacement of every pixel."""
    amount, sigma, shift = c
    height, width = x.shape[:2]
    arms = min(height, width) // 3 * np.array([(1, 1), (1, -1), (-1, -1)])
    corners = (np.array([width // 2, height // 2]) + arms).astype(np.float32)
    moved = corners + rng.uniform(-shift, shift, corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noise = [rng.uniform(-1, 1, (height, width)) for _ in "xy"]
    dx, dy = (amount * _gaussian_blur(n, sigma, 3, cv2.BORDER_REFLECT) for n in noise)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    where = (columns + dx).astype(np.float32), (rows + dy).astype(np.float32)
    return cv2.remap(x, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _pixelate(x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    height, width = x.shape[:2]
    image = Image.fromarray(_to_uint8(x))
    small = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def _jpeg_compression(x: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(_to_uint8(x)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


_OF_TYPES = (
    _gaussian_noise, _shot_noise, _impulse_noise, _defocus_blur, _glass_blur, _motion_blur,
    _zoom_blur, _snow, _frost, _fog, _brightness, _contrast, _elastic_transform, _pixelate,
    _jpeg_compression,
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[[np.ndarray, np.random.Generator, Any], np.ndarray]] = {
    made.__name__[1:]: made for made in _OF_TYPES
}
