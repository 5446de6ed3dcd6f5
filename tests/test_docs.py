"""docs/method.md: all ids that recipes cite are there, and all that it cites of the code exists."""

import ast
import functools
import importlib
import pathlib
import re

import pytest
from conftest import ROOT

from adv_ssl import recipes

PAGE = (ROOT / "docs" / "method.md").read_text()
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
