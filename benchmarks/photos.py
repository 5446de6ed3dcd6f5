"""JPEGs to read, the same on every machine: parts of the two photographs that scikit-learn has."""

import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 288, 384  # pixels
QUALITY = 90


def write(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """So many files, of two classes, in a folder that ``--config.data.name=folder:`` takes."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        share = rng.uniform(0.5, 1)
        width, height = int(photo.width * share), int(photo.width * share * HEIGHT / WIDTH)
        height = min(height, photo.height)
        left = int(rng.integers(photo.width - width + 1))
        top = int(rng.integers(photo.height - height + 1))
        part = photo.resize((WIDTH, HEIGHT), box=(left, top, left + width, top + height))
        path = folder / "train" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=QUALITY)
        paths.append(path)
    return paths
