"""The cards of a gallery: which images stand where, and what is said below them."""

import io
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from adv_ssl import gallery
from adv_ssl.markup import TIMES

ATTACK: dict[str, Any] = {"name": "pgd", "norm": "l2", "epsilon": 0.5, "steps": 2}
GREYS = {
    "clean_original": 0.1, "clean_input": 0.2, "attacked_input": 0.3,
    "clean_reconstruction": 0.6, "attacked_reconstruction": 0.7,
}  # fmt: skip


def flat(*names: str) -> dict[str, np.ndarray]:
    """Two images of one grey of their own, of each name."""
    return {name: np.full((2, 4, 4, 3), GREYS[name], np.float32) for name in names}


def greys(folder: pathlib.Path, columns: int) -> list[list[float]]:
    """The grey in the middle of each image of the first card."""
    (path, _) = sorted(folder.glob("g_*.png"))
    pixels = imread(io.BytesIO(path.read_bytes()))[..., 0]
    step = 200  # an image of 4 pixels is drawn as 192, the gap is 8
    rows = (pixels.shape[0] + 8) // step
    assert pixels.shape[1] == columns * step - 8
    return [
        [round(float(pixels[row * step + 96, column * step + 96]), 2) for column in range(columns)]
        for row in range(rows)
    ]


def captions(page: str) -> list[list[str]]:
    """Of the first card: by column, line by line."""
    below = re.findall("<figcaption>(.*?)</figcaption>", page)[0]
    columns = re.findall("<span>((?:<span.*?</span>|.)*?)</span>", below)
    return [[re.sub("<.*?>", "", line) for line in text.split("<br>")] for text in columns]


def shown(folder: pathlib.Path, **arrays: Any) -> str:
    np.savez(folder / "g.npz", **arrays)
    return gallery.shown(folder / "g.npz")


def test_reconstructions_of_clean_and_attacked_patches_stand_side_by_side(tmp_path):
    losses = {"clean_loss": np.array([0.5, 0.25]), "attacked_loss": np.array([0.75, 0.125])}
    page = shown(tmp_path, **flat(*GREYS), **losses, **ATTACK)
    delta = 0.5 + 5 * 0.1  # of an amplification of 5
    assert greys(tmp_path, 3) == [[0.1, 0.2, 0.3], [pytest.approx(delta, abs=0.01), 0.6, 0.7]]
    assert captions(page) == [[f"{TIMES} 5"], ["clean", "loss 0.500"], ["attacked", "loss 0.750"]]
    assert "those of the clean patch, clipped" in page
    assert "L2 ε\xa0=\xa00.5, 2 steps of PGD" in page


def test_a_nominal_reconstruction(tmp_path):
    names = ("clean_original", "clean_input", "clean_reconstruction")
    page = shown(tmp_path, **flat(*names), clean_loss=np.array([0.5, 0.25]))
    assert greys(tmp_path, 3) == [[0.1, 0.2, 0.6]]
    assert captions(page) == [[""], [""], ["clean", "loss 0.500"]]
    assert "attack" not in page


def test_a_turned_image_has_its_angle_and_what_the_model_says(tmp_path):
    page = shown(
        tmp_path, **flat("clean_input", "attacked_input"), **ATTACK,
        clean_loss=np.array([0.1, 0.2]), attacked_loss=np.array([1.234, 0.2]),
        label=np.array([1, 0]), clean_prediction=np.array([1, 0]),
        attacked_prediction=np.array([3, 0]), class_names=np.array(["0°", "90°", "180°", "270°"]),
    )  # fmt: skip
    assert greys(tmp_path, 3)[0][::2] == [0.2, 0.3]
    clean, between, attacked = captions(page)
    assert clean == ["label 90°", "loss 0.100", "✓ 90°"]
    assert between == [f"{TIMES} 5"]
    assert attacked == ["attacked", "loss 1.23", "✗ 270°"]
    assert page.count('class="wrong"') == 1


def test_without_attack_and_labels(tmp_path):
    page = shown(tmp_path, **flat("clean_input"))
    assert greys(tmp_path, 1) == [[0.2]]
    assert captions(page) == [["clean"]]
    assert "What the model sees." in page
