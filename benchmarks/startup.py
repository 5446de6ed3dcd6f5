"""Seconds from the command to its first step, by a cold and by a warm compilation cache."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import photos, timing

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 8  # images, of ViT-B/16


def cold_and_warm(recipe: str) -> dict[str, Any]:
    """Two starts of ``configs/<recipe>.py`` in fresh processes, the second with the cache.

    Of each: seconds to the beginning of training (imports, data, initial weights), then to the
    first step's metrics (tracing, compilation or its cache, the step), and what the step itself
    takes, told by the second one. ``to_first_step`` is all, ``without_the_step`` all but the step.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        photos.write(place / "photos", 64)
        return {name: _start(recipe, place, name) for name in ("cold", "warm")}


def _start(recipe: str, folder: pathlib.Path, name: str) -> dict[str, float]:
    command = [
        sys.executable, "-m", "adv_ssl.main", f"--config=configs/{recipe}.py",
        f"--workdir={folder / name}", f"--config.data.name=folder:{folder / 'photos'}",
        "--config.dtype=float32", "--config.log_every=1", "--config.pretrain.steps=100",
        f"--config.pretrain.batch_size={BATCH}", f"--config.finetune.batch_size={BATCH}",
        f"--config.finetune.task.mixing.group={BATCH}", "--config.evaluate.split=train",
    ]  # fmt: skip
    if recipe.startswith("supervised"):
        command.append(f"--config.pretrain.task.mixing.group={BATCH}")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        training, first, second = _moments(process)
    finally:
        process.kill()  # it would save a checkpoint
        process.wait()
    seconds = {
        "to_training": training - began,
        "first_step": first - training,
        "step_alone": second - first,
        "to_first_step": first - began,
        "without_the_step": first - began - (second - first),
    }
    return {key: timing.rounded(value) for key, value in seconds.items()}


def _moments(process: subprocess.Popen[str]) -> list[float]:
    """When training began, and when the metrics of the first two steps were there."""
    moments = []
    assert process.stdout
    for line in process.stdout:
        if "pretrain: steps 0" in line or "pretrain 1/" in line or "pretrain 2/" in line:
            moments.append(time.perf_counter())
        if len(moments) == 3:
            return moments
    raise RuntimeError(f"ended before its second step: {process.args!r}")
