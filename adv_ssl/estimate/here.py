"""Times the step that training runs, on this machine's devices."""

import dataclasses
import statistics
import time

import jax
import numpy as np

from adv_ssl import sharding
from adv_ssl import stage as stages
from adv_ssl.estimate import program
from adv_ssl.estimate.program import Run

STEPS = 3  # timed, after one that warms up
CPU_STEP = 2e12  # FLOP: of a step that is not too long to wait for on a CPU


@dataclasses.dataclass(frozen=True)
class Timed:
    """A few steps on noise."""

    batch_size: int  # images at once: maybe fewer than the stage's
    seconds: float  # a step of the stage's batch, from the median
    memory: int  # bytes of a device at its fullest, with ``batch_size``


def timed(run: Run, flops: int) -> Timed:
    """Runs a stage's step, which has so many FLOPs; on a CPU on fewer images, scaled by them."""
    whole, few = run.stage.batch_size, run.stage.batch_size
    if jax.default_backend() == "cpu":
        unit = run.stage.unit(jax.device_count())
        least = unit * run.stage.task.views  # BatchNorm over two views needs two images a part
        few = min(whole, max(least, int(whole * CPU_STEP / flops) // unit * unit))
    run = run._replace(stage=dataclasses.replace(run.stage, batch_size=few))
    mesh = sharding.mesh()
    made = program.make(run, mesh)
    step = made.step.lower(*made.arguments).compile()
    usage = step.memory_analysis()
    memory = usage.argument_size_in_bytes + usage.output_size_in_bytes + usage.temp_size_in_bytes

    key = jax.random.key(0)
    random = stages.random_state(run.stage, program.recipe(run), key)
    state = sharding.place(random, jax.tree.map(lambda s: s.sharding, made.arguments[0]))
    batch = sharding.assembled(_noise(made.arguments[1]))
    key = jax.device_put(key, sharding.replicated(mesh))
    seconds = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    each = statistics.median(seconds[1:])
    return Timed(few, each * whole / few, memory - usage.alias_size_in_bytes)


def _noise(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """A batch of these shapes; all of class 0."""
    image, label = shapes["image"], shapes["label"]
    pixels = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    return {"image": pixels, "label": np.zeros(label.shape, label.dtype)}
