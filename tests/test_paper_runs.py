"""The paper's grid: what there is to run, and the runner of it."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny
from conftest import ROOT
from planted import config, plant

from adv_ssl import names, recipes
from adv_ssl.config import parse
from adv_ssl.errors import UserError
from adv_ssl.estimate import program
from adv_ssl.evaluation import predict
from adv_ssl.evaluation.suites import SUITES
from adv_ssl.files import held
from adv_ssl.paper import grid, prices, runner, store
from adv_ssl.paper.exhibits import rows
from adv_ssl.paper.grid import Cell
from adv_ssl.recipes import small

# ml_collections loads a configuration file so
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


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
    small_one = kinds("tiny")
    # 12 encoders with all five decays, the 8 of the other radii with one; three seeds
    assert (small_one["pretrain"], small_one["finetune"], small_one["scores"]) == (
        3 * (12 + 8),
        3 * (12 * 4),
        3 * (12 * 5 + 8),
    )
    tiny, wide = grid.SCALES["tiny"], grid.SCALES["cifar10"]
    for key, radii in tiny.radii.items():
        assert set(radii) <= set(wide.radii[key])
        assert [tiny.decays(*key, radius) for radius in radii[1:]] == [(0.75,)] * len(radii[1:])
        assert tiny.decays(*key, radii[0]) == tiny.gammas
    for key, radius in small.SCALES["cifar10"].radii.items():
        assert radius.value in wide.radii[key]  # the configuration's own is one of the sweep


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
            own = grid.threat_folder(attack.norm, attack.epsilon) if attack else "nominal"
            assert (own, f"gamma{made.finetune.layer_decay:g}") == (threat, gamma)
            assert type(made.pretrain.task).__name__.lower() == method
        encoder = by_name[cell.needs] if cell.needs else made
        assert made.model == encoder.model
        weights = f"{tmp_path}/{cell.needs}/pretrain" if cell.needs else ""
        assert made.weights == weights
        if scale == "tiny":
            assert made.pretrain.steps
            assert made.pretrain.split == "train[:45000]"
            assert made.finetune.split == "train[:5000]"
            assert made.evaluate.split == "train[45000:]"


def test_seeds_are_those_of_the_folders(tmp_path: pathlib.Path) -> None:
    for cell in grid.cells("tiny")[::7]:
        if cell.module == "adv_ssl.main":
            assert f"/seed{config(cell, tmp_path)['seed']}/" in cell.name


def test_evaluations_are_known_to_the_evaluator() -> None:
    known = {
        re.match(r"--(\w+)", flag)[1] for scale in grid.SCALES for cell in grid.cells(scale)
        if cell.module == "adv_ssl.evaluate" for flag in cell.flags
    }  # fmt: skip
    assert known == {"weights", "suite", "norm", "attack", "radii", "images", "corrupted"}
    for scale in grid.SCALES.values():
        rows = {row.name for row in SUITES[scale.suite]} | {"c"}
        assert set(scale.variants) <= rows


QUICK = ("cifar10", "rotnet", "nominal")
ROWS = [
    pytest.param(row, id="-".join(key), marks=[] if key == QUICK else pytest.mark.slow)
    for row in rows("training")
    if (key := tuple(list(row.values())[:3]))
]


@pytest.mark.parametrize("row", ROWS)
def test_prices_are_of_the_recipes(row: dict[str, str]) -> None:
    threat = "nominal" if row["threat"] == "nominal" else "l2"
    method = "supervised" if row["stage"] == "finetune" else row["stage"]
    config = parse(recipes.recipe(method, threat, row["recipe"]).to_dict())
    run = program.runs(config)["finetune" if row["stage"] == "finetune" else "pretrain"]
    size = run.stage.batch_size
    assert (run.steps, size) == (int(row["steps"]), int(row["batch_size"]))
    gflops = program.flops(run) / size / 1e9
    assert float(row["gflops_per_image"]) == pytest.approx(gflops, rel=1e-4)


def test_a_price_is_of_what_a_cell_trains() -> None:
    by_kind = {cell.kind: cell for cell in reversed(grid.cells("tiny"))}
    finetune = 0.083572e9 * 64 * 800
    assert prices.flops(by_kind["finetune"]) == pytest.approx(finetune)
    nominal = 0.083572e9 * 64 * 3000
    assert prices.flops(by_kind["pretrain"]) == pytest.approx(nominal + finetune)
    assert prices.flops(by_kind["scores"]) == 0
    nominal, attacked = 2 * 105.15 + 280.9, 2 * 248.5 + 567.7  # all but MAE, 11 radii each
    gflop = 93_600 * 4096 * (nominal + 11 * attacked) + 249_600 * 4096 * (58.1 + 11 * 137.1)
    gflop += 192 * 250_200 * 512 * 105.15
    hours = gflop * 1e9 / (0.4 * 197e12) / 3600
    assert prices.hours(grid.cells("imagenet"), "imagenet") == pytest.approx(hours, rel=1e-3)


def test_the_page_on_scale_has_the_prices() -> None:
    table = (ROOT / "docs" / "scale.md").read_text()
    _, speed = prices.SPEEDS["imagenet"]
    for row in rows("training"):
        if row["recipe"] == "imagenet":
            stage = names.METHOD_TITLES.get(row["stage"], "fine-tuning")
            label = stage if stage == "fine-tuning" else f"{stage}, {row['threat']}"
            gflops, steps, size = (float(row[k]) for k in list(row)[3:])
            hours = gflops * 1e9 * steps * size / speed / 3600
            line = f"| {label} | {gflops:.1f} | {steps:,.0f} | {size:,.0f} | {hours:,.0f} |"
            assert line in table, line


# ---- the runner -----------------------------------------------------------------------------

STUB = """
import json, pathlib, sys, time
folder, log, pause = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
with log.open("a") as file:
    file.write(folder.name + "\\n")
time.sleep(pause)
(folder / "finetune" / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
config = {"evaluate": {"attacks": []}, "weights": "/a/finetune"}
(folder / "config.json").write_text(json.dumps(config))
(folder / "results.json").write_text(json.dumps([{"value": 0.5, "stage": "finetune"}]))
"""
RUNNER = """
import pathlib, sys
from adv_ssl import preemption
from adv_ssl.paper import runner
from adv_ssl.paper.grid import Cell
sys.path.insert(0, {tests!r})
import test_paper_runs
preemption.watch()
store = pathlib.Path(sys.argv[1])
try:
    print(runner.run(test_paper_runs.CHAIN, store, test_paper_runs.stub(store, float(sys.argv[2]))))
except preemption.Preempted:
    sys.exit(75)
"""
CHAIN = [
    Cell(
        name,
        "finetune",
        "",
        (f"--config.weights={{store}}/{needs}/finetune",) * bool(needs),
        needs,
        "finetune" if needs else "",
    )
    for name, needs in (("a", ""), ("b", "a"), ("c", "a"), ("d", ""))
]


def stub(folder: pathlib.Path, pause: float = 0.0, fails: str = "") -> runner.Launch:
    """A command that notes its cell and is done after a while."""

    def launch(cell: Cell) -> list[str]:
        code = "raise SystemExit(3)" if cell.name == fails else STUB
        arguments = [str(folder / cell.name), str(folder / "log"), str(pause)]
        return [sys.executable, "-c", code, *arguments]

    return launch


def ran(folder: pathlib.Path) -> list[str]:
    log = folder / "log"
    return log.read_text().split() if log.exists() else []


def test_a_finished_cell_is_never_run_again(tmp_path: pathlib.Path) -> None:
    assert [runner.state(cell, tmp_path) for cell in CHAIN] == ["missing"] * 4
    assert set(runner.run(CHAIN, tmp_path, stub(tmp_path)).values()) == {"ran"}
    assert [runner.state(cell, tmp_path) for cell in CHAIN] == ["done"] * 4
    assert set(runner.run(CHAIN, tmp_path, stub(tmp_path)).values()) == {"done"}
    assert ran(tmp_path) == ["a", "b", "c", "d"]


def test_a_training_whose_checkpoints_are_gone_is_run_again_where_they_are_needed(
    tmp_path: pathlib.Path,
) -> None:
    runner.run(CHAIN, tmp_path, stub(tmp_path))
    for name in "ad":
        shutil.rmtree(tmp_path / name / "finetune")
    assert set(runner.run(CHAIN, tmp_path, stub(tmp_path)).values()) == {"done"}
    (tmp_path / "c" / "results.json").unlink()
    planned = runner.planned(CHAIN, tmp_path)
    assert planned == {"a": "again", "b": "done", "c": "missing", "d": "done"}
    came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came == {"a": "ran", "b": "done", "c": "ran", "d": "done"}


def test_a_training_that_was_stopped_is_run_on_where_it_is_needed(tmp_path: pathlib.Path) -> None:
    """Whatever its results.json says, that of an unpacked archive for one."""
    runner.run(CHAIN, tmp_path, stub(tmp_path))
    part = tmp_path / "a" / "finetune" / "stage.json"
    part.write_text(json.dumps({"steps": 2, "classes": []}))
    assert set(runner.run(CHAIN, tmp_path, stub(tmp_path)).values()) == {"done"}
    (tmp_path / "c" / "results.json").unlink()
    came = runner.run(CHAIN, tmp_path, stub(tmp_path, fails="a"))
    assert came == {"a": "failed", "b": "done", "c": "blocked", "d": "done"}
    came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came == {"a": "ran", "b": "done", "c": "ran", "d": "done"}


def test_a_stage_stands_for_no_other(tmp_path: pathlib.Path) -> None:
    """A fine-tuning that was killed before its first save: the pre-training is there."""
    runner.run(CHAIN, tmp_path, stub(tmp_path))
    (tmp_path / "a" / "finetune").rename(tmp_path / "a" / "pretrain")
    (tmp_path / "c" / "results.json").unlink()
    assert CHAIN[2].stage == "finetune"
    came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came == {"a": "ran", "b": "done", "c": "ran", "d": "done"}


def test_a_failure_blocks_what_needs_it_and_nothing_else(tmp_path: pathlib.Path) -> None:
    came = runner.run(CHAIN, tmp_path, stub(tmp_path, fails="a"))
    assert came == {"a": "failed", "b": "blocked", "c": "blocked", "d": "ran"}
    came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came == {"a": "ran", "b": "ran", "c": "ran", "d": "done"}


def test_a_cell_without_its_scores_is_no_success(tmp_path: pathlib.Path) -> None:
    came = runner.run(CHAIN[:1], tmp_path, lambda cell: [sys.executable, "-c", ""])
    assert came == {"a": "failed"}


@pytest.mark.parametrize("place", ["a", ".runners/a"])
def test_a_cell_that_is_at_work_is_left(tmp_path: pathlib.Path, place: str) -> None:
    with held(tmp_path / place):
        assert runner.state(CHAIN[0], tmp_path) == "running"
        came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came == {"a": "running", "b": "blocked", "c": "blocked", "d": "ran"}
    assert runner.state(CHAIN[0], tmp_path) == "missing"


def test_a_child_that_another_one_was_quicker_than_has_not_failed(tmp_path: pathlib.Path) -> None:
    code = "import sys; sys.exit(2)"
    with held(tmp_path / "a"), pytest.MonkeyPatch.context() as patch:
        asked = iter([False, True])  # before it is started, and after it has ended
        patch.setattr(runner, "is_held", lambda _: next(asked))
        came = runner.run(CHAIN[:1], tmp_path, lambda cell: [sys.executable, "-c", code])
    assert came == {"a": "running"}


def start(folder: pathlib.Path, pause: float) -> subprocess.Popen:
    code = textwrap.dedent(RUNNER.format(tests=str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(pause)], env=environment)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_was_stopped_goes_on(tmp_path: pathlib.Path, number: int) -> None:
    process = start(tmp_path, 1.5)
    wait_until(lambda: len(ran(tmp_path)) == 2)  # a is done, b at work
    process.send_signal(number)
    assert process.wait() == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGKILL:  # the cell at work is an orphan now, and ends by itself
        wait_until(lambda: runner.state(CHAIN[1], tmp_path) == "done")
    came = runner.run(CHAIN, tmp_path, stub(tmp_path))
    assert came["a"] == "done"
    assert set(came.values()) <= {"done", "ran"}
    assert ran(tmp_path).count("a") == 1


def test_two_runners_do_not_do_the_same_cell(tmp_path: pathlib.Path) -> None:
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(runner.run, CHAIN, tmp_path, stub(tmp_path, 0.3)) for _ in range(3)]
        came = [job.result() for job in jobs]
    assert sorted(ran(tmp_path)) == sorted(set(ran(tmp_path)))
    done = {name for one in came for name, what in one.items() if what == "ran"}
    assert done == set(ran(tmp_path))


def test_only_takes_what_is_needed_along() -> None:
    names = [c.name for c in runner.matching(grid.cells("tiny"), "*/mae/l2_*/seed2/gamma0.85/*")]
    base = "tiny/mae/l2_0.07/seed2"
    assert names == [f"{base}/gamma0.5", f"{base}/gamma0.85", f"{base}/gamma0.85/scores/cifar10"]
    with pytest.raises(UserError, match="--only=nothing: no cell"):
        runner.matching(grid.cells("tiny"), "nothing")


def test_what_another_command_made_is_not_the_cells(tmp_path: pathlib.Path) -> None:
    """More steps, another seed or method; of an evaluation other weights or fewer images."""
    cells = runner.matching(grid.cells("tiny"), "tiny/mae/l2_0.07/seed1/gamma0.65/*")
    train, tune, scores = cells
    for cell in cells:
        plant(cell, tmp_path, lambda row: 50.0)
    changes: list[tuple[Cell, str, tuple[str, ...], Any]] = [
        (train, "config.json", ("pretrain", "steps"), 20),
        (train, "config.json", ("seed",), 0),
        (train, "config.json", ("pretrain", "attack", "epsilon"), 0.15),
        (train, "config.json", ("evaluate", "attacks"), []),
        (tune, "config.json", ("weights",), "/x/tiny/mae/l2_0.07/seed0/gamma0.5/pretrain"),
        (scores, "evaluation.json", ("images",), 2),
        (scores, "evaluation.json", ("weights",), f"/x/{tune.name}/pretrain"),
    ]
    for cell, name, keys, value in changes:
        assert [runner.state(c, tmp_path) for c in cells] == ["done"] * 3
        path = tmp_path / cell.name / name
        before = path.read_text()
        made = json.loads(before)
        inner = made
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(made))
        assert runner.state(cell, tmp_path) == "missing", (name, keys)
        path.write_text(before)


def test_scores_of_a_model_trained_in_part_are_not_done(tmp_path: pathlib.Path) -> None:
    *_, scores = runner.matching(grid.cells("tiny"), "tiny/mae/l2_0.07/seed1/gamma0.65/*")
    plant(scores, tmp_path, lambda row: 50.0)
    assert runner.done(scores, tmp_path)
    path = tmp_path / scores.name / "results.json"
    first, *rest = json.loads(path.read_text())
    first["flags"] = [f"{predict.IN_PART}: step 5 of 10"]
    path.write_text(json.dumps([first, *rest]))
    assert not runner.done(scores, tmp_path)


def test_scores_over_a_sample_are_done_where_one_was_asked_for_alone(
    tmp_path: pathlib.Path,
) -> None:
    """What is set beside the paper's numbers is over whole sets."""
    for scale, asked in (("imagenet", False), ("tiny", True)):
        cell = next(cell for cell in grid.cells(scale) if cell.kind == "scores")
        plant(cell, tmp_path, lambda row: 50.0)
        path = tmp_path / cell.name / "results.json"
        first, *rest = json.loads(path.read_text())
        path.write_text(json.dumps([first | {"whole": False}, *rest]))
        assert runner.done(cell, tmp_path) is asked


@pytest.mark.parametrize("kind", ["scores", "baseline", "robust", "pretrain", "transfer"])
def test_done_is_when_every_score_is_there(tmp_path: pathlib.Path, kind: str) -> None:
    cell = next(cell for cell in grid.cells("imagenet") if cell.kind == kind)
    plant(cell, tmp_path, lambda row: 50.0)
    path = tmp_path / cell.name / "results.json"
    whole = json.loads(path.read_text())
    assert runner.state(cell, tmp_path) == "done"
    for lacking in (whole[:1], [{**r, "value": None} for r in whole], [], {}):
        if kind != "transfer" or lacking != whole[:1]:
            path.write_text(json.dumps(lacking))
            assert runner.state(cell, tmp_path) == "missing"
    path.write_text(json.dumps(whole)[:-5])
    assert runner.state(cell, tmp_path) == "missing"


def test_a_curve_of_another_attack_or_of_fewer_images_is_not_the_cells(tmp_path: pathlib.Path):
    cell = next(cell for cell in grid.cells("tiny") if cell.kind == "robust")
    plant(cell, tmp_path, lambda row: 50.0)
    path = tmp_path / cell.name / "results.json"
    whole = json.loads(path.read_text())
    assert runner.done(cell, tmp_path)
    others = (
        [{**r, "n": 10} for r in whole],
        [{**r, "attack": r["attack"] and {**r["attack"], "name": "apgd"}} for r in whole],
    )
    for other in others:
        path.write_text(json.dumps(other))
        assert not runner.done(cell, tmp_path)
        path.write_text(json.dumps(other + whole))
        assert runner.done(cell, tmp_path)


def command(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "adv_ssl.paper", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_the_command_line(tmp_path: pathlib.Path) -> None:
    only = "--only=*/mae/nominal/seed0/gamma0.65*"
    jobs = command("run", "--scale=tiny", f"--store={tmp_path}/s", only, "--print_jobs")
    lines = jobs.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("python -m adv_ssl.main --config=configs/mae_nominal.py:cifar10 ")
    assert f"--config.weights={tmp_path}/s/tiny/mae/nominal/seed0/gamma0.5/pretrain" in lines[1]
    assert lines[2].startswith(f"python -m adv_ssl.evaluate --weights={tmp_path}/s/tiny/mae")
    listed = command("run", "--scale=tiny", f"--store={tmp_path}/s", only, "--dry_run")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["state", "kind"], ["missing", "pretrain"], ["missing", "finetune"], ["missing", "scores"],
    ]  # fmt: skip
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["walk"], "say `python -m adv_ssl.paper run`"),
        (
            ["report", "--store=x", "--out=y", "--scale=huge"],
            "--scale=huge: value should be one of <imagenet|",
        ),
        (
            ["report", "--store=x", "--out=y", "--scale=tiny_x2"],
            "the page of --scale=tiny shows it",
        ),
        (["report", "--store=x", "--out=y", "--only=*"], "--only is an option of run; report has"),
        (["run", "--store=x", "--selection=test"], "--selection is an option of report; run has"),
        (["pack", "--store=x", "--archive=a.zip", "--dry_run"], "--dry_run is an option of run"),
        (["run", "--store=x", "--dry_run", "--print_jobs"], "take one of them"),
        (["report", "--store=no.zip", "--out=y"], "no.zip is no archive that"),
        (["unpack", "--store=x", "--archive=no.zip"], "no.zip is no archive that"),
        (["pack", "--store=x", "--archive=a.zip"], "no cell of this --scale that is done"),
        (["run", "--scale=tiny", "--store=docs/tiny.zip"], "into a folder first"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_real_runs_are_collected(tmp_path: pathlib.Path) -> None:
    """A pre-training and a second fine-tuning of its encoder, by their real commands."""
    small_run = "--config=configs/byol_l2.py:digits", *tiny.flags()
    other = (
        *small_run,
        "--config.finetune.layer_decay=0.5",
        "--config.weights={store}/digits/first/pretrain",
    )
    cells = [
        Cell("digits/first", "pretrain", "adv_ssl.main", small_run, ""),
        Cell("digits/second", "finetune", "adv_ssl.main", other, "digits/first"),
    ]
    assert set(runner.run(cells, tmp_path).values()) == {"ran"}
    assert set(runner.run(cells, tmp_path).values()) == {"done"}
    found = store.collect(tmp_path / "digits")
    assert found.passed_over == ()
    assert {r[:7] for r in found.records} == {
        ("byol", "l2", 0.5, gamma, 0, "finetune", "adamw") for gamma in (0.75, 0.5)
    }
    assert [(r.attack, r.radius, r.n) for r in found.records] == [
        ("", 0, 50),
        ("pgd-l2", 0.5, 40),
    ] * 2
