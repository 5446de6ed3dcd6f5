"""A run small enough for a test: digits, one narrow block, a handful of steps."""

import importlib
import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from adv_ssl import preemption, sharding
from adv_ssl.checkpoint import Checkpoints

CHANGES = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 16,
    "pretrain.steps": 6,
    "pretrain.batch_size": 16,
    "finetune.steps": 6,
    "finetune.batch_size": 16,
    "evaluate.split": "test[:50]",
    "evaluate.batch_size": 32,
    "evaluate.attacks": (("l2", 0.5, 2),),
    "evaluate.attacked": 40,
    "log_every": 2,
    "save_every": 2,
}
_VIEWS = {
    "pretrain.task.hidden": 16,
    "pretrain.task.output": 8,
    "pretrain.task.view1.jitter_prob": 0.0,  # most of the compilation
    "pretrain.task.view2.jitter_prob": 0.0,
}
OF_METHOD = {
    "byol": _VIEWS,
    "simclr": _VIEWS,
    "mae": {"pretrain.task.width": 8, "pretrain.task.depth": 1, "pretrain.task.heads": 2},
    "supervised": {"pretrain.task.mixing.group": 4},
    "rotnet": {},
}


def config(threat: str = "l2", method: str = "byol", **changes: Any) -> ConfigDict:
    """The tiny configuration; changes are dotted paths with __ for the dots."""
    made = importlib.import_module(f"configs.{method}_{threat}").get_config("digits")
    return change(made, CHANGES | OF_METHOD[method], **changes)


def change(made: ConfigDict, fixed: dict[str, Any], **changes: Any) -> ConfigDict:
    """A configuration with other values: ``fixed`` by dotted path, ``changes`` with __ for dots."""
    for path, value in (fixed | {k.replace("__", "."): v for k, v in changes.items()}).items():
        group, _, key = path.rpartition(".")
        made.update_from_flattened_dict({path: value}) if group else made.__setattr__(key, value)
    return made


def flags(method: str = "byol", **changes: Any) -> list[str]:
    """The same as command-line overrides."""
    changes = CHANGES | OF_METHOD[method] | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--config.{path}={value}" for path, value in changes.items()]


def stops(monkeypatch: Any, *steps: int) -> list[None]:
    """Runs are asked to end in these steps, counted over all runs; the list grows with each."""
    assembled, asked = sharding.assembled, []

    def counted(batch: Any) -> Any:  # once a step
        asked.append(None)
        if len(asked) in steps:
            preemption._asked.set()
        return assembled(batch)

    monkeypatch.setattr(sharding, "assembled", counted)
    return asked


def params(stage: pathlib.Path) -> dict[str, Any]:
    """The final parameters in a stage's folder."""
    with Checkpoints(stage / "checkpoints") as checkpoints:
        return checkpoints.params()


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("images_per_second", "input_wait")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def folder_of_images(path: pathlib.Path, count: int = 6, size: int = 20) -> pathlib.Path:
    """Noise as PNG files, unlabelled."""
    from PIL import Image

    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def results(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of results.json."""
    return json.loads((workdir / "results.json").read_text())
