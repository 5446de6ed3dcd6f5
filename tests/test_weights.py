"""Weights of timm, MAE and Google: their outputs, every name accounted for, and hostile files."""

import argparse
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from typing import Any

import commands
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import OPTIONS, ROOT, TINY, make_task
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from adv_ssl import tasks
from adv_ssl.checkpoint import Checkpoints, State, hand_over
from adv_ssl.data import sources
from adv_ssl.errors import UserError
from adv_ssl.evaluation import predict
from adv_ssl.files import write_json
from adv_ssl.models import vit
from adv_ssl.models.vit import Architecture, ViT, encode, sincos_table
from adv_ssl.weights import files, layouts, torch_zip
from adv_ssl.weights.transfer import Options, export_weights, import_weights

GOLDEN = pathlib.Path(__file__).parent / "golden"
FOLDER = GOLDEN / "weights"
TIMM, MAE = FOLDER / "timm_vit.safetensors", FOLDER / "mae_full.pth"
GOOGLE = {name: FOLDER / f"{name}.npz" for name in ("vision_transformer", "big_vision")}
LARGE = Architecture(image_size=32, patch=8, width=32, depth=2, heads=4, mlp=64)
SMALL = Architecture(image_size=16, patch=4, width=16, depth=1, heads=2, mlp=32)
FOUR, TWO = Options(heads=4), Options(heads=2)
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "weights.npz") as file:
        return dict(file)


def read(workdir: pathlib.Path) -> dict[str, Any]:
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.params()


def flat(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in flatten_dict(read(workdir), sep="/").items()}


def logits(params: dict[str, Any], images: np.ndarray) -> np.ndarray:
    run = jax.jit(lambda encoder, images: encode(ViT(LARGE), encoder, images, None))
    features = run(params["encoder"], images)
    return features @ params["head"]["kernel"] + params["head"]["bias"]


def save(workdir: pathlib.Path, params: Any, architecture: Architecture = TINY) -> None:
    """A stage's folder with ``params`` in it."""
    with Checkpoints(workdir / "checkpoints", architecture) as checkpoints:
        checkpoints.save(State(jnp.int32(7), params, None, None, jnp.int32(0)), wait=True)


def rows(report: dict[str, Any], status: str) -> dict[str, str]:
    """What is said of each name with that status."""
    table = [layouts.Row(**row) for row in report["parameters"]]
    return {row.source or row.target: row.how for row in table if row.status == status}


def changed(path: pathlib.Path, source: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A copy of a file of arrays with others added, by names with __ for dots; None: taken out."""
    arrays = dict(files.read(source).arrays)
    for name, value in changes.items():
        name = name.replace("__", "." if source.suffix == ".safetensors" else "/")
        arrays.pop(name, None)
        if value is not None:
            arrays[name] = value
    if source.suffix == ".safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    else:
        np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def classifier() -> Any:
    """Random parameters of a classifier of ours."""
    return noise(make_task("supervised").init)


# What is computed with imported weights.


def test_a_classifier_of_timm_has_the_logits_of_timm(golden, tmp_path):
    report = import_weights(TIMM, tmp_path, FOUR)
    made = logits(read(tmp_path), golden["images"])
    np.testing.assert_allclose(made, golden["timm/logits"], rtol=1e-5, atol=1e-5)
    assert report["classes"] == 5
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.check(LARGE)
    assert report == json.loads((tmp_path / "import.json").read_text())


def test_another_normalisation_of_pixels_goes_into_the_patch_embedding(golden, tmp_path):
    report = import_weights(TIMM, tmp_path, Options(heads=4, mean=HALF, std=HALF))
    made = logits(read(tmp_path), golden["images"])
    np.testing.assert_allclose(made, golden["timm/logits_half"], rtol=1e-5, atol=1e-5)
    assert np.abs(golden["timm/logits"] - golden["timm/logits_half"]).max() > 0.1
    assert "normalisation" in rows(report, "re-shaped")["patch_embed.proj.bias"]


def test_the_config_of_a_hub_is_heeded(golden, tmp_path):
    shutil.copy(TIMM, tmp_path / "model.safetensors")
    config = {"global_pool": "avg", "pretrained_cfg": {"mean": HALF, "std": HALF}}
    write_json(tmp_path / "config.json", config)
    report = import_weights(tmp_path / "model.safetensors", tmp_path / "avg", FOUR)
    made = logits(read(tmp_path / "avg"), golden["images"])
    np.testing.assert_allclose(made, golden["timm/logits_half"], rtol=1e-5, atol=1e-5)
    assert not any("pixels" in note for note in report["notes"])
    own = Options(heads=4, mean=tuple(vit.MEAN), std=tuple(vit.STD))  # goes before what is stated
    import_weights(tmp_path / "model.safetensors", tmp_path / "own", own)
    made = logits(read(tmp_path / "own"), golden["images"])
    np.testing.assert_allclose(made, golden["timm/logits"], rtol=1e-5, atol=1e-5)

    write_json(tmp_path / "config.json", config | {"global_pool": "max"})
    report = import_weights(tmp_path / "model.safetensors", tmp_path / "max", FOUR)
    assert report["classes"] is None
    assert "'max'" in rows(report, "dropped")["head.weight"]


@pytest.mark.parametrize("name", ["mae", "vision_transformer", "big_vision"])
def test_the_tokens_of_an_encoder_are_those_of_timm(name, golden, tmp_path):
    import_weights(MAE if name == "mae" else GOOGLE[name], tmp_path, TWO)
    images = golden["images"][:, :16, :16]
    run = jax.jit(lambda p, images: encode(ViT(SMALL, pooled=False), p, images, None))
    made = run(read(tmp_path)["encoder"], images)
    np.testing.assert_allclose(made, golden[f"{name}/tokens"], rtol=2e-5, atol=2e-5)


def test_an_imported_encoder_is_handed_over(tmp_path):
    import_weights(MAE, tmp_path, TWO)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.check(SMALL)
        old = checkpoints.params()
    task = tasks.make(OPTIONS["supervised"], ViT(SMALL), 3)
    new, report = hand_over(old, jax.eval_shape(task.init, jax.random.key(0)))
    fresh = {row.name for row in report if row.status == "fresh"}
    norm, head = "encoder/fc_norm", "head"
    assert fresh == {f"{norm}/scale", f"{norm}/bias", f"{head}/kernel", f"{head}/bias"}
    np.testing.assert_array_equal(new["encoder"]["cls_token"], old["encoder"]["cls_token"])


# The report.


@pytest.mark.parametrize("path", [TIMM, MAE, *GOOGLE.values()], ids=lambda path: path.stem)
def test_every_name_of_a_file_is_accounted_for_once(path, tmp_path):
    report = import_weights(path, tmp_path, FOUR if path == TIMM else TWO)
    names = [row["source"] for row in report["parameters"] if row["source"]]
    assert sorted(names) == sorted(files.read(path).arrays)
    targets = {row["target"] for row in report["parameters"] if row["status"] != "missing"}
    assert targets - {""} == set(flat(tmp_path))
    assert all(row["how"] for row in report["parameters"] if row["status"] != "used")
    missing = {"norm", "fc_norm"} - set(read(tmp_path)["encoder"])
    assert set(rows(report, "missing")) == {
        f"encoder/{norm}/{part}" for norm in missing for part in ("scale", "bias")
    }
    assert report["self_test"].startswith("none")
    assert len(report["sha256"]) == 64


def test_the_decoder_of_mae_is_dropped_by_name(tmp_path):
    dropped = rows(import_weights(MAE, tmp_path, TWO), "dropped")
    assert all(re.match("mask_token|decoder_", name) for name in dropped)
    assert len(dropped) == 20


def test_heads_are_those_of_the_file_or_one_for_each_64_of_width(tmp_path):
    report = import_weights(GOOGLE["big_vision"], tmp_path / "google")
    assert report["architecture"]["heads"] == 2
    assert not any("heads" in note for note in report["notes"])
    with pytest.raises(UserError, match=r"--heads=4: the file says 2"):
        import_weights(GOOGLE["big_vision"], tmp_path / "four", FOUR)
    with pytest.raises(UserError, match=r"width 32 is not a multiple of 64, give it as --heads"):
        import_weights(TIMM, tmp_path / "timm")
    wide = random_timm(tmp_path / "wide.safetensors", width=128)
    report = import_weights(wide, tmp_path / "wide")
    assert report["architecture"]["heads"] == 2
    assert any(note.startswith("2 heads: assumed") for note in report["notes"])


def random_timm(path: pathlib.Path, width: int) -> pathlib.Path:
    encoder = ViT(Architecture(8, 4, width, 1, 2, 8))
    params = noise(lambda key: {"encoder": vit.init_encoder(encoder, key)[1]})
    arrays, _ = layouts.to_timm(flatten_dict(params, sep="/"), patch=4)
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def noise(init: Any) -> Any:
    """Random parameters in the shapes of those that ``init`` would make."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def test_a_classifier_by_the_cls_token_gives_its_encoder_alone(tmp_path):
    norm = {"norm__weight": np.ones(32, np.float32), "norm__bias": np.zeros(32, np.float32)}
    path = changed(
        tmp_path / "x.safetensors", TIMM, fc_norm__weight=None, fc_norm__bias=None, **norm
    )
    report = import_weights(path, tmp_path / "w", FOUR)
    assert report["classes"] is None
    assert "cls token" in rows(report, "dropped")["head.weight"]
    assert "head" not in read(tmp_path / "w")
    assert "encoder/fc_norm/scale" in rows(report, "missing")


def test_a_classifier_behind_something_that_is_dropped_is_dropped(tmp_path):
    pool = {"attn_pool__latent": np.ones((1, 1, 32), np.float32)}
    report = import_weights(changed(tmp_path / "x.safetensors", TIMM, **pool), tmp_path / "w", FOUR)
    assert set(rows(report, "dropped")) == {"attn_pool.latent", "head.weight", "head.bias"}


def test_half_precision_is_told_and_read(golden, tmp_path):
    kernel = files.read(TIMM).arrays["head.weight"]
    path = changed(tmp_path / "x.safetensors", TIMM, head__weight=kernel.astype(np.float16))
    report = import_weights(path, tmp_path / "w", FOUR)
    assert "float16 -> float32" in rows(report, "re-shaped")["head.weight"]
    assert read(tmp_path / "w")["head"]["kernel"].dtype == np.float32
    made = logits(read(tmp_path / "w"), golden["images"])
    np.testing.assert_allclose(made, golden["timm/logits"], rtol=5e-3, atol=5e-3)


def test_half_precision_of_our_own_names_is_read_too(classifier, tmp_path):
    save(tmp_path / "w", classifier)
    export_weights(tmp_path / "w", tmp_path / "x.npz")
    halves = {k: v.astype(np.float16) for k, v in files.read(tmp_path / "x.npz").arrays.items()}
    np.savez(tmp_path / "half.npz", **halves)
    import_weights(tmp_path / "half.npz", tmp_path / "h", FOUR)
    kernel = read(tmp_path / "h")["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, read(tmp_path / "w")["head"]["kernel"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", GOOGLE)
def test_bfloat16_in_an_npz_is_recovered(name, tmp_path):
    kernel = next(k for k in files.read(GOOGLE[name]).arrays if k.endswith("embedding/kernel"))
    half = files.read(GOOGLE[name]).arrays[kernel].astype(ml_dtypes.bfloat16)
    path = changed(tmp_path / "x.npz", GOOGLE[name], **{kernel.replace("/", "__"): half})
    np.testing.assert_array_equal(files.read(path).arrays[kernel], half)
    import_weights(path, tmp_path / "w")


def test_big_vision_without_cls_token_and_positions(tmp_path):
    head = {"params__MAPHead_0__probe": np.ones((1, 1, 16), np.float32)}
    path = changed(
        tmp_path / "x.npz",
        GOOGLE["big_vision"],
        params__cls=None,
        params__pos_embedding=None,
        opt__0__count=np.ones(1),
        **head,
    )
    with pytest.raises(UserError, match=r"image size is unknown: .* --image_size"):
        import_weights(path, tmp_path / "w")
    report = import_weights(path, tmp_path / "w", Options(image_size=16))
    assert "encoder/cls_token" in rows(report, "missing")
    assert "attention pooling" in rows(report, "dropped")["params/MAPHead_0/probe"]
    assert "training" in rows(report, "dropped")["opt/0/count"]
    assert rows(report, "computed") == {"encoder/pos_embed": "big_vision's sincos2d table"}
    expected = np.zeros((1, 17, 16))
    for place in range(16):
        angles = [at / 10000 ** (k / 3) for at in (place % 4, place // 4) for k in range(4)]
        x, y = angles[:4], angles[4:]
        expected[0, 1 + place] = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
    np.testing.assert_allclose(read(tmp_path / "w")["encoder"]["pos_embed"], expected, atol=1e-6)


# Position embeddings for another image size.


@pytest.mark.parametrize("grid", [3, 6])
def test_learned_positions_are_resized_as_timm_does(grid, golden, tmp_path):
    report = import_weights(TIMM, tmp_path, Options(heads=4, image_size=8 * grid))
    made = read(tmp_path)["encoder"]["pos_embed"]
    np.testing.assert_allclose(made, golden[f"timm/pos_embed_{grid}"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made[:, 0], golden["timm/pos_embed"][:, 0])
    assert f"to {grid} x {grid}" in rows(report, "re-shaped")["pos_embed"]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.architecture().image_size == 8 * grid


def test_a_fixed_table_is_recomputed_and_one_number_off_is_not(tmp_path):
    table = sincos_table(4, 32)[None]
    fixed = changed(tmp_path / "fixed.safetensors", TIMM, pos_embed=table)
    report = import_weights(fixed, tmp_path / "fixed", Options(heads=4, image_size=48))
    made = read(tmp_path / "fixed")["encoder"]["pos_embed"]
    np.testing.assert_array_equal(made, sincos_table(6, 32)[None])
    assert "recomputed" in rows(report, "re-shaped")["pos_embed"]

    table[0, 5, 3] += 1e-4
    learned = changed(tmp_path / "learned.safetensors", TIMM, pos_embed=table)
    report = import_weights(learned, tmp_path / "learned", Options(heads=4, image_size=48))
    assert "bicubic" in rows(report, "re-shaped")["pos_embed"]


# Out, and back.


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_out_and_back_is_exact(suffix, classifier, tmp_path):
    save(tmp_path / "pretrain", classifier)
    write_json(tmp_path / "config.json", {"pretrain": {"task": {"name": "supervised"}}})
    path = tmp_path / f"out{suffix}"
    export_weights(tmp_path / "pretrain", path)
    report = import_weights(path, tmp_path / "back")
    before = flatten_dict(classifier, sep="/")
    after = flat(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert report["self_test"].startswith("passed")
    assert report["task"] == "supervised"
    with Checkpoints(tmp_path / "back" / "checkpoints") as checkpoints:
        checkpoints.check(TINY)
    manifest = files.read(path).manifest
    assert manifest["stage"] == "pretrain"
    assert manifest["step"] == 7
    with pytest.raises(UserError, match=r"did you mean .*pretrain"):
        export_weights(tmp_path / "pretrain" / "checkpoints", tmp_path / f"again{suffix}")


def test_a_file_of_timm_comes_back_as_it_was(tmp_path):
    import_weights(TIMM, tmp_path / "w", FOUR)
    export_weights(tmp_path / "w", tmp_path / "x.safetensors")
    theirs, ours = load_file(TIMM), load_file(tmp_path / "x.safetensors")
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def references() -> list[Any]:
    """timm's ViTs, torch, and how torch's arrays are saved; skips the test where they are not."""
    names = ("timm.models.vision_transformer", "torch", "safetensors.torch")
    return [pytest.importorskip(name) for name in names]


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_timm_loads_what_is_exported_and_gives_it_back(classifier, tmp_path):
    timm, torch, safetensors = references()
    save(tmp_path / "s", classifier)
    export_weights(tmp_path / "s", tmp_path / "x.safetensors")
    theirs = timm.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2,
        num_classes=3, global_pool="avg",
    )  # fmt: skip
    theirs.load_state_dict(safetensors.load_file(tmp_path / "x.safetensors"), strict=True)
    outputs = files.read(tmp_path / "x.safetensors").manifest["outputs"]
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    images = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    made = theirs.eval()(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(made.detach().numpy().ravel(), outputs, rtol=1e-4, atol=1e-6)
    safetensors.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    import_weights(tmp_path / "theirs.safetensors", tmp_path / "back", TWO)
    for name, value in flatten_dict(classifier, sep="/").items():
        np.testing.assert_array_equal(flat(tmp_path / "back")[name], value, err_msg=name)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_a_vit_b16_of_timm_has_its_logits_on_real_photographs(real_data, tmp_path):
    """From TFDS's JPEGs to logits, against torchvision's arithmetic, Pillow's pixels and timm."""
    timm, torch, safetensors = references()
    torch.manual_seed(0)
    theirs = timm.VisionTransformer(global_pool="avg").eval()  # ViT-B/16 of 1000 classes
    for parameter in theirs.parameters():  # biases and norms too, which begin as zeros and ones
        parameter.data += 0.03 * torch.randn_like(parameter)
    safetensors.save_file(theirs.state_dict(), tmp_path / "vit_b16.safetensors")
    import_weights(tmp_path / "vit_b16.safetensors", tmp_path / "w")
    source = sources.load("imagenet2012:5.*", "validation[:6]", str(real_data))
    ours = predict.predict(predict.load(tmp_path / "w"), source, "photographs", 256, 4).logits
    pixels = np.stack([cropped(record["image"]) for record in source.records])
    x = torch.from_numpy(((pixels / 255 - vit.MEAN) / vit.STD).astype(np.float32))
    with torch.no_grad():
        expected = theirs(x.permute(0, 3, 1, 2)).numpy()
    assert expected.std(axis=0).mean() > 0.1  # images differ in what is said of them
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def cropped(image: np.ndarray) -> np.ndarray:
    """torchvision's Resize(256, BICUBIC), of Pillow images, and CenterCrop(224)."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = [256 if side == short else int(256 * side / short) for side in (width, height)]
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in size)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def test_what_timm_has_no_name_for_is_dropped_or_made(tmp_path):
    save(tmp_path / "s", noise(make_task("mae").init))
    table = export_weights(tmp_path / "s", tmp_path / "x.safetensors")
    dropped = {row.source for row in table if row.status == "dropped"}
    assert {name.split("/")[0] for name in dropped} == {"decoder"}
    arrays = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(arrays["pos_embed"], sincos_table(2, 16)[None])
    report = import_weights(tmp_path / "x.safetensors", tmp_path / "back")
    assert report["self_test"].startswith("passed")
    everything = export_weights(tmp_path / "s", tmp_path / "x.npz")
    assert {row.status for row in everything} == {"used"}
    import_weights(tmp_path / "x.npz", tmp_path / "all")
    assert flat(tmp_path / "all").keys() == flat(tmp_path / "s").keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_changed_weights_do_not_pass_the_self_test(suffix, classifier, tmp_path):
    save(tmp_path / "s", classifier)
    path = tmp_path / f"x{suffix}"
    export_weights(tmp_path / "s", path)
    arrays, manifest = files.read(path)
    name = next(name for name in arrays if re.search("block.*0.*mlp.*fc1.*bias", name))
    arrays[name] = arrays[name] + np.float32(0.01)
    files.write(path, arrays, manifest)
    with pytest.raises(UserError, match=r"self-test: outputs differ .* 0\.0001 is accepted"):
        import_weights(path, tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": {"image_size": 8}}, "architecture is damaged"),
        ({"architecture": {**vars(TINY), "depth": 10**9}}, "depth=1000000000: must be 1000 blocks"),
        ({"outputs": [1.0]}, "1 outputs are stored, there are 6 here"),
        ({"outputs": "x"}, "outputs are damaged"),
        ({"mean": [124, 116, 104]}, r"in units of pixels in \[0, 1\]"),
    ],
)
def test_a_damaged_manifest(change, said, classifier, tmp_path):
    save(tmp_path / "s", classifier)
    export_weights(tmp_path / "s", tmp_path / "x.npz")
    arrays, manifest = files.read(tmp_path / "x.npz")
    files.write(tmp_path / "x.npz", arrays, manifest | change)
    refused(tmp_path / "x.npz", said, TWO)


# What is refused, each in one line.


def refused(path: pathlib.Path, said: str, options: Options = FOUR) -> None:
    """One line that names the file, and nothing is written."""
    with pytest.raises(UserError, match=said) as raised:
        import_weights(path, path.parent / "refused", options)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert not (path.parent / "refused").exists()


HOSTILE = {
    "empty": (b"", "is empty"),
    "a web page": (b"\n<!DOCTYPE html><html>quota exceeded</html>", "is a web page"),
    "words": (b"version https://git-lfs.github.com/spec/v1", "of no known format"),
    "old torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "of a torch before 1.6"),
    "zip cut short": (MAE.read_bytes()[:20000], "damaged or cut short"),
    "npz cut short": (GOOGLE["big_vision"].read_bytes()[:9000], "damaged or cut short"),
    "safetensors cut short": (TIMM.read_bytes()[:-100], "damaged or cut short"),
    "a name in no code": (
        b"mae_full/\xff".join(MAE.read_bytes().rsplit(b"mae_full/b", 1)),
        "damaged or cut short",
    ),
    "a type of 8 bits": (
        struct.pack("<Q", 65)
        + b'{"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'
        + b"\0",
        "numbers that are not read here",
    ),
    "a header alone": (TIMM.read_bytes()[:500], "damaged or cut short"),
    "a header of nonsense": (b"\x08\0\0\0\0\0\0\0{'a': b}", "damaged or cut short"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_file_of_weights(name, tmp_path):
    content, said = HOSTILE[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refused(path, said)


def test_no_file_at_all(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is a folder: name one file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no regular file")
    refused(tmp_path / "nowhere.pth", "No such file")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "x.zip", "without weights in it")


@pytest.mark.parametrize("source", [MAE, GOOGLE["big_vision"]], ids=["pth", "npz"])
def test_a_flipped_byte_is_noticed(source, tmp_path):
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        largest = max(archive.infolist(), key=lambda info: info.compress_size)
    content[largest.header_offset + 200] ^= 1
    path = tmp_path / "x"
    path.write_bytes(content)
    refused(path, "damaged")


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "x.npz", **{"embedding/kernel": np.array([Bomb()], dtype=object)})
    refused(tmp_path / "x.npz", "more than arrays")
    assert not (tmp_path / "executed").exists()


CHANGES = {
    "layer scale": ({"blocks__0__ls1__gamma": np.ones(32)}, r"ls1\.gamma: LayerScale"),
    "norms of queries": ({"blocks__0__attn__q_norm__weight": np.ones(8)}, "norms of queries"),
    "registers": ({"reg_token": np.ones((1, 4, 32))}, "register tokens"),
    "distillation": ({"dist_token": np.ones((1, 1, 32))}, "distillation token"),
    "a name nobody knows": ({"blocks__0__gate": np.ones(3)}, r"blocks\.0\.gate: unknown parameter"),
    "a missing block": (
        {f"blocks__0__{n}": None for n in ("norm1__weight", "norm1__bias", "norm2__weight",
         "norm2__bias", "attn__qkv__weight", "attn__qkv__bias", "attn__proj__weight",
         "attn__proj__bias", "mlp__fc1__weight", "mlp__fc1__bias", "mlp__fc2__weight",
         "mlp__fc2__bias")},
        "block 0 is missing, there are others up to 1",
    ),
    "a far block": ({"blocks__999999999__norm1__bias": np.ones(32)}, "block 2 is missing"),
    "a missing parameter": ({"blocks__1__attn__qkv__bias": None}, r"block_1/attn/qkv/bias is miss"),
    "no norm": ({"fc_norm__weight": None, "fc_norm__bias": None}, "norm/bias and 1 more is miss"),
    "half a head": ({"head__bias": None}, "head/bias is missing"),
    "the other half": ({"head__weight": None}, "head/kernel is missing"),
    "half a norm": ({"fc_norm__bias": None}, r"encoder/fc_norm/bias is missing"),
    "no positions": ({"pos_embed": None}, "image size is unknown"),
    "positions of 15": ({"pos_embed": np.ones((1, 15, 32))}, "only a square grid"),
    "another width": ({"cls_token": np.ones((1, 1, 24))}, r"cls_token is \(1, 1, 24\) there"),
    "a head of another width": ({"head__weight": np.ones((5, 24))}, r"head/kernel is \(24, 5\)"),
    "four channels": ({"patch_embed__proj__weight": np.ones((32, 4, 8, 8))}, "of 4 channels"),
    "oblong patches": ({"patch_embed__proj__weight": np.ones((32, 3, 8, 4))}, "8 x 4 patches"),
    "a flat convolution": ({"patch_embed__proj__weight": np.ones((32, 192))}, "expected 4 axes"),
    "not finite": ({"head__bias": np.full(5, np.nan)}, "not finite"),
    "another architecture": (
        {"patch_embed__proj__weight": None, "conv1__weight": np.ones((8, 3, 7, 7))},
        "of no ViT that is known here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_our_encoder_cannot_be(name, tmp_path):
    changes, said = CHANGES[name]
    changes = {k: v if v is None else v.astype(np.float32) for k, v in changes.items()}
    refused(changed(tmp_path / "x.safetensors", TIMM, **changes), said)


GOOGLES = {
    "words": ("Transformer/encoder_norm/bias", np.array(["a"] * 16), "is of type <U1"),
    "nothing": ("embedding/kernel", np.ones((4, 4, 3, 0)), "there is no number in it"),
    "another key": (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel",
        np.ones((12, 2, 8)),
        r"different shapes, \(16, 16\), \(12, 16\), \(16, 16\)",
    ),
    "no key": (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel",
        None,
        "block_0/attn/qkv/kernel is missing",
    ),
    "heads in one axis": (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel",
        np.ones((16, 16)),
        "expected 3 axes",
    ),
    "a name of the other layout": (
        "Transformer/encoderblock_0/LayerNorm_1/bias",
        np.ones(16),
        "a second encoder/block_0/norm2/bias",
    ),
    "norms of keys": (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key_norm/scale",
        np.ones(8),
        "norms of queries and keys",
    ),
}


@pytest.mark.parametrize("name", GOOGLES)
def test_what_our_encoder_cannot_be_of_google(name, tmp_path):
    key, value, said = GOOGLES[name]
    changes = {key.replace("/", "__"): value}
    refused(changed(tmp_path / "x.npz", GOOGLE["vision_transformer"], **changes), said, TWO)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 5}, r"width=32 is not divisible by heads=5"),
        ({"heads": 4, "image_size": 36}, r"image_size=36 is not divisible by patch=8"),
    ],
)
def test_options_that_do_not_fit(options, said, tmp_path):
    shutil.copy(TIMM, tmp_path / "x")
    refused(tmp_path / "x", said, Options(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": (124.0, 116.0, 104.0)}, r"--mean=.*in units of pixels in \[0, 1\]"),
        ({"std": (0.5, 0.5, 0.0)}, "--std="),
        ({"mean": (0.5,)}, "expected one number for red"),
        ({"std": ()}, "--std="),
        ({"image_size": 0}, "image_size=0: must be 1 or more"),
        ({"mean": (float("nan"),) * 3}, "--mean="),
        ({"heads": 0}, "heads=0: must be 1 or more"),
    ],
)
def test_options_that_make_no_sense(options, said, tmp_path):
    shutil.copy(TIMM, tmp_path / "x")
    refused(tmp_path / "x", said, Options(**{"heads": 4, **options}))


def test_the_folder_of_a_run_is_no_place_for_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a run: choose another --workdir"):
        import_weights(TIMM, tmp_path, FOUR)
    assert not (tmp_path / "checkpoints").exists()


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"o\.npz cannot be written"):
        files.write(tmp_path / "file" / "o.npz", {"a": np.zeros(1, np.float32)}, {})


def test_a_folder_is_written_once(tmp_path):
    import_weights(TIMM, tmp_path, FOUR)
    with pytest.raises(UserError, match="has checkpoints already: choose another --workdir"):
        import_weights(TIMM, tmp_path, FOUR)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.safetensors .* or \.npz"):
        export_weights(tmp_path, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no checkpoint in it; name the folder of a stage"):
        export_weights(tmp_path, tmp_path / "x.npz")
    with pytest.raises(UserError, match="no checkpoint in it; name the folder of a stage"):
        export_weights(tmp_path / "nowhere", tmp_path / "x.npz")
    import_weights(TIMM, tmp_path / "w", FOUR)
    with pytest.raises(UserError, match="cannot be written"):
        export_weights(tmp_path / "w", pathlib.Path("/proc/x.npz"))
    assert not list(tmp_path.glob("x*"))


# Pickles.


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, kind: str = "FloatStorage"
) -> bytes:
    """The pickle of one tensor over storage 0 of 12 numbers, written out as torch does."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu")
    sizes = b"(" + b"".join(map(number, size)) + b"t(" + b"".join(map(number, stride)) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage + number(12) + b"tQ" + number(offset) + sizes)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def pth(path: pathlib.Path, content: bytes, dtype: Any = np.float32, **kwargs: Any) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", np.arange(12).astype(dtype).tobytes())
    return path


def state(*pairs: tuple[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in pairs) + b"u."


def test_a_tensor_is_a_strided_view(tmp_path):
    content = state(
        ("whole", tensor((3, 4), (4, 1))),
        ("transposed", tensor((4, 3), (1, 4))),
        ("part", tensor((2, 2), (4, 1), offset=5)),
        ("scalar", tensor((), (), offset=7)),
        ("none", tensor((0, 4), (4, 1))),
    )
    arrays = torch_zip.read(pth(tmp_path / "x.pth", content))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(arrays["whole"], whole)
    np.testing.assert_array_equal(arrays["transposed"], whole.T)
    np.testing.assert_array_equal(arrays["part"], whole[1:3, 1:3])
    assert arrays["scalar"] == 7
    assert arrays["none"].shape == (0, 4)


def test_attributes_of_a_dict_are_not_restored(tmp_path):
    """torch keeps _metadata there; a hostile one could put something in the place of a method."""
    content = OrderedDict()
    content.get = 1
    assert torch_zip.read(pth(tmp_path / "x.pth", pickle.dumps({"model": content}))) == {}
    assert torch_zip.read(pth(tmp_path / "y.pth", pickle.dumps(content))) == {}


def test_the_options_beside_a_model_are_not_read(tmp_path):
    """MAE's training saves its argparse.Namespace with the weights."""
    content = {"model": OrderedDict(), "args": argparse.Namespace(lr=1e-3), "epoch": 7}
    assert torch_zip.read(pth(tmp_path / "x.pth", pickle.dumps(content))) == {}
    hostile = {"model": OrderedDict(), "args": argparse.Namespace(lr=pathlib.Path("x"))}
    with pytest.raises(UserError, match=r"asks for pathlib\..*, which is refused"):
        torch_zip.read(pth(tmp_path / "y.pth", pickle.dumps(hostile)))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("HalfStorage", np.float16), ("BFloat16Storage", ml_dtypes.bfloat16), ("LongStorage", "i8")],
)
def test_types_of_numbers(kind, dtype, tmp_path):
    content = state(("x", tensor((12,), (1,), kind=kind)))
    made = torch_zip.read(pth(tmp_path / "x.pth", content, dtype))["x"]
    assert made.dtype == dtype
    np.testing.assert_array_equal(made.astype(float), np.arange(12))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((13,), (1,), 0), ((3, 4), (5, 1), 0), ((2,), (1,), 11), ((2,), (-1,), 3), ((1,), (1,), -1),
     ((2**30, 2**30), (0, 0), 0), ((2, 2), (1,), 0)],
)  # fmt: skip
def test_a_tensor_beyond_its_numbers(size, stride, offset, tmp_path):
    refused(pth(tmp_path / "x.pth", state(("x", tensor(size, stride, offset)))), "is damaged")


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_bomb_does_not_go_off(tmp_path):
    executed = tmp_path / "executed"
    bombs = {
        r"(posix|nt)\.system": Reduced(os.system, f"touch {executed}"),
        r"(builtins|__builtin__)\.eval": Reduced(eval, f"open({str(executed)!r}, 'w').close()"),
    }
    for said, bomb in bombs.items():
        for protocol in (0, 2, 4):
            content = pickle.dumps({"model": {"x": bomb}}, protocol)
            refused(pth(tmp_path / "x.pth", content), rf"asks for {said}, which is refused")
            assert not executed.exists()
            pickle.loads(content)  # it would have
            assert executed.exists()
            executed.unlink()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(OSError), r"asks for builtins\.OSError"),
        (pickle.dumps([1, 2]), "holds a list, not a dict of tensors by name"),
        (pickle.dumps({1: 2}), "holds a dict, not a dict of tensors by name"),
        (pickle.dumps({"model": {"epoch": 3}}), "epoch is a int, not a tensor"),
        (pickle.dumps({"x": 1})[:-3], "is damaged"),
        (state(("x", b"(" + text("module") + text("os") + b"tQ")), "is damaged"),
        (state(("x", b"ccollections\nOrderedDict\n(" + number(1) + b"tR")), "is damaged"),
        (state(("x", tensor((12,), (1,), kind="ByteStorage"))), r"asks for torch\.ByteStorage"),
    ],
)
def test_a_pickle_of_something_else(content, said, tmp_path):
    refused(pth(tmp_path / "x.pth", content), said)


def test_a_compressed_member_is_refused(tmp_path):
    content = state(("x", tensor((12,), (1,))))
    path = pth(tmp_path / "x.pth", content, compression=zipfile.ZIP_DEFLATED)
    refused(path, "asks for the compressed member archive/data.pkl")


def test_big_endian_numbers_are_refused(tmp_path):
    path = pth(tmp_path / "x.pth", state(("x", tensor((12,), (1,)))))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    refused(path, "numbers in big-endian order")


# The command.


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "adv_ssl.weights", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_in_and_out(tmp_path):
    done = command("import", TIMM, f"--workdir={tmp_path / 'w'}", "--heads=4", "--std=1,1,.5")
    assert done.returncode == 0, done.stderr
    assert f"--config.weights={tmp_path / 'w'}" in done.stdout
    assert "used   2" in done.stdout
    assert "note: mean of pixels 0.485, 0.456, 0.406: assumed" in done.stdout
    done = command("export", tmp_path / "w", tmp_path / "x.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{tmp_path / 'x.npz'}\n")
    assert files.read(tmp_path / "x.npz").arrays.keys() == flat(tmp_path / "w").keys()


MISTAKES = {
    "import /nowhere.pth --workdir=w": "/nowhere.pth cannot be read",
    f"import {TIMM}": "import needs --workdir=DIR",
    f"import {TIMM} --workdir=w --heads=4 --mean=a,b,c": "--mean=['a', 'b', 'c']: expected one",
    f"import {TIMM} --workdir=w --head=4": "Unknown command line flag 'head'",
    "export w x.npz --heads=4": "export takes no options",
    "exprot w x.npz": "exprot w x.npz: expected import PATH --workdir=DIR",
    "": "nothing: expected import PATH",
}


def test_mistakes_in_the_command(tmp_path):
    imports = ["adv_ssl.command", "adv_ssl.weights.transfer"]
    lines = [line.split() for line in MISTAKES]
    found = commands.ran("adv_ssl.weights", imports, lines, tmp_path)
    for said, (code, _, error) in zip(MISTAKES.values(), found, strict=True):
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error
