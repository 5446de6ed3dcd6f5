"""Stores of runs that never ran: the files that their cells would leave."""

import json
import pathlib
import re
import sys
from typing import Any
from unittest import mock

from absl import flags
from ml_collections import config_flags

from adv_ssl.paper import exhibits, grid, runner, store
from adv_ssl.paper.grid import Cell

PAPER = exhibits.paper()


def config(cell: Cell, folder: pathlib.Path) -> dict[str, Any]:
    """The configuration that the cell's command line makes, as the program reads it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    line = ["adv_ssl", *cell.arguments(str(folder))[2:]]
    with mock.patch.object(sys, "argv", line):  # where it looks for overrides
        values(line)
    return values.config.to_dict()


def score(dataset: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "suite": "main", "kind": "row", "dataset": dataset, "metric": "top1", "value": value,
        "n": 1000, "ci95": [value - 0.01, value + 0.01], "attack": None, "seed": 0, **more,
    }  # fmt: skip


def plant(cell: Cell, folder: pathlib.Path, value: Any) -> None:
    """The files of a finished cell; ``value`` of a row's name is its score, in percent."""
    run = folder / cell.name
    run.mkdir(parents=True)
    (run / "provenance.json").write_text(
        json.dumps({"dirty": False, "starts": [{"commit": "0123abcd"}]})
    )
    if cell.module == "adv_ssl.main":
        made = config(cell, folder)
        made.pop("sources")
        (run / "config.json").write_text(json.dumps(made))
        names = [(f"{made['data']['name']} test", None)]
        names += [(names[0][0], {"norm": a[0], "epsilon": a[1], "steps": a[2]})
                  for a in made["evaluate"]["attacks"]]  # fmt: skip
        results = [score(n, value(n) / 100, attack=a, stage="finetune") for n, a in names]
    else:
        weights = cell.flags[0].removeprefix("--weights=").replace("{store}", str(folder))
        (run / "evaluation.json").write_text(json.dumps({"weights": weights, "seed": 0}))
        suite = cell.flags[1].removeprefix("--suite=")
        if suite == "robust":
            flags = dict(flag.removeprefix("--").split("=", 1) for flag in cell.flags)
            search = {"name": flags.get("attack", "apgd"), "norm": flags["norm"]}
            results = [
                score("set", value(r) / 100, suite=suite, attack=r and {**search, "epsilon": r})
                for r in (0.0, 0.5, 1.0)
            ]
        else:
            results = [
                score(row, value(row) / 100, suite=suite,
                      metric=store.METRICS.get(row, "top1")) for row in cell.rows
            ]  # fmt: skip
            results.append(score("c", 3.0, suite=suite, metric="mce"))
    (run / "results.json").write_text(json.dumps(results))


def of_the_paper(cell: Cell) -> Any:
    """A score for each row: the paper's own where it prints one, else a little less."""
    _, method, threat, *_ = cell.name.split("/")
    threat, _, text = threat.partition("_")
    epsilon = 0.0 if not text else float(text.split("-")[0]) / (255 if "-" in text else 1)
    gamma = float(re.findall(r"gamma([\d.]+)", cell.name)[0]) if "gamma" in cell.name else 0

    def value(row: Any) -> float:
        if cell.kind == "robust":
            return 80 - 30 * row - 10 * gamma
        if cell.kind == "transfer":
            _, dataset, optimizer = cell.name.rpartition("/")[2].split("_")
            return PAPER.table1[dataset, optimizer, method, threat].value
        if cell.kind == "baseline":
            return PAPER.figure2[row, "supervised", "nominal"].value - 0.5
        best = abs(epsilon - PAPER.chosen[method, threat]) < 1e-9
        if row not in PAPER.variants:
            return 50.0
        found = PAPER.figure2[row, method, threat].value
        if best and (method, threat) in exhibits.FIGURE3:
            return PAPER.figure3[row, method, gamma].value
        return found - (not best) - (gamma - 0.65)

    return value


def some(scale: str, folder: pathlib.Path, pattern: str, value: Any = None) -> None:
    for cell in runner.matching(grid.cells(scale), pattern):
        if not (folder / cell.name).exists():
            plant(cell, folder, value(cell) if value else lambda row: 50.0)
