"""The package where it is installed, outside of the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import adv_ssl
from adv_ssl import config_flag, provenance


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """What a wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("installed")
    build = ["build", f"--build-base={folder}", f"--build-lib={folder / 'site-packages'}"]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True)
    return folder / "site-packages"


def test_a_wheel_has_every_file_of_the_package_and_the_configurations(installed):
    def files(folder: pathlib.Path) -> set[str]:
        found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {str(path.relative_to(folder)) for path in found}

    assert {path.name for path in installed.iterdir()} == {"adv_ssl", "configs"}
    for name in ("adv_ssl", "configs"):
        assert files(installed / name) == files(ROOT / name)


def test_commands_find_the_configurations_from_any_folder(installed, tmp_path):
    line = [sys.executable, "-m", "adv_ssl.main", "--config=configs/mae_l2.py:digit", "--workdir=w"]
    done = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("adv_ssl: scale 'digit' behind the file's name")


def test_a_file_of_that_name_goes_before_the_one_that_came_with_us(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = "--config=configs/mae_l2.py:digits"
    assert config_flag._from_anywhere(given) == f"--config={ROOT}/configs/mae_l2.py:digits"
    for other in ("configs/mae_l2.py.bak", "--workdir=configs", "mae_l2.py", "--config=x/mae.py"):
        assert config_flag._from_anywhere(other) == other
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "mae_l2.py", tmp_path / "configs")
    assert config_flag._from_anywhere(given) == given


def test_the_commit_of_another_checkout_is_not_taken_for_ours(tmp_path, monkeypatch):
    package = tmp_path / "venv" / "adv_ssl"
    package.mkdir(parents=True)
    (package / "errors.py").write_text("")
    monkeypatch.setattr(adv_ssl, "__file__", str(package / "__init__.py"))
    assert provenance._commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Theirs"], check=True)
    assert provenance._commit() is None
    subprocess.run([*git, "add", "."], check=True)
    assert len(provenance._commit()) == 40
