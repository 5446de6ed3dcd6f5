"""Writes corruptions.npz: a small picture, corrupted by the code that made TFDS's ImageNet-C.

Of TFDS's functions the source is taken, and in it are replaced: the severities, where those of
CIFAR-10-C are wanted; 224 and 512, the sizes of image and of fog, by those of the picture; numpy's
global chance by a generator; ImageMagick by loops. Needs scikit-image, which TFDS calls.

Not here, because TFDS does not do what Hendrycks' code does: motion blur (it is tested by snow),
pixelate; and what a law says better: the noises, frost.
"""

import ast
import inspect
import io
import math
import pathlib
import textwrap

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import corruptions

SEED = 5
TYPES = (
    "defocus_blur",
    "glass_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "jpeg_compression",
)
# Out of hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py
CIFAR = {
    "defocus_blur": "[(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]",
    "glass_blur": "[(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]",
    "zoom_blur": "[np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)]",
    "snow": """[(0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)]""",
    "fog": "[(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]",
    "brightness": "[0.05, 0.1, 0.15, 0.2, 0.3]",
    "contrast": "[0.75, 0.5, 0.4, 0.3, 0.15]",
    "elastic_transform": """[tuple(32 * part for part in parts) for parts in (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03))]""",
    "jpeg_compression": "[80, 65, 58, 50, 40]",
}


class Chance:
    """``numpy.random``, from a generator."""

    def __init__(self):
        self.rng = np.random.default_rng(SEED)

    def normal(self, size: tuple[int, ...], loc: float, scale: float) -> np.ndarray:
        return self.rng.normal(loc, scale, size)

    def uniform(self, low: float, high: float, size: tuple[int, ...] | None = None) -> np.ndarray:
        return self.rng.uniform(low, high, size)

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(low, high, size)


class Numpy:
    """numpy with another ``random``."""

    def __init__(self):
        self.random = Chance()

    def __getattr__(self, name: str):
        return getattr(np, name)


class ImageMagick:
    """``subprocess``, for ``-motion-blur RxS+A`` of a grey image, as MotionBlurImage is written.

    Half a Gaussian, of 2 R + 1 pixels along the angle; outside the image is its nearest pixel.
    """

    @staticmethod
    def check_output(command: list[str]) -> None:
        _, source, _, geometry, target = command
        radius, rest = geometry.split("x")
        sigma, angle = rest.split("+", 1)
        pixels = np.asarray(Image.open(source), np.float64)
        blurred = ImageMagick.blur(pixels, int(radius), float(sigma), math.radians(float(angle)))
        file = io.BytesIO()
        Image.fromarray(np.round(blurred).astype(np.uint8)).save(file, "PNG")
        pathlib.Path(target).write_bytes(file.getvalue())

    @staticmethod
    def blur(pixels: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
        height, width = pixels.shape
        weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
        blurred = np.zeros_like(pixels)
        for y in range(height):
            for x in range(width):
                for i, weight in enumerate(weights):
                    from_y = y + math.ceil(i * math.sin(angle) - 0.5)
                    from_x = x + math.ceil(i * math.cos(angle) - 0.5)
                    nearest = min(max(from_y, 0), height - 1), min(max(from_x, 0), width - 1)
                    blurred[y, x] += weight * pixels[nearest]
        return blurred / sum(weights)


class Replace(ast.NodeTransformer):
    """Other sizes, and other severities: what ``c`` is an element of."""

    def __init__(self, size: int, severities: str | None):
        self.sizes = {224: size, 512: 2 ** math.ceil(math.log2(size))}
        self.severities = severities

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(self.sizes.get(node.value, node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if self.severities and ast.unparse(node.targets[0]) == "c":
            node.value.value = ast.parse(self.severities, mode="eval").body
        return self.generic_visit(node)


def theirs(name: str, size: int, severities: str | None):
    source = textwrap.dedent(inspect.getsource(getattr(corruptions, name)))
    tree = ast.fix_missing_locations(Replace(size, severities).visit(ast.parse(source)))
    space = vars(corruptions) | {"np": Numpy(), "subprocess": ImageMagick}
    if name == "fog":  # it calls numpy itself
        exec(inspect.getsource(corruptions.plasma_fractal), space)
    exec(compile(tree, name, "exec"), space)
    return space[name]


def picture(size: int) -> np.ndarray:
    """Waves of colour with edges, dark and bright ends, and some noise: uint8 [size, size, 3]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size][..., None] / size
    phase = np.array([0.0, 1.3, 2.9])
    waves = np.sin(9 * rows + phase) + np.cos(7 * columns * (1 + phase / 2))
    waves += 2 * (np.hypot(rows - 0.6, columns - 0.4) < 0.25)
    waves += rng.normal(0, 0.1, waves.shape)
    return np.round(20 + 60 * (waves + 2)).clip(0, 255).astype(np.uint8)


def make() -> dict[str, np.ndarray]:
    golden = {}
    for table, size in (("imagenet", 48), ("cifar", 32)):
        image = golden[f"{table}/image"] = picture(size)
        for name in TYPES:
            severities = CIFAR[name] if table == "cifar" else None
            made = [theirs(name, size, severities)(image, severity) for severity in range(1, 6)]
            golden[f"{table}/{name}"] = np.stack(made)
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("corruptions.npz"), **make())
