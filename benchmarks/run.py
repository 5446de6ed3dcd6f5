"""Seconds per step, ratios and images per second: a table, and benchmarks/results.json.

Nominal and attacked steps alternate in one run, so that the noise of the machine hits both alike.
"""

import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adv_ssl import recipes, stage, train
from adv_ssl.config import parse
from adv_ssl.data import loader, sources

REPEATS = 15
CROPS = {1: "one antialiased crop", 2: "BYOL's two crops"}
OUTPUT = pathlib.Path(__file__).parent / "results.json"


def prepared_step(scale: str, threat: str) -> Callable[[], float]:
    """A function that runs one pre-training step, compiled already, and returns its seconds."""
    config = parse(recipes.byol(scale, threat).to_dict())
    plan = config.pretrain
    recipe = stage.make_recipe(config, plan, stage.make_task(config, plan, 0), 1000)
    key = jax.random.key(0)
    state = stage.random_state(config, plan, recipe, key)
    size = config.model.image_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (plan.batch_size, 2, size, size, 3), np.uint8
    )
    batch = {"image": pixels, "label": np.zeros(plan.batch_size, np.int32)}
    box = [state]

    def step() -> float:
        began = time.perf_counter()
        box[0], metrics = train.train_step(recipe, box[0], batch, key)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    step()  # compiles
    return step


def steps(scale: str) -> dict[str, Any]:
    """Nominal and PGD^2 BYOL steps side by side."""
    nominal, attacked = (prepared_step(scale, threat) for threat in ("nominal", "l2"))
    pairs = [(nominal(), attacked()) for _ in range(REPEATS)]
    batch = parse(recipes.byol(scale, "l2").to_dict()).pretrain.batch_size
    quartiles = statistics.quantiles([b / a for a, b in pairs], n=4)
    return {
        "nominal_images_per_second": batch / statistics.median(a for a, _ in pairs),
        "pgd2_images_per_second": batch / statistics.median(b for _, b in pairs),
        "pgd2_over_nominal": quartiles[1],
        "pgd2_over_nominal_quartiles": [quartiles[0], quartiles[2]],
    }


def loading(name: str, split: str, size: int, views: int) -> dict[str, Any]:
    """Images per second from the source to a batch."""
    source = sources.load(name, split, "")
    batch, count = 64, 40
    batches = loader.train_batches(
        source, image_size=size, views=views, min_area=0.08, antialias=views == 1, flip=True,
        batch_size=batch, seed=0, start=0, stop=count,
    )  # fmt: skip
    next(batches)
    began = time.perf_counter()
    for _ in batches:
        pass
    return {"images_per_second": batch * (count - 1) / (time.perf_counter() - began)}


def main() -> None:
    """Runs all and writes the table."""
    results: dict[str, Any] = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }
    results |= {f"byol step, {scale}": steps(scale) for scale in ("digits", "cifar10")}
    for views in (1, 2):
        results[f"digits, {CROPS[views]} at 16"] = loading("digits", "train", 16, views)
    if os.environ.get("TFDS_DATA_DIR"):
        results[f"imagenet, {CROPS[1]} at 224"] = loading("imagenet2012:5.*", "train", 224, 1)
        results[f"imagenet, {CROPS[2]} at 224"] = loading("imagenet2012:5.*", "train", 224, 2)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n")
    for name, values in results.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            shown = f"{value:,.2f}" if isinstance(value, float) else value
            print(f"{name:<40} {key:<28} {shown}")


if __name__ == "__main__":
    main()
