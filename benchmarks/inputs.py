"""Images per second of the input pipeline, from 288-pixel JPEGs to batches of 224 pixels."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from adv_ssl import recipes
from adv_ssl.config import Stage, parse
from adv_ssl.data import folders, loader, sources, transforms
from benchmarks import photos, timing
from benchmarks.timing import Spent

FILES, SIZE = 128, 224
BATCH = 32  # images


def stages(rounds: int) -> dict[str, Any]:
    """Each stage by itself, in one thread, for a crop and a flip (MAE's augmentation)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = photos.write(pathlib.Path(folder), FILES)
        images = [folders.decode(path) for path in paths]
        augment, rng = _stage("mae").augment, np.random.default_rng(0)
        crops = [transforms.augment(image, rng, SIZE, augment) for image in images]
        work: dict[str, Callable[[], Any]] = {
            "read": lambda: [path.read_bytes() for path in paths],
            "read and decode": lambda: [folders.decode(path) for path in paths],
            "crop and flip": lambda: [transforms.augment(x, rng, SIZE, augment) for x in images],
            "assemble": lambda: [np.stack(crops[i : i + BATCH]) for i in range(0, FILES, BATCH)],
        }
        return {name: _pace(taken) for name, taken in timing.in_turns(work, rounds).items()}


def whole(rounds: int) -> dict[str, Any]:
    """The loader with all its threads, as each method augments."""
    with tempfile.TemporaryDirectory() as folder:
        photos.write(pathlib.Path(folder), FILES)
        work = {method: _loading(folder, _stage(method)) for method in recipes.METHODS}
        return {name: _pace(taken) for name, taken in timing.in_turns(work, rounds).items()}


def _stage(method: str) -> Stage:
    stage = parse(recipes.recipe(method, "nominal", "imagenet").to_dict()).pretrain
    assert stage
    return stage


def _loading(folder: str, stage: Stage) -> Callable[[], Any]:
    """An epoch of files that nobody has opened: a source keeps the images of a small set."""
    return lambda: list(
        loader.train_batches(
            sources.load(f"folder:{folder}", "train", ""), image_size=SIZE,
            views=stage.task.views, augment=stage.augment,
            batch_size=BATCH, seed=0, start=0, stop=FILES // BATCH,
        )
    )  # fmt: skip


def _pace(taken: list[Spent]) -> dict[str, Any]:
    """Images per second, and per second of one core's work, which other work disturbs less."""
    return {
        "images_per_second": timing.middle([FILES / spent.seconds for spent in taken]),
        "per_core": timing.middle([FILES / spent.cpu for spent in taken]),
    }
