"""Laws of the sources, the host transforms and the loader."""

import errno
import io
import json
import logging
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_sets
from PIL import Image

from adv_ssl.data import sources, transforms
from adv_ssl.data.loader import eval_batches, train_batches
from adv_ssl.data.randaugment import RandAugment
from adv_ssl.data.sources import UNLABELLED, Records, Source, load
from adv_ssl.data.transforms import Augment
from adv_ssl.errors import UserError

# ---- sources --------------------------------------------------------------------------------


def numbered(count: int, size: int = 6, classes: int = 1000) -> Source:
    """Image i is all i, and so is its label: an example tells where it comes from."""

    def read(i: int) -> tuple[np.ndarray, int]:
        return np.full((size, size, 3), i, np.uint8), i

    return Source(Records("numbered", count, classes, read), classes, ())


def save(path: pathlib.Path, value: Any = 100, **options: Any) -> pathlib.Path:
    """Writes an image: a colour as 5 x 4 pixels, or an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((5, 4, 3), value, np.uint8) if isinstance(value, int | tuple) else value
    Image.fromarray(pixels).save(path, **options)
    return path


def folder(root: pathlib.Path, split: str = "train") -> Source:
    return load(f"folder:{root}", split, "")


def first(root: pathlib.Path) -> np.ndarray:
    return folder(root).records[0]["image"]


def contents(source: Source) -> list[tuple[int, int]]:
    return sorted((int(r["image"][0, 0, 0]), r["label"]) for r in source.records)


def test_digits_are_complete_disjoint_and_stratified():
    from sklearn.datasets import load_digits

    train, test = load("digits", "train", ""), load("digits", "test", "")
    assert (len(train.records), len(test.records), train.num_classes) == (1437, 360, 10)
    assert train.class_names == tuple("0123456789")
    both = [r for source in (train, test) for r in source.records]
    pixels, labels = load_digits(return_X_y=True)
    expected = [(x.tobytes(), y) for x, y in zip(pixels, labels, strict=True)]
    grey = [(r["image"][..., 0] / 255 * 16).round().astype(float).tobytes() for r in both]
    assert sorted(zip(grey, (r["label"] for r in both), strict=True)) == sorted(expected)
    assert max(r["image"].max() for r in both) == 255
    shares = np.bincount([r["label"] for r in test.records])
    assert np.ptp(shares) <= 2
    assert_same(test.records, load("digits", "test", "").records)


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train[:10%]", slice(0, 144)),
        ("train[10%:]", slice(144, None)),
        ("train[:50]", slice(0, 50)),
        ("train[-7:]", slice(-7, None)),
        ("train[20:30]", slice(20, 30)),
    ],
)
def test_slices(split: str, part: slice):
    labels = [r["label"] for r in load("digits", "train", "").records]
    assert [r["label"] for r in load("digits", split, "").records] == labels[part]


def test_sum_of_splits():
    assert len(load("digits", "train[:5]+test", "").records) == 365


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train[:50]", "train[40:60]", 10),
        ("train[:50]", "train[50:]", 0),
        ("train", "test", 0),
        ("train+test", "test[10:30]", 20),
        ("train[:30]+train[100:130]", "train[20:110]", 20),
    ],
)
def test_images_that_two_splits_share(one: str, other: str, shared: int):
    a, b = load("digits", one, ""), load("digits", other, "")
    assert (a.shared(b), b.shared(a)) == (shared, shared)


@pytest.mark.parametrize("split", ["nope", "train[", "train[:0]", "train[9:3]", "train[:200%]", ""])
def test_unknown_or_empty_splits_are_named_with_what_there_is(split: str):
    with pytest.raises(UserError, match=r"choose from train \(1437 images\), test \(360 images\)"):
        load("digits", split, "")


def test_labels_are_checked_where_they_are_read():
    records = numbered(5, classes=3).records
    assert records[2]["label"] == 2
    with pytest.raises(UserError, match=r"record 3 has label 3, outside \[0, 3\)"):
        records[3]
    with pytest.raises(IndexError):
        records[5]


def test_folder_with_split_folders(tmp_path: pathlib.Path, caplog):
    for i, name in enumerate(("train/cat", "train/dog/puppies", "train/eel", "val/dog")):
        save(tmp_path / name / "a.PNG", i * 10)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    save(tmp_path / "train/cat/.hidden.png")
    train, validation = folder(tmp_path), folder(tmp_path, "validation")
    assert train.class_names == validation.class_names == ("cat", "dog", "eel")
    assert contents(train) == [(0, 0), (10, 1), (20, 2)]
    assert contents(validation) == [(30, 1)]  # dog is 1 though cat is not there
    with pytest.raises(UserError, match=r"choose from train \(3 images\), validation \(1 images\)"):
        folder(tmp_path, "test")
    assert not caplog.records
    save(tmp_path / "val/Dog/a.png")
    assert folder(tmp_path).num_classes == 4
    assert "1 classes of validation have no image in train, such as Dog:" in caplog.text


def test_folder_is_divided_by_file_name(tmp_path: pathlib.Path, caplog):
    caplog.set_level(logging.INFO)
    for i in range(250):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    train, test = contents(folder(tmp_path)), contents(folder(tmp_path, "test"))
    assert sorted(train + test) == [(i, i % 2) for i in range(250)]
    assert 10 < len(test) < 45
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(f"by file name {len(train)} of its images are train, {len(test)} test.")
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    assert contents(folder(tmp_path.with_name("copy"), "test")) == test
    for path in list(tmp_path.glob("a/1*.png")):
        path.unlink()
    assert set(contents(folder(tmp_path, "test"))) < set(test)  # the others stay where they were
    labels = [r["label"] for r in folder(tmp_path, "train[:40]").records]
    assert 8 < sum(labels) < 36  # a slice has classes mixed


def test_unlabelled_folder(tmp_path: pathlib.Path):
    for i in range(20):
        save(tmp_path / "train" / f"{i}.bmp", i)
    source = folder(tmp_path)
    assert (source.num_classes, source.class_names) == (0, ())
    assert contents(source) == [(i, UNLABELLED) for i in range(20)]


def test_folder_mistakes(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="there is no folder"):
        folder(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no images in it; files end in \.jpg"):
        folder(tmp_path)
    save(tmp_path / "train" / "cat" / "0.png")
    stray = save(tmp_path / "train" / "1.png")
    with pytest.raises(UserError, match=f"{stray} lies beside the folders of the classes"):
        folder(tmp_path)
    stray.unlink()
    save(tmp_path / "plane" / "0.png")
    with pytest.raises(UserError, match="is train a split or a class"):
        folder(tmp_path)


def test_a_link_to_nowhere_is_named_before_any_image_is_read(tmp_path: pathlib.Path):
    save(tmp_path / "train" / "cat" / "0.png", 1)
    (tmp_path / "train" / "cat" / "1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"1\.png: a link to nowhere"):
        folder(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: pathlib.Path):
    root = tmp_path / "root"
    save(root / "train" / "cat" / "0.png", 1)
    save(tmp_path / "elsewhere" / "1.png", 2)
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "train" / "cat" / "up").symlink_to(root, target_is_directory=True)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "top").symlink_to("/", target_is_directory=True)
    assert contents(folder(root)) == [(1, 0), (2, 1)]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "webp", "jpg", "JPEG"])
def test_formats(tmp_path: pathlib.Path, suffix: str):
    save(
        tmp_path / "train" / f"a.{suffix}",
        (200, 100, 50),
        **({"lossless": True} if suffix == "webp" else {}),
    )
    image = first(tmp_path)
    assert image.shape == (5, 4, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image[0, 0], (200, 100, 50), atol=3)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (77, 128), "png", (77, 77, 77)),
        ("RGBA", (1, 2, 3, 128), "png", (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("P", 0, "png", (9, 8, 7)),
        ("I;16", 0, "png", (0, 0, 0)),
        ("I;16", 257 * 77, "png", (77, 77, 77)),
        ("I;16", 65535, "tif", (255, 255, 255)),
    ],
)
def test_modes_become_rgb(
    tmp_path: pathlib.Path, mode: str, colour: Any, suffix: str, expected: tuple[int, ...]
):
    image = Image.new(mode, (4, 5), colour)
    if mode == "P":
        image.putpalette([9, 8, 7])
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / f"a.{suffix}")
    image = first(tmp_path)
    assert (image.shape, image.dtype) == ((5, 4, 3), np.uint8)
    np.testing.assert_allclose(image, np.broadcast_to(expected, (5, 4, 3)), atol=2)


def test_exif_orientation(tmp_path: pathlib.Path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    save(tmp_path / "train" / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(first(tmp_path), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_broken_files_are_named(tmp_path: pathlib.Path, suffix: str, damage: str):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = save(tmp_path / "train" / f"broken.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"hello"}[damage])
    with pytest.raises(UserError, match=f"{path}: not a readable image") as caught:
        first(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Opening an image raises ``error``, ``times`` times; ``opened`` counts all attempts."""
    plan: dict[str, Any] = {"error": None, "times": 0, "opened": 0}
    really = Image.open

    def opening(path: Any) -> Image.Image:
        plan["opened"] += 1
        if plan["opened"] <= plan["times"]:
            raise plan["error"]
        return really(path)

    monkeypatch.setattr(Image, "open", opening)
    monkeypatch.setattr(sources, "WAITS", (0.0, 0.0))
    return plan


def test_a_read_that_the_network_failed_is_tried_again(tmp_path, failing, caplog, monkeypatch):
    path = save(tmp_path / "train" / "a.png", 7)
    monkeypatch.setattr(sources, "KEPT_BYTES", 0)
    failing |= {"error": OSError(errno.EIO, "Input/output error"), "times": 2}
    source = folder(tmp_path)
    assert source.records[0]["image"][0, 0, 0] == 7
    assert len(source.records.failures) == 2
    assert f"{path}: not a readable image" in caplog.text
    assert "Trying again after 0 s; failed reads: 2." in caplog.text
    failing |= {"times": 6, "opened": 0}
    with pytest.raises(UserError, match="Input/output error"):
        source.records[0]
    assert failing["opened"] == 3


@pytest.mark.parametrize(("room", "opened"), [(120, 2), (119, 6)])
def test_images_that_all_fit_into_memory_are_decoded_once(
    tmp_path, failing, monkeypatch, room: int, opened: int
):
    for name in ("a", "b"):
        save(tmp_path / "train" / f"{name}.png", ord(name))  # 60 bytes of pixels
    monkeypatch.setattr(sources, "KEPT_BYTES", room)
    source = folder(tmp_path)
    assert len({str(contents(source)) for _ in range(3)}) == 1
    assert failing["opened"] == opened


def test_a_broken_file_is_not_tried_again(tmp_path, failing):
    (save(tmp_path / "train" / "a.png")).write_bytes(b"text")
    with pytest.raises(UserError, match="cannot identify"):
        first(tmp_path)
    assert failing["opened"] == 1


# ---- TFDS -----------------------------------------------------------------------------------


class Tiny(tfds.core.GeneratorBasedBuilder):
    """A set in TFDS's own layout, written by TFDS: PNG bytes, so that it needs no TensorFlow."""

    VERSION = tfds.core.Version("1.2.0")
    channels = 3

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, self.channels), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(30), "test": self._generate_examples(4)}

    def _generate_examples(self, count: int) -> Iterator[Any]:
        for i in range(count):
            pixels = np.full((8, 9, self.channels), i, np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels.squeeze()).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3}


class TinyGrey(Tiny):
    channels = 1


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("tfds")
    for builder in (Tiny, TinyGrey):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.mark.parametrize("name", ["tiny", "tiny:1.2.0", "tiny:1.*", "tiny:1.*.*", "tiny_grey"])
def test_tfds(prepared: pathlib.Path, name: str):
    source = load(name, "train", str(prepared))
    assert (source.num_classes, source.class_names) == (3, ("a", "b", "c"))
    assert contents(source) == [(i, i % 3) for i in range(30)]
    assert source.records[0]["image"].shape == (8, 9, 3)
    tenth, rest = (load(name, s, str(prepared)) for s in ("train[:10%]", "train[10%:]"))
    assert (len(tenth.records), len(rest.records)) == (3, 27)
    assert sorted(contents(tenth) + contents(rest)) == contents(source)


def test_a_tfds_split_whose_labels_are_left_out_has_none(tmp_path: pathlib.Path):
    """As stl10's ``unlabelled``, or the test split of ImageNet: TFDS takes -1 for no label."""
    features = {"label": tfds.features.ClassLabel(names=["a", "b"])}
    examples = [{"image": image, "label": -1} for image in tfds_sets.images(3)]
    tfds_sets.write(tmp_path, "bare:1.0.0", "unlabelled", features, examples)
    source = load("bare", "unlabelled", str(tmp_path))
    assert (source.num_classes, source.class_names) == (0, ())
    assert [record["label"] for record in source.records] == [UNLABELLED] * 3


def test_tfds_folder_from_the_environment(prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(load("tiny", "test", "").records) == 4
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    with pytest.raises(UserError, match=r"'tiny' is not prepared in /nowhere"):
        load("tiny", "test", "")


@pytest.mark.parametrize("name", ["cifar10:3.0.2", "no_such_set", "tiny:2.0.0", "not a name"])
def test_tfds_set_that_is_not_prepared(prepared: pathlib.Path, name: str):
    command = f"tfds build {name} --file_format=array_record --data_dir={prepared}"
    with pytest.raises(UserError, match=f"not prepared in {prepared} .*: {command}$"):
        load(name, "train", str(prepared))


def test_tfds_set_in_another_format(prepared: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny" / "1.2.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    for path in info.parent.glob("*array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="as tfrecord, which has no random access"):
        load("tiny", "train", str(tmp_path))


def test_tfds_set_with_a_shard_missing(prepared: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    next((tmp_path / "tiny" / "1.2.0").glob("*train*")).unlink()
    assert len(load("tiny", "test", str(tmp_path)).records) == 4
    with pytest.raises(UserError, match=r"is incomplete: .*train.* is missing"):
        load("tiny", "train", str(tmp_path))


def test_tfds_unknown_split(prepared: pathlib.Path):
    with pytest.raises(UserError, match=r"choose from train \(30 images\), test \(4 images\)"):
        load("tiny", "validation", str(prepared))


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [
        ("cifar10:3.0.2", "train", 50_000, 10),
        ("imagenet2012:5.*", "validation", None, 1000),
        ("geirhos_conflict_stimuli:1.0.0", "test", None, 0),
    ],
)
def test_real_sets(real_data: pathlib.Path, name: str, split: str, count: int | None, classes: int):
    source = load(name, split, str(real_data))
    assert source.num_classes == classes
    assert count is None or len(source.records) == count
    batch = next(eval_batches(source, image_size=32, resize=36, batch_size=16))
    assert batch["mask"].all()
    assert 20 < batch["image"].std() < 120
    assert classes == 0 or 0 <= batch["label"].min() <= batch["label"].max() < classes


# ---- host transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("box", [transforms.torchvision_box, transforms.byol_box])
def test_boxes_lie_inside_with_the_areas_and_ratios_asked_for(box: Callable[..., transforms.Box]):
    rng = np.random.default_rng(0)
    boxes = np.array([box(300, 400, rng, 0.08) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (top + h).max() <= 300
    assert (left + w).max() <= 400
    fits = (h < 300) & (w < 400)
    area, ratio = (h * w / 120_000)[fits], (w / h)[fits]
    assert area.min() > 0.075
    assert area.max() < 1.005
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    # below a half every box fits, so there the area is uniform and log ratio symmetric about 0
    small = area < 0.5
    counts, _ = np.histogram(area[small], bins=6, range=(0.08, 0.5))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    assert abs(np.log(ratio[small]).mean()) < 0.02
    assert np.log(ratio[small]).std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.05)
    assert len(np.unique(top)) > 100


def test_the_two_rules_differ_where_a_crop_does_not_fit():
    rng = np.random.default_rng(0)
    wide = np.array([transforms.torchvision_box(30, 300, rng, 1.0) for _ in range(50)])
    assert (wide == (0, 130, 30, 40)).all()  # central, ratio 4/3
    tall = np.array([transforms.torchvision_box(300, 30, rng, 1.0) for _ in range(50)])
    assert (tall == (130, 0, 40, 30)).all()
    clipped = np.array([transforms.byol_box(30, 300, rng, 1.0) for _ in range(50)])
    assert (clipped[:, 2] == 30).all()
    assert (clipped[:, 3] > 80).all()
    for box in (transforms.torchvision_box, transforms.byol_box):
        assert box(1, 1, rng, 0.08) == (0, 0, 1, 1)


@pytest.mark.parametrize("rule", ["torchvision", "byol"])
@pytest.mark.parametrize("shape", [(40, 60), (7, 5), (1, 9)])
def test_a_constant_image_stays_constant(rule: str, shape: tuple[int, int]):
    image = np.full((*shape, 3), (10, 128, 255), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = transforms.random_resized_crop(image, rng, 16, 0.08, rule)
        np.testing.assert_array_equal(crop, np.broadcast_to(image[0, 0], (16, 16, 3)))


@pytest.mark.parametrize("rule", ["torchvision", "byol"])
def test_a_crop_is_the_part_that_its_rule_draws(rule: str, monkeypatch: pytest.MonkeyPatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    asked = []

    def drawn(height: int, width: int, rng: Any, min_area: float) -> transforms.Box:
        asked.append((height, width, min_area))
        return 3, 5, 20, 9

    for name in ("torchvision", "byol"):
        monkeypatch.setattr(transforms, f"{name}_box", drawn if name == rule else None)
    made = transforms.random_resized_crop(image, np.random.default_rng(0), 16, 0.3, rule)
    assert asked == [(40, 60, 0.3)]
    part = image[3:23, 5:14]
    if rule == "torchvision":
        expected = np.asarray(Image.fromarray(part).resize((16, 16), Image.Resampling.BICUBIC))
    else:
        expected = cv2.resize(part, (16, 16), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(made, expected)


def test_what_is_cropped_is_flipped_and_then_augmented(monkeypatch: pytest.MonkeyPatch):
    image, options = np.zeros((8, 8, 3), np.uint8), RandAugment(2, 0.5, 9.0, 0.5)
    monkeypatch.setattr(transforms, "random_resized_crop", lambda *given: ["crop", *given[2:]])
    monkeypatch.setattr(transforms, "random_flip", lambda made, rng: ["flip", made])
    monkeypatch.setattr(transforms, "randaugment", lambda made, rng, given: (made, given))
    made = transforms.augment(image, None, 16, Augment("byol", 0.2, True, options))
    assert made == (["flip", ["crop", 16, 0.2, "byol"]], options)
    assert transforms.augment(image, None, 16, Augment("byol", 0.2, False, None))[0] == "crop"


def test_only_antialiasing_averages_what_lies_between(monkeypatch: pytest.MonkeyPatch):
    board = np.indices((32, 32)).sum(0) % 2 * np.uint8(255)
    board = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    assert np.abs(transforms.resize(board, 16, 16)[2:-2, 2:-2].astype(int) - 127).max() <= 2
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    for box in ("torchvision_box", "byol_box"):
        monkeypatch.setattr(transforms, box, lambda *_: (0, 0, 64, 64))
    rng = np.random.default_rng(0)
    smooth, sharp = (
        transforms.random_resized_crop(stripes, rng, 16, 1.0, rule)
        for rule in ("torchvision", "byol")
    )
    assert np.abs(smooth[:, 2:-2].astype(int) - 64).max() <= 6  # a quarter of 255
    assert not sharp[:, 2:-2].any()  # cubic between pixels 1 and 2 of 4; below 0 is clipped


def test_flip_is_a_fair_coin():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    rng = np.random.default_rng(0)
    flips = [transforms.random_flip(image, rng) for _ in range(1000)]
    flipped = [(f == image[:, ::-1]).all() for f in flips]
    assert all((f == image).all() for f, done in zip(flips, flipped, strict=True) if not done)
    assert 430 < sum(flipped) < 570


def test_eval_crop():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(transforms.eval_crop(image, 40, 32), image[4:36, 14:46])
    np.testing.assert_array_equal(transforms.eval_crop(image[:, :40], 40, 40), image[:, :40])
    half = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transforms.eval_crop(image, 20, 16), half[2:18, 7:23])
    assert transforms.eval_crop(image[:3, :7], 256, 224).shape == (224, 224, 3)


def test_without_a_crop_the_whole_image_is_stretched():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    whole = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transforms.eval_crop(image, 0, 16), whole)
    options = Augment("none", 1.0, True, None)
    views = [transforms.augment(image, np.random.default_rng(i), 16, options) for i in range(20)]
    flipped = [np.array_equal(view, whole[:, ::-1]) for view in views]
    assert 3 < sum(flipped) < 17
    assert all(np.array_equal(view, whole) for view, f in zip(views, flipped, strict=True) if not f)


def test_impossible_augmentations_are_refused():
    with pytest.raises(UserError, match="crop='resnet': choose from torchvision, byol, none"):
        Augment("resnet", 0.5, True, None)
    with pytest.raises(UserError, match=r"min_area=0\.5: crop='none' keeps the whole image"):
        Augment("none", 0.5, True, None)


# ---- loader ---------------------------------------------------------------------------------


def train(source: Source, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    defaults: dict[str, Any] = {
        "image_size": 4, "views": 1, "augment": Augment("byol", 0.3, True, None),
        "batch_size": 8, "seed": 0, "start": 0, "stop": 10,
    }  # fmt: skip
    return train_batches(source, **defaults | options)


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_is_a_function_of_seed_and_step(views: int):
    source = load("digits", "train[:50]", "")
    batches = list(train(source, views=views))
    axes = (2,) if views > 1 else ()
    assert batches[0]["image"].shape == (8, *axes, 4, 4, 3)
    assert (batches[0]["image"].dtype, batches[0]["label"].dtype) == (np.uint8, np.int32)
    assert_same(batches, train(source, views=views))
    assert_same(batches[7:], train(source, views=views, start=7))  # into the second epoch
    assert list(train(source, start=3, stop=3)) == []
    other = list(train(source, views=views, seed=1))
    assert not np.array_equal(batches[0]["label"], other[0]["label"])
    if views == 2:
        assert (batches[0]["image"][:, 0] != batches[0]["image"][:, 1]).any((1, 2, 3)).all()


def test_epochs_are_permutations_and_the_remainder_is_dropped():
    labels = [b["label"] for b in train(numbered(50), stop=6 * 20)]
    epochs = np.concatenate(labels).reshape(20, 48)
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(epochs.ravel()) == set(range(50))  # not always the same two are left out
    later = np.concatenate([b["label"] for b in train(numbered(50), stop=12, seed=1)])
    assert not any((later[:48] == epoch).all() for epoch in epochs)  # seeds are not epochs


def test_an_image_is_augmented_anew_in_each_epoch():
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    source = Source(Records("noise", 8, 0, lambda i: (noise, UNLABELLED)), 0, ())
    images = np.concatenate([b["image"] for b in train(source, stop=4)])
    assert len(np.unique(images.reshape(32, -1), axis=0)) == 32


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batch(hosts: int):
    source = load("digits", "train[:50]", "")
    parts = [train(source, views=2, host=h, hosts=hosts, start=5) for h in range(hosts)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, train(source, views=2, start=5))


@pytest.mark.parametrize(
    ("count", "batch_size", "start"),
    [(10, 4, 0), (8, 4, 0), (3, 5, 0), (10, 3, 7), (10, 1, 0), (10, 4, 10)],
)
def test_evaluation_sees_every_image_once_and_in_order(count: int, batch_size: int, start: int):
    options = {"image_size": 4, "resize": 6, "batch_size": batch_size, "start": start}
    batches = list(eval_batches(numbered(count), **options))
    assert all(b["image"].shape == (batch_size, 4, 4, 3) for b in batches)
    assert all((b["label"].dtype, b["mask"].dtype) == (np.int32, bool) for b in batches)
    assert len(batches) == -(-(count - start) // batch_size)
    for key in ("label", "index"):
        seen = [x for b in batches for x in b[key][b["mask"]]]
        assert seen == list(range(start, count))
    assert all((b["image"][..., 0, 0, 0] == b["index"]).all() for b in batches)


def test_mistakes_are_told_before_the_first_batch():
    with pytest.raises(UserError, match="resize=3: must be image_size=4 or more"):
        eval_batches(numbered(9), image_size=4, resize=3, batch_size=2)


def test_an_error_in_a_thread_reaches_the_caller_as_itself():
    with pytest.raises(UserError, match=r"record .* has label .*, outside"):
        list(train(numbered(9, classes=2)))
    with pytest.raises(UserError, match="record 2 has label 2, outside"):
        list(eval_batches(numbered(9, classes=2), image_size=4, resize=4, batch_size=4))


@pytest.mark.parametrize("how", ["finish", "close", "drop", "fail"])
def test_no_thread_is_left(how: str):
    before = set(threading.enumerate())
    batches = train(numbered(60, classes=5 if how == "fail" else 60))
    if how == "finish":
        list(batches)
    elif how == "fail":
        with pytest.raises(UserError):
            list(batches)
    else:
        next(batches)
        assert set(threading.enumerate()) - before
    if how == "close":
        batches.close()
    del batches
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
