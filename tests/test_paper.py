"""The paper in a box: grid, runner, store, exhibits, claims, page."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
import pytest
from absl import flags
from conftest import ROOT
from ml_collections import config_flags

from adv_ssl.config import parse
from adv_ssl.errors import UserError
from adv_ssl.evaluation.suites import SUITES
from adv_ssl.files import held
from adv_ssl.paper import claims, grid, page, runner, store, tables
from adv_ssl.paper.grid import Cell, Model
from adv_ssl.paper.layouts import layouts
from adv_ssl.recipes import METHODS, THREATS, small

PAPER = tables.paper()


def config(cell: Cell, folder: pathlib.Path) -> dict[str, Any]:
    """The configuration that the cell's command line makes, as the program reads it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    line = ["adv_ssl", *cell.arguments(str(folder))[2:]]
    with mock.patch.object(sys, "argv", line):  # where it looks for overrides
        values(line)
    return values.config.to_dict()


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# ---- the grid -------------------------------------------------------------------------------


def kinds(scale: str) -> Counter[str]:
    return Counter(cell.kind for cell in grid.cells(scale))


def test_the_papers_grid() -> None:
    """4 methods x (1 + 5 + 6) pre-trainings, each with 4 decays; 12 encoders x 5 sets x 2."""
    assert kinds("imagenet") == {
        "pretrain": 48, "finetune": 192 - 48, "scores": 192, "baseline": 1, "robust": 4,
        "transfer": 120,
    }  # fmt: skip


def test_the_small_grids() -> None:
    assert kinds("cifar10")["pretrain"] == 48 * 3
    tiny = kinds("tiny")
    assert (tiny["pretrain"], tiny["finetune"], tiny["scores"]) == (36, 36 * 4, 36 * 5)
    wide = grid.SCALES["cifar10"].radii
    for key, radii in grid.SCALES["tiny"].radii.items():
        assert len(radii) == 1
        assert set(radii) <= set(wide[key])
    for key, radius in small.RADII["cifar10"].items():
        assert radius.value in wide[key]  # the configuration's own is one of the sweep


@pytest.mark.parametrize("scale", grid.SCALES)
def test_every_cell_has_a_folder_of_its_own_and_stands_behind_what_it_needs(scale: str) -> None:
    names: set[str] = set()
    for cell in grid.cells(scale):
        assert cell.name.startswith(f"{scale}/")
        assert cell.name not in names
        assert cell.needs in names | {""}
        names.add(cell.name)


@pytest.mark.parametrize("scale", grid.SCALES)
def test_every_command_is_a_valid_configuration_of_its_cell(
    scale: str, tmp_path: pathlib.Path
) -> None:
    by_name = {}
    for cell in grid.cells(scale):
        if cell.module != "adv_ssl.main" or "seed1" in cell.name or "seed2" in cell.name:
            continue
        made = by_name[cell.name] = parse(config(cell, tmp_path))
        words = cell.name.split("/")
        if cell.kind == "transfer":
            assert made.pretrain is None
        else:
            _, method, threat, _, gamma = words
            attack = made.pretrain.attack
            own = grid.folder(attack.norm, attack.epsilon) if attack else "nominal"
            assert (own, f"gamma{made.finetune.layer_decay:g}") == (threat, gamma)
            assert type(made.pretrain.task).__name__.lower() == method
        encoder = by_name[cell.needs] if cell.needs else made
        assert made.model == encoder.model
        weights = f"{tmp_path}/{cell.needs}/pretrain" if cell.needs else ""
        assert made.weights == weights
        if scale == "tiny":
            assert made.pretrain.steps


def test_seeds_are_those_of_the_folders(tmp_path: pathlib.Path) -> None:
    for cell in grid.cells("tiny")[:: 7]:
        if cell.module == "adv_ssl.main":
            assert f"/seed{config(cell, tmp_path)['seed']}/" in cell.name


def test_evaluations_are_known_to_the_evaluator() -> None:
    known = {
        re.match(r"--(\w+)", flag)[1] for scale in grid.SCALES for cell in grid.cells(scale)
        if cell.module == "adv_ssl.evaluate" for flag in cell.flags
    }  # fmt: skip
    assert known == {"weights", "suite", "norm", "attack", "radii", "images"}
    for scale in grid.SCALES.values():
        rows = {row.name for row in SUITES[scale.suite]} | {"c"}
        assert set(scale.variants) <= rows


def test_an_unknown_scale_is_one_line() -> None:
    with pytest.raises(UserError, match="--scale=huge: choose from imagenet, cifar10, tiny"):
        grid.cells("huge")


# ---- a planted store ------------------------------------------------------------------------


def score(dataset: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "suite": "main", "kind": "row", "dataset": dataset, "metric": "top1", "value": value,
        "n": 1000, "ci95": [value - 0.01, value + 0.01], "attack": None, "seed": 0, **more,
    }  # fmt: skip


def plant(cell: Cell, folder: pathlib.Path, value: Any) -> None:
    """The files of a finished cell; ``value`` of a row's name is its score, in percent."""
    run = folder / cell.name
    run.mkdir(parents=True)
    (run / "provenance.json").write_text(json.dumps({"commit": "0123abcd"}))
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
            results = [
                score("set", value(r) / 100, suite=suite, attack=r and
                      {"name": "apgd", "norm": "l2", "epsilon": r}) for r in (0.0, 0.5, 1.0)
            ]  # fmt: skip
        else:
            results = [
                score(row, value(row) / 100, suite=suite,
                      metric=store.METRICS.get((suite, row), "top1")) for row in cell.rows
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
        if best and (method, threat) in tables.FIGURE3:
            return PAPER.figure3[row, method, gamma].value
        return found - (not best) - (gamma - 0.65)

    return value


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished store of the paper's scale with the paper's own numbers."""
    folder = tmp_path_factory.mktemp("store")
    before = pathlib.Path.cwd()
    os.chdir(ROOT)
    for cell in grid.cells("imagenet"):
        plant(cell, folder, of_the_paper(cell))
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def found(planted: pathlib.Path) -> store.Store:
    return store.collect(planted / "imagenet")
