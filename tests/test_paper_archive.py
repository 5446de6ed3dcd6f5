"""A store in one file: nothing is lost of what its numbers stand on, nothing else is taken out."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from planted import plant

from adv_ssl.errors import UserError
from adv_ssl.files import write_arrays
from adv_ssl.paper import archive, filters, grid, runner
from adv_ssl.paper.store import collect

ONLY = "tiny/byol/l2_0.25/seed0/*"

# ml_collections loads a configuration file so
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A store in which all but the last cell are done."""
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for cell in runner.matching(grid.cells("tiny"), ONLY)[:-1]:
            plant(cell, store, lambda _: 50.0)
            write_arrays(store / cell.name / filters.FILE, components=np.ones((28, 8, 8, 3)))
    return store


def packed(store: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    archive.pack(runner.matching(grid.cells("tiny"), ONLY), store, folder / "tiny.zip")
    return folder / "tiny.zip"


def test_an_unpacked_store_has_the_same_scores(planted, tmp_path):
    archive.unpack(packed(planted, tmp_path), tmp_path / "there")
    ours, theirs = collect(planted), collect(tmp_path / "there")
    assert ours == theirs
    assert len(ours.records) == 42
    names = {path.name for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert names == {pathlib.PurePath(name).name for name in archive.FILES}
    there = [path.parents[1] for path in (tmp_path / "there").rglob("filters.npz")]
    assert [str(path.relative_to(tmp_path / "there")) for path in there] == [
        cell.name for cell in runner.matching(grid.cells("tiny"), ONLY) if cell.kind == "pretrain"
    ]
    assert str(planted) not in "".join(
        path.read_text() for path in (tmp_path / "there").rglob("*.json")
    )


def test_the_same_store_gives_the_same_bytes_and_what_is_there_stays(planted, tmp_path):
    first, again = packed(planted, tmp_path).read_bytes(), packed(planted, tmp_path).read_bytes()
    assert first == again
    there = tmp_path / "there"
    archive.unpack(tmp_path / "tiny.zip", there)
    cells = runner.matching(grid.cells("tiny"), ONLY)
    assert archive.unpack(tmp_path / "tiny.zip", there) == len(cells) - 1
    mine = next(there.rglob("results.json"))
    mine.write_text("[]")
    archive.unpack(tmp_path / "tiny.zip", there)
    assert mine.read_text() == "[]"


def test_a_cell_that_is_there_is_not_mixed_with_the_archives(planted, tmp_path):
    """Half a training of one's own does not get the scores of another's."""
    path, there = packed(planted, tmp_path), tmp_path / "there"
    cell = runner.matching(grid.cells("tiny"), ONLY)[0]
    mine = there / cell.name / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    whole = archive.unpack(path, tmp_path / "elsewhere")
    assert archive.unpack(path, there) == whole - 1
    assert [p.name for p in mine.parent.iterdir() if p.is_file()] == ["config.json"]


def test_a_score_is_packed_with_the_run_that_it_is_of(planted, tmp_path):
    shutil.copytree(planted, tmp_path / "store")
    cells = runner.matching(grid.cells("tiny"), ONLY)
    (tmp_path / "store" / cells[0].name / "results.json").write_text("[]")
    with pytest.raises(UserError, match="no cell of this --scale that is done"):
        archive.pack(cells, tmp_path / "store", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("name", ['a "store"', "b\\s", "größe"])
def test_a_store_of_any_name(planted, tmp_path, name):
    archive.unpack(packed(planted, tmp_path), tmp_path / name)
    assert collect(tmp_path / name) == collect(planted)
    archive.pack(runner.matching(grid.cells("tiny"), ONLY), tmp_path / name, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "tiny.zip").read_bytes()


def test_the_command_packs_the_follow_ups_too(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for scale in ("tiny", "tiny_x4", "tiny_ti"):
        cell = next(c for c in grid.cells(scale) if "/mae/nominal/seed1/" in c.name)
        plant(cell, tmp_path / "store", lambda _: 50.0)
    words = f"pack --scale=tiny --store={tmp_path}/store --archive={tmp_path}/a.zip"
    line = [sys.executable, "-m", "adv_ssl.paper", *words.split()]
    assert subprocess.run(line, capture_output=True, text=True).stdout == "3 cells\n"
    archive.unpack(tmp_path / "a.zip", tmp_path / "there")
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"tiny", "tiny_x4", "tiny_ti"}


def test_cells_that_are_not_done_are_left_out(planted, tmp_path):
    cells = runner.matching(grid.cells("tiny"), ONLY)
    assert archive.pack(cells, planted, tmp_path / "a.zip") == len(cells) - 1
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert not [name for name in file.namelist() if name.startswith(cells[-1].name + "/")]


@pytest.mark.parametrize(
    "member", ["../results.json", "a/../../results.json", "a/run.py", "/tmp/x/results.json"]
)
def test_a_hostile_archive_writes_nothing_outside(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(member, "{}")
    with pytest.raises(UserError, match="is no archive"):
        archive.unpack(tmp_path / "bad.zip", tmp_path / "inner" / "there")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad.zip"]


@pytest.mark.parametrize("keep", [0, 10, -200])
def test_a_file_cut_short_is_one_line(planted, tmp_path, keep):
    path = packed(planted, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="is no archive"):
        archive.unpack(path, tmp_path / "there")
