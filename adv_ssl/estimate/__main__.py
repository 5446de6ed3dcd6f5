"""What a run will take, before it is begun.

python -m adv_ssl.estimate --config=configs/byol_l2.py[:SCALE] [--topology=v5e:8x8] [--largest]
    [--stage=pretrain|finetune] [--price=1.2] [--config.KEY=VALUE ...]
python -m adv_ssl.estimate --all [--topology=v5e:8x8]

FLOPs, memory, time, chip-hours. Without a topology the real step is timed on this machine, on
noise; with one it is compiled for that slice of a TPU pod, by libtpu, which needs no TPU:
pip install -e '.[estimate]'. --all is a table of the twelve recipes, with a topology in two
hours of a core.
Exit codes: 0 done; 2 a mistake, told in one line.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from absl import flags

from adv_ssl import command, config_flag, recipes
from adv_ssl.command import leave
from adv_ssl.config import parse
from adv_ssl.errors import UserError
from adv_ssl.estimate import costs, program
from adv_ssl.estimate.chips import Topology, topology
from adv_ssl.estimate.costs import Estimate, OnPod

_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice of a TPU pod, as v5e:8x8.")
_STAGE = flags.DEFINE_enum("stage", None, program.STAGES, "One stage alone; default: both.")
_ALL = flags.DEFINE_bool("all", False, "A table of the twelve recipes at the paper's scale.")
_LARGEST = flags.DEFINE_bool("largest", False, "Also search the largest batch a chip has room for.")
_PRICE = flags.DEFINE_float("price", None, "Price of one chip-hour.", lower_bound=0)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    rest = config_flag.parse_flags(argv)
    if (config_flag.value() is None) != _ALL.value:
        leave("say either --config=FILE[:SCALE] or --all.")
    if _ALL.value and (_STAGE.value or _LARGEST.value or _PRICE.value is not None):
        leave("--all takes --topology alone.")
    if not _TOPOLOGY.value and (_LARGEST.value or _PRICE.value is not None):
        leave("--largest and --price need --topology=CHIP:AxB: they are of the chips of a pod.")
    return rest


def _work(_: Sequence[str]) -> None:
    where = topology(_TOPOLOGY.value) if _TOPOLOGY.value else None
    if where:  # libtpu is here to compile: this process must not look for a TPU
        jax.config.update("jax_platforms", "cpu")
    if _ALL.value:
        for line in _table(where):
            print(line, flush=True)
        return
    raw = config_flag.value().to_dict()
    runs = program.runs(parse(raw))
    if _STAGE.value and _STAGE.value not in runs:
        raise UserError(f"--stage={_STAGE.value}: this run trains only {', '.join(runs)}.")
    print("An estimate: nothing of it was measured on a pod." if where else "An estimate.")
    stages = []
    for name in [_STAGE.value] if _STAGE.value else runs:
        made = costs.on_pod(raw, name, where) if where else costs.timed(runs[name], name)
        stages.append(made)
        for line in _lines(name, made, _PRICE.value):
            print(line, flush=True)
        if where and _LARGEST.value:
            room = costs.largest(raw, name, where)
            print(f"  largest   {room} images a chip, by doubling")
    if len(stages) > 1:
        for line in _total(stages, _PRICE.value):
            print(line, flush=True)


def _table(where: Topology | None) -> Iterable[str]:
    """Markdown: the twelve recipes' pre-training, and the fine-tuning that all of them share."""
    head = ["recipe", "GFLOP an image", "steps", "EFLOP"]
    if where:
        head += ["GiB a chip", "s a step", "of peak", "chip-hours"]
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for method, threat in itertools.product(recipes.METHODS, recipes.THREATS):
        config = recipes.recipe(method, threat, "imagenet")
        yield _row(f"{method}_{threat}", config, "pretrain", where)
    yield _row("fine-tuning", config, "finetune", where)


def _row(name: str, config: Any, stage: str, where: Topology | None) -> str:
    raw = config.to_dict()
    if where:
        made = costs.on_pod(raw, stage, where)
    else:
        made = costs.counted(program.runs(parse(raw))[stage])
    images = made.run.stage.batch_size
    cells = [
        name,
        f"{made.flops / images / 1e9:.1f}",
        f"{made.run.steps:,}",
        f"{made.flops * made.run.steps / 1e18:.1f}",
    ]
    if made.pod:
        cells.append(f"{made.pod.compiled.memory / 2**30:.1f}")
        if made.chip_hours is None:
            cells += ["does not fit", "", ""]
        else:
            cells += [f"{made.seconds:.3f}", f"{made.pod.share:.0%}", f"{made.chip_hours:,.0f}"]
    return f"| {' | '.join(cells)} |"


def _lines(name: str, made: Estimate, price: float | None) -> Iterable[str]:
    """A stage in full."""
    images, steps = made.run.stage.batch_size, made.run.steps
    yield f"{name}: {steps:,} steps of {images:,} images"
    yield (
        f"  FLOPs     {made.flops / images / 1e9:.3g} GFLOP an image, "
        f"{made.flops * steps:.3g} FLOP in all (matrix products)"
    )
    if made.pod:
        yield from _pod_lines(made.pod)
    if made.here:
        few = f"{made.here.batch_size} images"
        yield f"  memory    {made.here.memory / 2**30:.2f} GiB a device, of a step of {few}"
        yield f"  timed     a few steps of {few} of noise, on this machine"
    if made.seconds is not None and made.hours is not None:
        whole = _duration(made.hours)
        yield f"  time      {made.seconds:.3g} s a step, {whole} in all, and what compiling takes"
    if made.chip_hours is not None:
        yield f"  cost      {_cost(made.chip_hours, price)}"


def _total(stages: Sequence[Estimate], price: float | None) -> Iterable[str]:
    """Of a run's stages, where all of them are known."""
    hours = [made.hours for made in stages if made.hours is not None]
    chips = [made.chip_hours for made in stages if made.chip_hours is not None]
    if len(hours) == len(stages):
        yield "both stages"
        yield f"  time      {_duration(sum(hours))}"
    if len(chips) == len(stages):
        yield f"  cost      {_cost(sum(chips), price)}"


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 2 else f"{60 * hours:,.1f} minutes"


def _cost(chip_hours: float, price: float | None) -> str:
    money = "" if price is None else f", {chip_hours * price:,.0f} at {price:g} each"
    return f"{chip_hours:,.0f} chip-hours{money}"


def _pod_lines(pod: OnPod) -> Iterable[str]:
    chip, made = pod.topology.chip, pod.compiled
    fits = "fits" if made.fits else "DOES NOT FIT"
    yield f"  memory    {made.memory / 2**30:.1f} of {chip.memory / 2**30:.1f} GiB a chip: {fits}"
    if not made.fits:
        return
    yield (
        f"  compute   {pod.compute * 1e3:.0f} ms by the compiler's cycles: {pod.share:.0%} of "
        f"{chip.flops / 1e12:.0f} TFLOP/s"
    )
    yield f"            at best {pod.by_flops * 1e3:.0f} ms by the FLOPs and that peak,"
    yield f"            {pod.by_bytes * 1e3:.0f} ms by memory and {chip.bandwidth / 1e9:.0f} GB/s"
    if made.unknown:
        yield f"            without {made.unknown} custom kernels, whose cycles it does not know"
    yield f"  exchange  {pod.exchange * 1e3:.1f} ms more, if not at the same time"
    for row in made.traffic:
        size = f"{row.bytes / 1e6:,.1f} MB"
        yield f"            {row.kind}, {row.dtype}: {size} in {row.arrays} arrays"


if __name__ == "__main__":
    command.start(_work, _parse_flags)
