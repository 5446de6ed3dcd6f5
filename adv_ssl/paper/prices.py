"""What the training of a cell costs, before it is run.

Scores and transfers are not counted: at the paper's scale they are about a hundredth of the FLOPs.
"""

import functools
from collections.abc import Iterable

from adv_ssl.paper import grid
from adv_ssl.paper.exhibits import rows
from adv_ssl.paper.grid import Cell

# By recipe: what an hour is of, and the FLOP/s that one does. Of a TPU v5e about the least
# that its compiler expects of these steps, MAE's (docs/scale.md); of two cores what was measured.
SPEEDS = {
    "imagenet": ("chip-hours of TPU v5e", 0.4 * 197e12),
    **dict.fromkeys(("cifar10", "cifar10_ti"), ("hours on two cores", 8e10)),
}


def flops(cell: Cell) -> float:
    """FLOPs of the matrix products of a cell's training."""
    name, method, threat, *_ = cell.name.split("/")
    scale = grid.SCALES[name]
    if cell.kind not in ("pretrain", "finetune"):
        return 0.0
    stages = [("finetune", "nominal")]
    if cell.kind == "pretrain":
        stages.append((method, "nominal" if threat == "nominal" else "attacked"))
    total = 0.0
    for stage, how in stages:
        of_step, steps = _training()[scale.recipe, stage, how]
        total += of_step * scale.steps.get(stage, steps)
    return total


def hours(cells: Iterable[Cell], scale: str) -> float:
    """Hours of what ``unit`` says."""
    return sum(map(flops, cells)) / SPEEDS[grid.SCALES[scale].recipe][1] / 3600


def unit(scale: str) -> str:
    """What the hours are of."""
    return SPEEDS[grid.SCALES[scale].recipe][0]


@functools.cache
def _training() -> dict[tuple[str, str, str], tuple[float, int]]:
    """(FLOPs of a step, steps) by recipe, stage and threat, as adv_ssl.estimate counts them."""
    return {
        (row["recipe"], row["stage"], row["threat"]): (
            1e9 * float(row["gflops_per_image"]) * int(row["batch_size"]),
            int(row["steps"]),
        )
        for row in rows("training")
    }
