"""Our training steps and PyTorch's in turns: seconds, ratios, and the share of the peak."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from adv_ssl.estimate import program
from benchmarks import peak, steps, timing
from benchmarks.steps import Case
from benchmarks.timing import Spent

torch_steps: ModuleType | None
try:
    torch_steps = importlib.import_module("benchmarks.torch_steps")
except ImportError:
    torch_steps = None

TOLERANCE = 1e-4  # of a loss, for the two to do the same work


def method(case: Case, rounds: int, with_peak: bool) -> dict[str, Any]:
    """All figures of one method at one scale."""
    if torch_steps and case.dtype == "float32":
        differ = torch_steps.difference(case)
        assert differ < TOLERANCE, f"{case}: PyTorch's losses differ from ours by {differ:.1e}."
    work: dict[Any, Callable[[], Any]] = {
        ("ours", threat): step for threat, step in steps.prepared(case).items()
    }
    if torch_steps:
        work |= torch_steps.prepared(case)
    work = dict(sorted(work.items(), key=lambda item: steps.THREATS.index(item[0][1])))
    if with_peak:
        work |= peak.products(("jax", "torch") if torch_steps else ("jax",))
    return _figures(case, timing.in_turns(work, rounds))


def _figures(case: Case, taken: dict[Any, list[Spent]]) -> dict[str, Any]:
    """The table of a method."""
    seconds = {name: [spent.seconds for spent in each] for name, each in taken.items()}
    cpu = {name: [spent.cpu for spent in each] for name, each in taken.items()}
    flops = {threat: program.flops(steps.run(case, threat)) for threat in steps.THREATS}
    reached = {
        library: max(
            timing.middle([peak.flops(name) / each for each in seconds[library, name]])["median"]
            for name in peak.SHAPES
        )
        for library in ("jax", "torch")
        if (library, "fc1") in taken
    }
    figures: dict[str, Any] = {
        "images_per_second": {
            " ".join(name): timing.middle([case.batch_size / each for each in seconds[name]])
            for name in taken
            if name[1] in steps.THREATS
        },
        "pgd2_over_nominal": _attack_costs(flops, seconds),
        "pgd2_over_nominal_cpu": _attack_costs(flops, cpu),
        "flops_per_second": {
            threat: timing.middle([flops[threat] / each for each in seconds["ours", threat]])
            for threat in steps.THREATS
        },
    }
    if torch_steps:
        for name, values in (("torch_over_ours", seconds), ("torch_over_ours_cpu", cpu)):
            figures[name] = {threat: _against_torch(values, threat) for threat in steps.THREATS}
    if reached:
        figures["peak_flops_per_second"] = reached
        figures["share_of_peak"] = {
            threat: _share_of_peak(seconds, threat, flops[threat]) for threat in steps.THREATS
        }
    return figures


def _attack_costs(flops: dict[str, int], values: dict[Any, list[float]]) -> dict[str, Any]:
    """PGD^2 over nominal: measured, and by FLOPs."""
    return {
        **timing.ratio(values["ours", "l2"], values["ours", "nominal"]),
        "by_flops": timing.rounded(flops["l2"] / flops["nominal"]),
    }


def _against_torch(values: dict[Any, list[float]], threat: str) -> dict[str, Any]:
    """PyTorch's time over ours, by the variant; ``best``: of the faster one."""
    ours = values["ours", threat]
    ratios = {
        how: timing.ratio(values[how, threat], ours)
        for how in ("eager", "compiled")
        if (how, threat) in values
    }
    return ratios | {"best": min(ratios.values(), key=lambda r: r["median"])}


def _share_of_peak(values: dict[Any, list[float]], threat: str, flops: int) -> dict[str, float]:
    """FLOP/s of our step over those of the fastest product of the same round."""
    peaks = [
        max(peak.flops(n) / each[i] for (_, n), each in values.items() if n in peak.SHAPES)
        for i in range(len(values["ours", threat]))
    ]
    reached = [flops / each for each in values["ours", threat]]
    return timing.ratio(reached, peaks)
