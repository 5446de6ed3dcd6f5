"""docs/method.md and the recipes and code that cite each other; the attack in CONTRIBUTING.md."""

import ast
import functools
import importlib
import json
import logging
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, random_classifier

from adv_ssl import attacks, recipes
from adv_ssl.checkpoint import Checkpoints, State
from adv_ssl.config import parse
from adv_ssl.models.vit import ViT
from adv_ssl.tasks.classifier import classify

PAGE = (ROOT / "docs" / "method.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
# What defines an id: a row "| id | flag |"; in section I and of the paper's parts a first cell.
DEFINED = re.findall(
    r"^\| (\w[^|]*?) \| (?:PAPER|REF|OPEN|derived|trap|-)[ ,]|^\| (I\d+) \| [^`]|\| (P:[\w.]+) \|",
    PAGE,
    re.MULTILINE,
)
IDS = ["".join(groups) for groups in DEFINED]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py"))


def cited(sources: dict) -> set[str]:
    """The ids in a recipe's sources: "C, I8" cites two, "A4-A6" its ends, "" none."""
    leaves = [cited(s) if isinstance(s, dict) else {s[1]} for s in sources.values()]
    ids = {i for where in set().union(*leaves) for i in re.split(r", |-(?=[A-Z]\d)", where)}
    return ids - {""}


def arguments(name: str) -> list[str]:
    """All that may stand behind a configuration's name."""
    if name.startswith("transfer"):
        return [*recipes.paper.TRANSFER_SETS, *(f"digits,{scale}" for scale in recipes.SCALES)]
    return [*recipes.SCALES, *(["imagenet,adamw"] if name.startswith("byol") else [])]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_id_that_a_recipe_cites_is_on_the_page(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    ids = set().union(*(cited(get_config(a).to_dict()["sources"]) for a in arguments(name)))
    assert len(ids) > 10
    assert ids <= set(IDS)


def test_no_id_is_defined_twice():
    assert len(IDS) > 100
    assert len(IDS) == len(set(IDS))


@functools.cache
def names(path: pathlib.Path) -> set[str]:
    """What a file defines, at any depth: functions, classes, assigned names."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [(r"`([\w/]+\.py): (\w+)`", ("adv_ssl", ".")), (r"`(\w+\.py)::(\w+)`", ("tests",))],
)
def test_what_the_page_cites_of_code_and_tests_is_there(pattern, folders):
    references = re.findall(pattern, PAGE)
    assert len(references) > 80
    for file, name in references:
        paths = [ROOT / folder / file for folder in folders]
        assert any(path.exists() and name in names(path) for path in paths), (file, name)


@pytest.mark.parametrize("path", sorted((ROOT / "adv_ssl").rglob("*.py")), ids=lambda p: p.stem)
def test_functions_fit_a_screen_and_modules_a_sitting(path):
    code = path.read_text()
    assert code.count("\n") <= 400
    defined = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in defined if n.end_lineno - n.lineno >= 60] == []


def test_the_guide_draws_the_layers_that_imports_are_held_to():
    drawn = re.findall(r"^    ((?:[a-z_]+ \| )*[a-z_]+)(?:  .*)?$", GUIDE, re.MULTILINE)
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    assert drawn == contract["layers"]


@pytest.mark.parametrize("norm", attacks.BALLS)
def test_the_attack_that_the_guide_adds_is_mi_fgsm(norm):
    """Of Dong et al. 2018, Algorithm 1, and its L2 form: written out."""
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    space = dict(vars(attacks))
    exec(code, space)
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.9, (3, 4, 4)).astype(np.float32)
    slopes, bends = rng.standard_normal((2, *x.shape)).astype(np.float32)
    epsilon, steps, alpha = 0.3, 5, 0.3

    def objective(x):
        return (slopes * x - 3 * bends * x**2).sum((1, 2))

    attack = space["momentum"](norm, epsilon, steps, alpha, "zero")
    x_adv, _ = jax.jit(lambda x: attack(objective, x, jax.random.key(0)))(x)
    for start, start_slopes, start_bends, end in zip(x, slopes, bends, x_adv, strict=True):
        point, memory = start.astype(np.float64), 0.0
        for _ in range(steps):
            gradient = start_slopes - 6 * start_bends * point
            memory = memory + gradient / np.abs(gradient).sum()
            way = np.sign(memory) if norm == "linf" else memory / np.linalg.norm(memory)
            delta = point + alpha * epsilon * way - start
            length = np.linalg.norm(delta)
            if norm == "linf":
                delta = np.clip(delta, -epsilon, epsilon)
            elif length > epsilon:
                delta = delta * epsilon / length
            point = np.clip(start + delta, 0, 1)
        np.testing.assert_allclose(end, point, atol=1e-5)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# In a process of its own: argument lists, of one command, each read as that command reads it.
READ = """
import importlib.util, json, os, sys
from adv_ssl import command
name, *rows = json.load(sys.stdin)
command.start = lambda work, parse: read.append(parse)
read = []
source = importlib.util.find_spec(name).origin
exec(compile(open(source).read(), source, "exec"), {"__name__": "__main__"})
from adv_ssl import config, config_flag, recipes  # once, not in each child
for row in rows:
    print(name, *row, file=sys.stderr, flush=True)
    child = os.fork()  # flags are read once in a process
    if child == 0:
        sys.argv = [name, *row]
        read[0](sys.argv)
        if name == "adv_ssl.main":
            plain = config_flag.value().to_dict()
            config.parse(plain)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(code)
"""


def commands() -> dict[str, list[list[str]]]:
    """Arguments of all commands on the pages, by module; overrides are given to an example."""
    found: dict[str, list[list[str]]] = {}
    for text in (page.read_text().replace("\\\n", " ") for page in PAGES):
        for module, rest in re.findall(r"^ {4,}python -m adv_ssl\.(\w+)(.*)", text, re.MULTILINE):
            found.setdefault(module, []).append(shlex.split(rest, comments=True))
        for rest in re.findall(r"`(--config[.\w]*=[^`]*)`", text):
            given = shlex.split(rest)
            example = [] if rest.startswith("--config=") else ["--config=configs/mae_l2.py"]
            found["main"].append([*example, *given, "--workdir=DIR"])
    return {
        module: [row for row in rows if not re.search("KEY|NAME|FILE|momentum", " ".join(row))]
        for module, rows in found.items()
    }


def test_the_commands_of_all_pages_are_understood():
    found = commands()
    assert set(found) == {"main", "data", "evaluate", "weights", "paper", "estimate"}
    assert sum(map(len, found.values())) > 35
    for module, rows in found.items():
        path = ROOT / "adv_ssl" / module
        name = f"adv_ssl.{module}" + (".__main__" if path.is_dir() else "")
        read = subprocess.run(
            [sys.executable, "-c", READ], input=json.dumps([name, *rows]),
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert read.returncode == 0, read.stderr[-400:]


def test_what_the_pages_name_of_the_project_is_there():
    """Targets of make, extras of pip, files and folders of the checkout."""
    text = "\n".join(page.read_text() for page in PAGES)
    makefile, setup = (ROOT / "Makefile").read_text(), (ROOT / "setup.py").read_text()
    targets = {
        t for line in re.findall(r"(?:^    |`)make ([a-z -]+)", text, re.M) for t in line.split()
    }
    extras = set(re.findall(r"pip install -e '?\.\[(\w+)\]", text))
    paths = set(
        re.findall(r"\b(?:adv_ssl|configs|docs|launch|tests|benchmarks)/[\w/]*\w\.\w+\b", text)
    )
    assert len(targets) > 6
    assert len(extras) > 2
    assert len(paths) > 40
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []
    assert [e for e in extras if f'"{e}": [' not in setup] == []
    assert [p for p in paths if "NAME" not in p and not (ROOT / p).exists()] == []


def test_the_lines_of_python_run(monkeypatch, capsys):
    """All but the training, whose lines are shown, and those of other libraries not."""
    (code,) = re.findall(r"## From Python\n\n((?:    .*\n|\n)+)", USAGE)
    ran = []

    def run(*arguments):
        ran.append(arguments)
        logging.getLogger("adv_ssl").info("a step")
        logging.getLogger("orbax").info("a thread")

    monkeypatch.setattr("adv_ssl.pipeline.run", run)
    for logger in (logging.getLogger(), logging.getLogger("adv_ssl")):
        monkeypatch.setattr(logger, "level", logger.level)
        monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])  # grain installs one
    exec(textwrap.dedent(code), {})
    assert capsys.readouterr().err == "a step\n"
    ((config, workdir),) = ran
    assert parse(config.to_dict()).pretrain.attack.epsilon == 0.25
    assert workdir == "runs/mine"


def test_the_features_of_the_page_are_what_the_head_reads(tmp_path):
    stage = tmp_path / "finetune"
    params = random_classifier(3)
    with Checkpoints(stage / "checkpoints", TINY) as checkpoints:
        checkpoints.save(State(jnp.int32(0), params, None, None, jnp.int32(0)), wait=True)
    (code,) = re.findall(r"by the encoder of a fine-tuned model:\n\n((?:    .*\n|\n)+)", USAGE)
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)
    space = {"images": images}
    exec(textwrap.dedent(code).replace("runs/mine/finetune", str(stage)), space)
    assert space["features"].shape == (2, TINY.width)
    logits = space["features"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, classify(ViT(TINY), params, images, None), atol=1e-6)
