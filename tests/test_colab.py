"""The notebook of launch/, from top to bottom, with a few steps instead of many."""

import ast
import json
import subprocess
import sys

import pytest
import tiny
from conftest import ROOT

NOTEBOOK = json.loads((ROOT / "launch/colab.ipynb").read_text())
CELLS = [(cell, "".join(cell["source"])) for cell in NOTEBOOK["cells"]]
# Executes the cells as a notebook does, and prints the type of what each one shows.
PROGRAM = """
import ast, json, sys
names = {}
for cell in json.loads(sys.stdin.read()):
    body = ast.parse(cell).body
    shown = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if shown:
        value = eval(compile(ast.Expression(shown.value), "cell", "eval"), names)
        print("shown", type(value).__mro__[-2].__name__, *getattr(value, "size", []))
"""


def test_the_notebook_is_well_formed_and_holds_no_output():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell, _ in CELLS}) == len(CELLS)
    for cell, source in CELLS:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            ast.parse(source)  # plain Python: no magics, that only a notebook knows
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize(
    ("driver", "extra"), [(None, ""), ("550.54.15", "[cuda12]"), ("580.65\n580.65", "[cuda]")]
)
def test_where_it_is_not_installed_it_takes_what_the_driver_of_the_gpu_can(
    monkeypatch, tmp_path, driver, extra
):
    ran = []

    def run(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=driver)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: driver and f"/bin/{name}")
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("sys.path", [*sys.path])
    install = next(source for _, source in CELLS if "REPOSITORY =" in source)
    exec(install.replace("github.com/OWNER", "github.com/me"), {})
    assert ran[-2][:2] == ["git", "clone"]
    assert ran[-1][-1] == f"adv_ssl_clone{extra}"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    changes = tiny.CHANGES | tiny.OF_METHOD["rotnet"] | {"pretrain.attack.epsilon": 0.25}
    settings = f"METHOD, CHANGES, FOLDER = 'rotnet', {changes}, {str(tmp_path / 'runs')!r}"
    cells = []
    for cell, source in CELLS:
        if cell["cell_type"] == "code":
            cells.append(source)
            cells += [settings] if "parameters" in cell["metadata"].get("tags", []) else []
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(cells), cwd=ROOT, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shown Image") == 2
    assert done.stdout.count("report.html") == 2
    assert done.stdout.count("radius 0.500") == 2
    configs = [json.loads(p.read_text()) for p in sorted((tmp_path / "runs").glob("*/config.json"))]
    assert [(c["pretrain"]["attack"] or {}).get("epsilon") for c in configs] == [0.25, None]
