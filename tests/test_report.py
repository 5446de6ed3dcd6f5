"""The page of a run, from synthetic files; and the computation behind Fig. 4."""

import base64
import html
import io
import json
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from adv_ssl import figures, report
from adv_ssl.evaluation.page import curves as curves_of
from adv_ssl.markup import tag

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"image_size": 16, "patch": 4, "width": 64, "depth": 4, "heads": 4, "mlp": 256},
    "dtype": "float32",
    "data": {"name": "digits", "dir": ""},
    "pretrain": {
        "task": {"name": "byol", "hidden": 256, "output": 64, "view1": {"blur_sigma": [0.1, 1.0]}},
        "attack": {"norm": "l2", "epsilon": 1.0, "steps": 2, "step_size": 0.625, "start": "ball"},
        "split": "train",
        "augment": {"crop": "byol", "min_area": 0.5, "flip": False, "randaugment": None},
        "batch_size": 128,
        "schedule": {"warmup": 0.1, "min_lr": 0.0},
        "epochs": 8.0,
        "steps": None,
        "ema": {"decay": 0.97, "final_decay": 1.0, "own_seed": True},
    },
    "weights": "",
    "finetune": {"task": {"name": "supervised", "label_smoothing": 0.1}, "layer_decay": 0.75},
    "evaluate": {"split": "test", "attacks": [["l2", 0.5, 20], ["l2", 1.0, 20]]},
    "log_every": 20,
    "sources": {
        "seed": ["OURS", "", 0],
        "model": {"width": ["REF", "B1", 768], "patch": ["OURS", "", 4], "depth": ["OURS", "", 4]},
        "data": {"name": ["OURS", "", "digits"]},
        "pretrain": {
            "task": {"name": ["PAPER", "P:B.2", "byol"], "output": ["OURS", "", 64]},
            "attack": {
                "norm": ["PAPER", "A3", "l2"],
                "epsilon": ["PAPER", "Table 1", 2.0],
                "steps": ["PAPER", "A2", 2],
                "step_size": ["PAPER", "A2", 0.625],
                "start": ["OPEN", "A4-A6", "ball"],
            },
            "ema": {"decay": ["OPEN", "B22", 0.99], "final_decay": ["REF", "B22", 1.0]},
        },
        "finetune": {"layer_decay": ["PAPER", "D5", 0.65]},
        "evaluate": {"attacks": ["OURS", "A24", [["l2", 0.5, 20], ["l2", 1.0, 20]]]},
    },
}
PROVENANCE = {
    "adv_ssl": "0.1.0", "commit": "0123abcd" * 5, "dirty": True, "python": "3.11.7",
    "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "numpy": "2.4.6"},
    "devices": ["TFRT_CPU_0"], "seed": 0,
    "starts": [
        {"time": "2026-05-09T07:35:25+00:00", "command": "adv_ssl/main.py --workdir=/tmp/a&b"},
        {"time": "2026-05-09T07:41:02+00:00", "command": "adv_ssl/main.py --workdir=/tmp/again"},
    ],
}  # fmt: skip
SCORES = [(None, 0.0, 0.972), ("l2", 0.25, 0.914), ("l2", 0.5, 0.806), ("l2", 1.0, 0.531),
          ("linf", 8 / 255, 0.883), ("linf", 16 / 255, 0.742)]  # fmt: skip
NAMES = ["zero", "one", "<script>alert(1)</script>", "three", "$four$", "five", "six", "seven"]
SOURCES = ("config.json", "results.json", "provenance.json", "pretrain/metrics.jsonl",
           "finetune/metrics.jsonl", "finetune/handoff.json", "figures/gallery.npz",
           "figures/pretrain_gallery.npz", "figures/filters.npz")  # fmt: skip
LINKS = re.compile(r"""(?:src|href)\s*=\s*["']([^"']*)""")


def record(norm: str | None, epsilon: float, value: float, n: int = 360) -> dict[str, Any]:
    """One entry of results.json."""
    half = 1.96 * float(np.sqrt(value * (1 - value) / n))
    attack = {"norm": norm, "epsilon": epsilon, "steps": 20, "step_size": 0.125, "restarts": 1}
    return {
        "suite": "main", "dataset": "digits test", "metric": "top1", "value": value, "n": n,
        "ci95": [value - half, min(1.0, value + half)], "attack": attack if norm else None,
        "stage": "finetune", "step": 880, "seed": 0, "seconds": 12.34,
    }  # fmt: skip


def log(stage: str, lines: int) -> str:
    """A metrics.jsonl of plausible curves."""
    rng = np.random.default_rng(0)
    rows = []
    for t in np.linspace(0, 1, lines):
        row = {
            "step": round(20 * lines * t) + 1,
            "loss": 3 * np.exp(-4 * t) + 0.5 + 0.08 * rng.standard_normal(),
            "learning_rate": 1e-3 * min(10 * t, 0.5 + 0.5 * np.cos(np.pi * t)),
            "images_per_second": 1240 + 30 * rng.standard_normal(),
            "input_wait": 0.02, "skipped": 0.0,
        }  # fmt: skip
        if stage == "pretrain":
            row |= {
                "feature_std": 0.06 + 0.05 * t + 0.004 * rng.standard_normal(),
                "attack/gain": 0.3 * (1 - t) + 0.2 + 0.03 * rng.standard_normal(),
                "attack/radius": 0.98 - 0.01 * rng.random(), "attack/zero_grad": 0.04 * (1 - t),
            }  # fmt: skip
        else:
            row["accuracy"] = 0.95 - 0.8 * np.exp(-5 * t) + 0.01 * rng.standard_normal()
        rows.append(json.dumps(row))
    return "\n".join(rows) + "\n"


def write_run(folder: pathlib.Path, size: int = 16, pictures: int = 2, lines: int = 70) -> None:
    """Every file of a finished run that the page reads."""
    rng = np.random.default_rng(1)
    for name in ("pretrain", "finetune", "figures"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
    (folder / "results.json").write_text(json.dumps([record(*score) for score in SCORES]))
    (folder / "pretrain" / "metrics.jsonl").write_text(log("pretrain", lines))
    (folder / "finetune" / "metrics.jsonl").write_text(log("finetune", lines // 2))
    handoff = [
        {"name": f"encoder/block_{i}/qkv/kernel", "shape": [64, 192], "status": "carried",
         "reason": "same name and shape"} for i in range(4)
    ]  # fmt: skip
    handoff += [
        {"name": "head/kernel", "shape": [64, 10], "status": "fresh", "reason": "drawn anew (B11)"},
        {"name": "projector/bias", "shape": [256], "status": "dropped", "reason": "only for BYOL"},
    ]
    (folder / "finetune" / "handoff.json").write_text(json.dumps(handoff))
    rows, columns = np.mgrid[:size, :size] / size
    phase = rng.uniform(0, 6, (pictures, 1, 1, 3))
    waves = np.sin(9 * rows + phase[..., 0]) * np.sin(5 * columns + 2 * phase[..., 1])
    clean = (0.5 + 0.45 * waves[..., None] * np.cos(phase)).astype(np.float32)
    delta = rng.normal(size=clean.shape) * np.abs(np.gradient(clean, axis=1))
    delta *= 0.5 / np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
    attacked = np.clip(clean + delta, 0, 1).astype(np.float32)
    attack: dict[str, Any] = {"norm": "l2", "epsilon": 0.5, "steps": 20}
    label = np.arange(2, 2 + pictures) % len(NAMES)
    np.savez(
        folder / "figures" / "gallery.npz", clean_input=clean, attacked_input=attacked, label=label,
        clean_prediction=label, attacked_prediction=(label + label % 2) % len(NAMES),
        class_names=np.array(NAMES), **attack,
    )  # fmt: skip
    np.savez(
        folder / "figures" / "pretrain_gallery.npz",
        clean_input=clean,
        attacked_input=attacked,
        **attack,
    )
    kernel = rng.normal(size=(48, 20)) @ rng.normal(size=(20, 64)) + rng.normal(size=(48, 64))
    components, explained = figures.filter_components(kernel, 4)
    np.savez(folder / "figures" / "filters.npz", components=components, explained=explained)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run with its page."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "whole")
    report.write(folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def page(run: pathlib.Path) -> str:
    return (run / "report.html").read_text()


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = prefix + key
        flat |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def test_every_score_is_there(page: str) -> None:
    for _, _, value in SCORES:
        assert f"<b>{100 * value:.1f}</b>" in page
    for text in ("8/255", "16/255", "L2 ε\xa0=\xa00.25", "97.2%", "n\xa0=\xa0360"):
        assert text in page


def test_every_leaf_of_the_recipe_is_there_with_its_source(page: str) -> None:
    for path, value in leaves({k: v for k, v in CONFIG.items() if k != "sources"}).items():
        text = value if isinstance(value, str) and value else json.dumps(value)
        cells = f'<code>{path}</code></td><td class="text"><code>{html.escape(text)}</code>'
        assert cells in page, path
    for mark in ("changed (recipe: 2.0, PAPER Table 1)", "changed (recipe: 768, REF B1)",
                "changed (recipe: 0.65, PAPER D5)", '"tag PAPER">PAPER A2<', '"tag OURS">OURS<',
                '"tag OPEN">OPEN A4-A6<', '"tag REF">REF B22<', '"tag OURS">OURS A24<',
    ):  # fmt: skip
        assert mark in page, mark
    assert page.count("changed (recipe") == 4


def test_the_rest_is_there(page: str) -> None:
    assert "is missing: the run" not in page
    assert "cannot be shown" not in page
    for text in (
        "BYOL: adversarial pre-training, L2 ε\xa0=\xa01", "4 carried, 1 fresh, 1 dropped",
        "head/kernel", "64 \N{MULTIPLICATION SIGN} 10", "0123abcd", "with uncommitted changes",
        "/tmp/a&amp;b", "/tmp/again", "jax 0.10.2", "0 steps skipped",
    ):  # fmt: skip
        assert text in page, text


def test_the_page_stands_alone(page: str) -> None:
    links = LINKS.findall(page)
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not [text for text in ("<script", "<link", "@import", "url(") if text in page]
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page


def test_its_images_are_those_of_the_folder(run: pathlib.Path, page: str) -> None:
    embedded = re.findall(r"data:image/png;base64,([^\"]+)", page)
    decoded = {base64.b64decode(text, validate=True) for text in embedded}
    assert all(imread(io.BytesIO(data)).ndim == 3 for data in decoded)
    assert decoded == {path.read_bytes() for path in (run / "figures").glob("*.png")}
    assert len(embedded) == 2 + 6 + 3 + 2 + 2 + 1  # norms, panels, cards, filters


def test_text_is_escaped(page: str) -> None:
    assert "label <b>&lt;script&gt;alert(1)&lt;/script&gt;</b>" in page
    assert str(tag("p", "a<b", tag("br"), id='"')) == '<p id="&quot;">a&lt;b<br></p>'


def test_it_is_a_function_of_the_folder(run: pathlib.Path, page: str) -> None:
    assert report.write(run).read_text() == page
    assert not [path for path in run.iterdir() if path.name.startswith(("report.html.", "."))]


def test_of_an_empty_folder(tmp_path: pathlib.Path) -> None:
    page = report.write(tmp_path / "new").read_text()
    for source in SOURCES:
        assert f"{source} is missing" in page


@pytest.mark.parametrize("source", SOURCES)
def test_of_a_single_file(run: pathlib.Path, tmp_path: pathlib.Path, source: str) -> None:
    (tmp_path / source).parent.mkdir(exist_ok=True)
    shutil.copy(run / source, tmp_path / source)
    page = report.write(tmp_path).read_text()
    absent = {s for s in SOURCES if f"{s} is missing" in page}
    assert absent == set(SOURCES) - {source}
    assert "cannot be shown" not in page


@pytest.mark.parametrize("source", [s for s in SOURCES if not s.endswith("jsonl")])
def test_of_a_half_written_file(run: pathlib.Path, tmp_path: pathlib.Path, source: str) -> None:
    (tmp_path / source).parent.mkdir(exist_ok=True)
    data = (run / source).read_bytes()
    (tmp_path / source).write_bytes(data[: len(data) // 2])
    page = report.write(tmp_path).read_text()
    assert f"{source} cannot be shown" in page
    assert ("the same command makes it anew" in page) == source.startswith("figures/")


def test_a_half_written_last_line_is_ignored(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pretrain").mkdir()
    lines = '{"step": 1, "loss": 2.0}\n{"step": 20, "loss": NaN}\n{"step": 40, "lo'
    (tmp_path / "pretrain" / "metrics.jsonl").write_text(lines)
    assert "Up to step 20" in report.write(tmp_path).read_text()


@pytest.mark.parametrize(
    ("weights", "attack", "title"),
    [
        ("", None, "BYOL: nominal pre-training"),
        (
            "",
            {"norm": "linf", "epsilon": 4 / 255, "steps": 2, "step_size": 0.625},
            "L∞ ε\xa0=\xa04/255",
        ),
        (
            "",
            {"norm": "l2", "epsilon": 1.0, "steps": 0, "step_size": 0.625},
            "BYOL: nominal pre-training",
        ),
        ("other/pretrain", None, "Fine-tuning of other/pretrain"),
        ("", "no step", "Fine-tuning of random weights"),
    ],
)
def test_headline(tmp_path: pathlib.Path, weights: str, attack: Any, title: str) -> None:
    pretrain = {**CONFIG["pretrain"], "attack": attack}
    if attack == "no step":
        pretrain |= {"attack": None, "steps": 0}
    config = {**CONFIG, "weights": weights, "pretrain": pretrain}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"{title}</h1>" in report.write(tmp_path).read_text()


def test_the_attack_of_pretraining_is_named(tmp_path: pathlib.Path) -> None:
    attack = CONFIG["pretrain"]["attack"]
    for given, named in ((attack, "PGD"), ({**attack, "name": "momentum"}, "MOMENTUM")):
        config = {**CONFIG, "pretrain": {**CONFIG["pretrain"], "attack": given}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert f"· {named}, 2 steps of 0.625 ε" in report.write(tmp_path).read_text()


def test_nothing_scored_yet_and_only_a_clean_score(tmp_path: pathlib.Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    assert "results.json is missing" in report.write(tmp_path).read_text()
    (tmp_path / "results.json").write_text(json.dumps([record(None, 0.0, 1.0)]))
    assert "no attack evaluated" in report.write(tmp_path).read_text()


def test_a_curve_takes_the_worst_attack_of_a_radius() -> None:
    records = [record(*s) for s in [*SCORES, ("l2", 0.5, 0.7), ("l2", 0.5, 0.9)]]
    curves = curves_of(records, lambda r: r["dataset"])
    (l2,), (linf,) = curves["l2"].values(), curves["linf"].values()
    assert [point[:2] for point in l2] == [[0, 0.972], [0.25, 0.914], [0.5, 0.7], [1.0, 0.531]]
    assert [round(point[0]) for point in linf] == [0, 8, 16]


def test_filter_components_are_those_planted() -> None:
    rng = np.random.default_rng(0)
    # +-1 weights that are orthogonal over the filters: every pixel has mean 0 and the same spread.
    hadamard = np.array([[1]])
    for _ in range(6):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    planted = np.linalg.qr(np.where(rng.random((12, 3)) < 0.5, -1.0, 1.0))[0].T
    pixels = np.ones((12, 1)) * 5 + planted.T @ np.diag([9.0, 3.0, 1.0]) @ hadamard[1:4]
    components, explained = figures.filter_components(pixels, patch=2)
    spread = pixels.std(1)
    _, singular, expected = np.linalg.svd(((pixels - 5) / spread[:, None]).T, full_matrices=False)
    assert components.shape == (12, 2, 2, 3)
    np.testing.assert_allclose(explained[:3], (singular**2 / 12 / 64)[:3], rtol=1e-9)
    assert explained[3:].sum() < 1e-12
    for found, direction in zip(components[:3].reshape(3, -1), expected[:3], strict=True):
        assert abs(np.corrcoef(found, direction)[0, 1]) > 1 - 1e-6


@pytest.mark.parametrize(("patch", "width"), [(4, 64), (4, 5), (2, 40), (8, 128)])
def test_filter_components_laws(patch: int, width: int) -> None:
    kernel = np.random.default_rng(patch).normal(size=(patch * patch * 3, width))
    kernel[0] = 1.0  # a pixel without spread
    components, explained = figures.filter_components(kernel, patch)
    k = min(28, patch * patch * 3, width)
    assert components.shape == (k, patch, patch, 3)
    assert explained.shape == (k,)
    assert explained.sum() <= 1 + 1e-12
    assert (np.diff(explained) <= 1e-12).all()
    np.testing.assert_array_equal(components.min((1, 2, 3)), 0)
    np.testing.assert_array_equal(components.max((1, 2, 3)), 1)
    again, _ = figures.filter_components(-kernel, patch)
    # The sign is a law of the component: turning all filters round changes nothing.
    np.testing.assert_allclose(again[:-1], components[:-1], atol=1e-5)


def test_filter_components_refuse_another_patch() -> None:
    with pytest.raises(ValueError, match="expected"):
        figures.filter_components(np.zeros((48, 8)), patch=8)
    components, explained = figures.filter_components(np.zeros((48, 8)), patch=4)
    assert np.isfinite(components).all()
    assert explained.sum() == 0


@pytest.mark.parametrize(
    ("largest", "factor"),
    [(8 / 255, 10), (6 / 255, 20), (1 / 255, 100), (0.05, 10), (0.12, 4), (1.0, 0.5), (0.0, 1)],
)
def test_amplification(largest: float, factor: float) -> None:
    signs = np.where(np.arange(400).reshape(2, 10, 20) % 2, -1, 1)
    assert figures.amplification((largest * signs).astype(np.float32)) == factor


def test_amplification_is_the_largest_of_one_digit() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        delta = rng.normal(size=1000) * 10 ** rng.uniform(-4, 0)
        factor, reach = figures.amplification(delta), np.quantile(np.abs(delta), 0.99)
        digit, exponent = f"{factor:.0e}".split("e")
        assert factor == float(f"{digit}e{exponent}")
        assert factor * reach <= 0.5001 < (factor + 10.0 ** int(exponent)) * reach


def test_mosaic_is_the_images_enlarged() -> None:
    rows = np.random.default_rng(0).random((2, 3, 8, 8, 3))
    pixels = imread(io.BytesIO(figures.png(figures.mosaic(rows))))[..., :3]
    step = 192 + 8  # an image and the gap behind it
    assert pixels.shape == (2 * step - 8, 3 * step - 8, 3)
    for row in range(2):
        for column in range(3):
            tile = pixels[row * step :, column * step :][:192:24, :192:24]
            np.testing.assert_allclose(tile, rows[row, column], atol=1 / 255)


def test_running_mean() -> None:
    np.testing.assert_allclose(figures.running_mean(np.full(20, 3.0), 5), 3.0)
    np.testing.assert_allclose(figures.running_mean(np.arange(20.0), 5)[2:-2], np.arange(2, 18))


def test_a_curve_ends_with_its_last_value_not_with_its_mean() -> None:
    for count in (5, 100):
        (axes,) = figures.curve(np.arange(count), np.arange(count) / 7, "loss").axes
        assert axes.get_title("right") == f"{(count - 1) / 7:.3g}"
