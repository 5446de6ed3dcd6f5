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
