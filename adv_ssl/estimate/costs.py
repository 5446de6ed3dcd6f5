"""From FLOPs, cycles and bytes to seconds, hours and chip-hours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from adv_ssl import stage as stages
from adv_ssl.config import parse
from adv_ssl.estimate import here, pod, program
from adv_ssl.estimate.chips import Topology
from adv_ssl.estimate.here import Timed
from adv_ssl.estimate.hlo import Traffic
from adv_ssl.estimate.pod import Compiled
from adv_ssl.estimate.program import Run


class OnPod(NamedTuple):
    """A stage as the compiler sees it on a pod."""

    topology: Topology
    compiled: Compiled
    flops: int  # of a step, over all chips

    @property
    def compute(self) -> float:
        """Seconds of a step without waiting for other chips: the compiler's cycles."""
        return self.compiled.cycles / self.topology.chip.hertz

    @property
    def exchange(self) -> float:
        """Seconds of a step for what the chips exchange, with all links busy."""
        return sum(_sent(row, self.topology.chips) for row in self.compiled.traffic) / (
            self.topology.chip.links / 2
        )

    @property
    def seconds(self) -> float:
        """Of a step, if nothing is exchanged while something is computed."""
        return self.compute + self.exchange

    @property
    def by_flops(self) -> float:
        """Seconds of a step at the peak of the matrix units: the roofline's one side."""
        return self.flops / self.topology.chips / self.topology.chip.flops

    @property
    def share(self) -> float:
        """Of the peak of the matrix units that the step uses, while nothing is exchanged."""
        return self.by_flops / self.compute

    @property
    def by_bytes(self) -> float:
        """Seconds of a step at the memory's bandwidth: the roofline's other side."""
        return self.compiled.moved / self.topology.chip.bandwidth


class Estimate(NamedTuple):
    """What a stage takes."""

    run: Run
    flops: int  # of a step
    pod: OnPod | None = None
    here: Timed | None = None

    @property
    def seconds(self) -> float | None:
        """Of a step, where that is known."""
        if self.pod:
            return self.pod.seconds if self.pod.compiled.fits else None
        return self.here.seconds if self.here else None

    @property
    def hours(self) -> float | None:
        """Of the whole stage."""
        return None if self.seconds is None else self.seconds * self.run.steps / 3600

    @property
    def chip_hours(self) -> float | None:
        """Of the whole stage on a pod."""
        return self.hours * self.pod.topology.chips if self.pod and self.hours is not None else None


def counted(run: Run) -> Estimate:
    """FLOPs alone."""
    return Estimate(run, program.flops(run))


def timed(run: Run, stage: str) -> Estimate:
    """By some steps on this machine. UserError: not with this batch."""
    _check(run, stage, jax.device_count(), "devices of this machine")
    flops = program.flops(run)
    return Estimate(run, flops, here=here.timed(run, flops))


def on_pod(raw: dict[str, Any], stage: str, topology: Topology) -> Estimate:
    """By compiling a stage of a plain configuration for a pod.

    Raises:
      UserError: not with this batch, or there is no compiler.
    """
    run = program.runs(parse(raw))[stage]
    _check(run, stage, topology.chips, f"chips of --topology={topology.name}")
    compiled, flops = pod.compiled(raw, stage, topology), program.flops(run)
    return Estimate(run, flops, pod=OnPod(topology, compiled, flops))


def _check(run: Run, stage: str, devices: int, what: str) -> None:
    of = f"{run.config.data.name} {run.stage.split}"
    stages.check_size(stage, run.stage, run.images, of, devices, what)


def largest(raw: dict[str, Any], stage: str, topology: Topology) -> int:
    """The most images that a chip has room for, searched by doubling; 0: not even the fewest."""
    options = program.runs(parse(raw))[stage].stage
    fewest = options.unit(topology.chips) // topology.chips

    def fits(images: int) -> bool:
        tree = raw | {stage: raw[stage] | {"batch_size": images * topology.chips}}
        return pod.compiled(tree, stage, topology).fits

    return doubled(fits, fewest, options.batch_size // topology.chips)


def doubled(fits: Callable[[int], bool], fewest: int, guess: int) -> int:
    """The largest ``fewest`` * 2^k that fits, sought from ``guess`` on; 0: none does."""
    n = fewest
    while n < guess:
        n *= 2
    if fits(n):
        while fits(2 * n):
            n *= 2
        return n
    while n > fewest:
        n //= 2
        if fits(n):
            return n
    return 0


def _sent(row: Traffic, chips: int) -> float:
    """Bytes that a chip sends, and receives as many, for collectives of these results in a ring."""
    share = (chips - 1) / chips
    return (
        row.bytes
        * {
            "all-reduce": 2 * share,
            "all-gather": share,
            "all-to-all": share,
            "reduce-scatter": chips - 1,
            "collective-permute": 1,
        }[row.kind]
    )
