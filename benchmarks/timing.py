"""Times of several pieces of work, taken in turns in one run, so that noise hits all alike."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

LEAST = 0.5  # seconds of one measurement: shorter work is repeated


class Spent(NamedTuple):
    """Of one call."""

    seconds: float
    cpu: float  # CPU seconds of all threads: what other work on the machine changes least


def in_turns(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Spent]]:
    """``rounds`` measurements of each, one after another in every round; each is warmed up."""
    for call in work.values():
        call()  # compiles
    calls = dict.fromkeys(work, 1)
    taken: dict[str, list[Spent]] = {name: [] for name in work}
    while any(len(each) < rounds for each in taken.values()):
        for name, call in work.items():
            if calls[name] > 1:
                call()  # after the others': caches and threads are its own again
            spent = _measured(call, calls[name])
            if spent.seconds * calls[name] < LEAST / 2:
                calls[name] = math.ceil(LEAST / spent.seconds)
            else:
                taken[name].append(spent)
    return {name: each[-rounds:] for name, each in taken.items()}


def _measured(call: Callable[[], Any], calls: int) -> Spent:
    """Of each of so many calls."""
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    spent = time.perf_counter() - began, time.process_time() - cpu
    return Spent(*(value / calls for value in spent))


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": rounded(median), "q1": rounded(low), "q3": rounded(high)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios."""
    return middle([a / b for a, b in zip(above, below, strict=True)])


def rounded(value: float) -> float:
    """Four digits are more than a measurement has."""
    return float(f"{value:.4g}")


def circumstances() -> dict[str, Any]:
    """Where and when: what a figure means nothing without."""
    versions = {}
    for package in ("jax", "jaxlib", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "load": [rounded(value) for value in os.getloadavg()],
    }


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
