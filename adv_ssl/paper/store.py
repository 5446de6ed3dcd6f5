"""What was run: every score under a folder, from the plain files of its runs.

A run is a folder with config.json and results.json; an evaluation is one with evaluation.json, that
names the stage it scored, and results.json. Half-written files are passed over, and named.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from adv_ssl.errors import UserError
from adv_ssl.files import read_json
from adv_ssl.recipes import paper

# The metric that a row is scored by, where it is not top-1
METRICS = {"conflict": "shape_top1"}
TRANSFER = "transfer"  # stage and suite of a fine-tuning on another set
# What a file of another form raises
_DAMAGED = (UserError, AttributeError, KeyError, TypeError, ValueError, OverflowError, OSError)
_SETS = {row[0]: name for name, row in paper.TRANSFER_SETS.items()}


class Record(NamedTuple):
    """One score."""

    method: str
    threat: str  # nominal, linf or l2
    epsilon: float  # of pre-training; nominal: 0
    gamma: float  # layer-wise decay of fine-tuning
    seed: int
    stage: str  # pretrain, finetune or transfer
    optimizer: str  # of fine-tuning
    suite: str  # imagenet, transfer, cifar10, robust or main (a run's own scores)
    dataset: str  # the row's name
    metric: str
    attack: str  # "": clean
    radius: float  # of the attack that is scored; clean: 0
    value: float  # 0 to 1
    low: float | None  # 95% interval over images
    high: float | None
    n: int  # images; of a mean: rows
    whole: bool  # of all images of its set
    flags: str  # what is to be known about it, by "; "
    folder: str
    run: str  # whose model it is; of a run's own scores its folder
    commit: str  # of every start


class Store(NamedTuple):
    """All of a folder."""

    records: tuple[Record, ...]
    passed_over: tuple[str, ...]  # files, each with the reason


def collect(root: pathlib.Path) -> Store:
    """Every score under ``root``; nothing of a folder that is not there."""
    records: list[Record] = []
    passed_over: list[str] = []
    for folder in _folders(root):
        try:
            records += _records(folder, root)
        except _DAMAGED as error:
            reason = str(error) if isinstance(error, UserError) else repr(error)
            passed_over.append(f"{folder.relative_to(root)}: {reason}")
    return Store(tuple(records), tuple(passed_over))


def _folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders with scores, in order; not those inside of checkpoints, which are many."""
    seen: set[str] = set()
    for path, inner, files in os.walk(root, followlinks=True):
        here = os.path.realpath(path)
        if here in seen:  # by a link
            inner.clear()
            continue
        seen.add(here)
        inner[:] = sorted(name for name in inner if name not in ("checkpoints", "figures"))
        if "results.json" in files:
            yield pathlib.Path(path)


def _records(folder: pathlib.Path, root: pathlib.Path) -> list[Record]:
    results = read_json(folder / "results.json", list)
    run, scored = folder, None
    if (folder / "evaluation.json").exists():
        weights = pathlib.Path(read_json(folder / "evaluation.json", dict)["weights"])
        run, scored = _run_of(weights, root), weights.name
    origin, transferred = _origin(run, root)
    place: dict[str, Any] = {
        "folder": str(folder.relative_to(root)),
        "run": os.path.relpath(run, root),
        "commit": _commit(read_json(folder / "provenance.json", dict)),
    }
    return [
        Record(**{**origin, **_score(result, scored, transferred), **place})
        for result in results
        if result["value"] is not None
    ]


def _commit(made: Mapping[str, Any]) -> str:
    named = [start.get("commit") or "unknown" for start in made["starts"]]
    return ", ".join(dict.fromkeys(named)) + " and changes" * made["dirty"]


def _score(result: Mapping[str, Any], scored: str | None, transferred: bool) -> dict[str, Any]:
    """The part of a record that results.json states; ``scored`` is the stage of an evaluation."""
    attack = result["attack"] or {}
    low, high = map(float, result["ci95"]) if result["ci95"] else (None, None)
    stage, suite, dataset = scored or result["stage"], result["suite"], result["dataset"]
    if transferred:
        stage = TRANSFER
        if suite == "main":  # the run itself scores it as the suite does
            suite, dataset = TRANSFER, _SETS.get(dataset.split()[0], dataset)
    return {
        "stage": stage,
        "suite": suite,
        "dataset": dataset,
        "metric": result["metric"],
        "attack": attack_name(attack),
        "radius": float(attack.get("epsilon", 0.0)),
        "value": float(result["value"]),
        "low": low,
        "high": high,
        "n": int(result["n"]),
        "whole": bool(result.get("whole", True)),
        "flags": "; ".join(result.get("flags", [])),
    }


def attack_name(attack: Mapping[str, Any]) -> str:
    """Such as apgd-l2; "" is none."""
    return f"{attack.get('name', 'pgd')}-{attack['norm']}" if attack else ""


def _origin(run: pathlib.Path, root: pathlib.Path) -> tuple[dict[str, Any], bool]:
    """How the run's model came to be, and whether it is a transfer.

    Its encoder was pre-trained here, or in the run that its weights are of.
    """
    config = read_json(run / "config.json", dict)
    pretrained = config
    if config["weights"]:
        run = _run_of(pathlib.Path(config["weights"]), root)
        pretrained = read_json(run / "config.json", dict)
    attack = pretrained["pretrain"]["attack"] or {}
    origin = {
        "method": pretrained["pretrain"]["task"]["name"],
        "threat": attack.get("norm", "nominal"),
        "epsilon": float(attack.get("epsilon", 0.0)),
        "gamma": float(config["finetune"]["layer_decay"]),
        "seed": int(config["seed"]),
        "optimizer": config["finetune"]["optimizer"]["name"],
    }
    return origin, config["pretrain"] is None


def _run_of(stage: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The run whose stage is ``stage``: under ``root``, where a store that was moved or copied is
    now, or else there.
    """
    parts = stage.parts[stage.is_absolute() : -1]
    for run in (*(root.joinpath(*parts[i:]) for i in range(len(parts))), stage.parent):
        if (run / "config.json").exists():
            return run
    raise UserError(f"its weights, {stage}, are of no run that is here.")
