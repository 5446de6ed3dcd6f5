"""The golden files, made anew where torch and timm are (`make test-reference`)."""

import importlib
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_a_golden_file_is_what_its_script_makes(name, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(GOLDEN)
    made = importlib.import_module(f"make_{name}").make()
    with np.load(GOLDEN / f"{name}.npz") as golden:
        assert set(made) == set(golden.files)
        for key, value in made.items():
            np.testing.assert_allclose(value, golden[key], rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_files_of_weights_are_what_their_script_makes(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(GOLDEN)
    script = importlib.import_module("make_weights")
    script.make(tmp_path)
    made, golden = script.contents(tmp_path), script.contents(GOLDEN / "weights")
    assert set(made) == set(golden)
    for key, value in made.items():
        np.testing.assert_array_equal(value, golden[key], err_msg=key)
