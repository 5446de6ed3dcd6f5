"""FLOPs, seconds per step, ratios and images per second: a table, and benchmarks/results.json.

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
import jax.numpy as jnp
import numpy as np

from adv_ssl import recipes, stage, train
from adv_ssl.config import Config, Stage, parse
from adv_ssl.data import loader, sources

REPEATS = 15
OUTPUT = pathlib.Path(__file__).parent / "results.json"


def _parsed(method: str, threat: str, scale: str, attack_steps: int = 2) -> tuple[Config, Stage]:
    raw = recipes.recipe(method, threat, scale)
    if threat != "nominal":
        raw.pretrain.attack.steps = attack_steps
    config = parse(raw.to_dict())
    assert config.pretrain
    return config, config.pretrain


def _batch(config: Config, options: Stage, size: int) -> dict[str, Any]:
    side, views = config.model.image_size, options.task.views
    shape = (size, *([views] if views > 1 else []), side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return {"image": pixels, "label": np.zeros(size, np.int32)}


def flops(method: str, threat: str, attack_steps: int = 2) -> float:
    """FLOPs an image of a pre-training step at ViT-B/16, as XLA counts them before optimizing."""
    config, options = _parsed(method, threat, "imagenet", attack_steps)
    size = options.group * 2
    recipe = stage.make_recipe(options, stage.make_task(config, options, 1000), 1000)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: stage.random_state(options, recipe, key))
    lowered = train.train_step.lower(recipe, state, _batch(config, options, size), key)
    cost = lowered.cost_analysis()
    assert cost is not None
    return float(cost["flops"]) / size


def flop_ratio(method: str) -> dict[str, Any]:
    """PGD^2 over nominal. XLA counts a loop's body once: so a step of PGD is PGD^1 - nominal."""
    nominal, one = flops(method, "nominal"), flops(method, "l2", attack_steps=1)
    return {
        "nominal_gflops_per_image": nominal / 1e9,
        "pgd2_over_nominal": (nominal + 2 * (one - nominal)) / nominal,
    }


def prepared_step(method: str, scale: str, threat: str) -> Callable[[], float]:
    """A function that runs one pre-training step, compiled already, and returns its seconds."""
    config, options = _parsed(method, threat, scale)
    recipe = stage.make_recipe(options, stage.make_task(config, options, 10), 1000)
    key = jax.random.key(0)
    box = [stage.random_state(options, recipe, key)]
    batch = jax.tree.map(jnp.asarray, _batch(config, options, options.batch_size))

    def step() -> float:
        began = time.perf_counter()
        box[0], metrics = train.train_step(recipe, box[0], batch, key)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    step()  # compiles
    return step


def time_ratio(method: str, scale: str) -> dict[str, Any]:
    """Nominal and PGD^2 steps side by side."""
    nominal, attacked = (prepared_step(method, scale, threat) for threat in ("nominal", "l2"))
    pairs = [(nominal(), attacked()) for _ in range(REPEATS)]
    images = _parsed(method, "nominal", scale)[1].batch_size
    quartiles = statistics.quantiles([b / a for a, b in pairs], n=4)
    return {
        "nominal_images_per_second": images / statistics.median(a for a, _ in pairs),
        "pgd2_images_per_second": images / statistics.median(b for _, b in pairs),
        "pgd2_over_nominal": quartiles[1],
        "pgd2_over_nominal_quartiles": [quartiles[0], quartiles[2]],
    }


def loading(method: str, name: str, size: int) -> dict[str, Any]:
    """Images per second from the source to a batch, as the paper augments for ``method``."""
    options = _parsed(method, "nominal", "imagenet")[1]
    batch, count = 64, 40
    batches = loader.train_batches(
        sources.load(name, "train", ""), image_size=size, views=options.task.views,
        augment=options.augment, batch_size=batch, seed=0, start=0, stop=count,
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
    for method in recipes.METHODS:
        results[f"{method} FLOPs, ViT-B/16"] = flop_ratio(method)
        results |= {f"{method} step, {s}": time_ratio(method, s) for s in ("digits", "cifar10")}
    for method in recipes.METHODS:
        results[f"{method} input, digits at 16"] = loading(method, "digits", 16)
        if os.environ.get("TFDS_DATA_DIR"):
            results[f"{method} input, ImageNet at 224"] = loading(method, "imagenet2012:5.*", 224)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n")
    for name, values in results.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            shown = f"{value:,.2f}" if isinstance(value, float) else value
            print(f"{name:<40} {key:<28} {shown}")


if __name__ == "__main__":
    main()
