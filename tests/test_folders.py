"""Hostile folders of images: each ends in one clear line, or is read as it should be."""

import os
import pathlib
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adv_ssl.data import transforms
from adv_ssl.data.folders import decode, opened, scan
from adv_ssl.data.loader import eval_batches, train_batches
from adv_ssl.data.sources import load
from adv_ssl.data.transforms import Augment
from adv_ssl.doctor import folders
from adv_ssl.doctor.check import READY, WRONG
from adv_ssl.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)


def save(path: pathlib.Path, image: Image.Image | None = None, **options: Any) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(NOISE)).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two classes of three sound images, in train and in test."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(3):
                save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def trained_on(root: pathlib.Path) -> np.ndarray:
    """One epoch as a training and one as an evaluation read it; UserError as they raise it."""
    source = load(f"folder:{root}", "train", "")
    count = len(source.records)
    seen = [record["image"] for record in source.records]
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in seen)
    augment = Augment("torchvision", 0.08, True, None)
    options = {"views": 1, "seed": 0, "start": 0, "stop": 1, "image_size": 8}
    batches = train_batches(source, augment=augment, batch_size=count, **options)
    next(eval_batches(source, image_size=8, resize=9, batch_size=count))
    return next(batches)["image"]


def bomb(path: pathlib.Path, side: int) -> None:
    """A PNG that says it is ``side`` x ``side`` and holds nothing of that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


def cut(path: pathlib.Path) -> None:
    save(path, Image.fromarray(np.tile(NOISE, (10, 10, 1))))
    path.write_bytes(path.read_bytes()[:-2000])


def broken(path: pathlib.Path) -> None:
    save(path)
    data = bytearray(path.read_bytes())
    data[:4] = b"oops"
    path.write_bytes(data)


REFUSED = {  # what writes the file, and what is said of it
    "broken.jpg": (broken, "cannot identify"),
    "cut.jpg": (cut, "truncated"),
    "cut.png": (cut, "truncated"),
    "text.jpg": (lambda path: path.write_text("I am a text"), "cannot identify"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "cannot identify"),
    "bomb.png": (lambda path: bomb(path, 100_000), "decompression bomb"),
    "half a bomb.png": (lambda path: bomb(path, 10_000), "decompression bomb"),
    "pipe.jpg": (os.mkfifo, "no file"),
    "float.tif": (lambda path: save(path, Image.new("F", (9, 9))), "floating-point"),
    "new\nline ü.jpg": (broken, "cannot identify"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_image_is_named(name, root):
    write, said = REFUSED[name]
    path = root / "train" / "cat" / name
    write(path)
    with pytest.raises(UserError, match=f"not a readable image .*{said}.*repair or remove it") as e:
        trained_on(root)
    assert str(e.value).startswith(f"{path}: ")
    found = folders.check_folder(str(root), thorough=True)
    assert (found.state, found.images) == (WRONG, "train 7, test 6")
    assert found.details[0] == "refused: 1"
    assert str(path) in found.details[1]
    assert said in found.details[1]


def pages(path: pathlib.Path) -> None:
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    save(path, frames[0], save_all=True, append_images=frames[1:])


READ = {  # what writes the file, and what is remarked
    "cmyk.jpg": (lambda path: save(path, Image.new("CMYK", (30, 24))), "CMYK, read as RGB"),
    "grey.jpg": (lambda path: save(path, Image.new("L", (30, 24))), ""),
    "deep.png": (lambda path: save(path, Image.new("I;16", (30, 24), 999)), "16 bits, read as 8"),
    "clear.png": (lambda path: save(path, Image.new("RGBA", (30, 24))), "transparent, read"),
    "dot.png": (lambda path: save(path, Image.new("RGB", (1, 1))), "below 16 pixels a side"),
    "line.png": (lambda path: save(path, Image.new("RGB", (60_000, 1))), "below 16 pixels a side"),
    "moving.webp": (pages, "several frames, the first one is read"),
    "moving.tiff": (pages, "several frames, the first one is read"),
    "a name with blanks, ü and 图.JPG": (lambda path: save(path, format="JPEG"), ""),
    os.fsdecode(b"\xff\xfe.png"): (save, ""),
}


@pytest.mark.parametrize("name", READ)
def test_an_unusual_image_is_read(name, root):
    write, said = READ[name]
    path = root / "train" / "cat" / name
    write(path)
    assert trained_on(root).shape == (7, 8, 8, 3)
    found = folders.check_folder(str(root), thorough=True)
    assert (found.state, found.images) == (READY, "train 7, test 6")
    if said:
        assert found.details[0].startswith(said)
        assert found.details[0].endswith(": 1")
        assert found.details[1] == f"  {path}"
    else:
        assert found.details[0].startswith("2 classes")


def test_a_line_of_pixels_does_not_fill_the_memory(monkeypatch):
    """256 pixels high, its 60,000 columns would be 15 million."""
    resize, made = transforms.resize, []

    def noted(image, height, width):
        made.append(height * width)
        return resize(image, height, width)

    monkeypatch.setattr(transforms, "resize", noted)
    line = np.zeros((1, 60_000, 3), np.uint8)
    line[:, 29_992:30_008] = 200  # the middle, where the crop is
    crop = transforms.eval_crop(line, 256, 224)
    assert max(made) < 2e6
    assert crop.shape == (224, 224, 3)
    assert crop.min() == 200


def test_the_middle_of_a_long_image_is_cropped_as_ever():
    """Up to 16 to 1, nothing is cut before the resize."""
    image = np.random.default_rng(1).integers(0, 256, (7, 111, 3), np.uint8)
    whole = transforms.resize(image, 12, 190)
    np.testing.assert_array_equal(transforms.eval_crop(image, 12, 10), whole[1:11, 90:100])


def test_what_only_warns_elsewhere_is_refused(tmp_path):
    bomb(tmp_path / "half.png", 10_000)
    bomb(tmp_path / "large.png", 9_000)  # 81 megapixels, of which nothing is there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="10000 x 10000: may be a decompression bomb"):
            decode(tmp_path / "half.png")
        with opened(tmp_path / "large.png") as image:
            assert image.size == (9_000, 9_000)


def test_what_would_stop_a_training_is_told_first(root):
    save(root / "train" / "cat" / "dot.png", Image.new("RGB", (1, 1)))
    broken(root / "train" / "cat" / "broken.jpg")
    details = folders.check_folder(str(root), thorough=True).details
    assert details[0] == "refused: 1"
    assert details[2] == "below 16 pixels a side: 1"


def test_what_is_skipped_is_told(root):
    frames = [Image.fromarray(NOISE)] * 2
    save(root / "train" / "cat" / "moving.gif", frames[0], save_all=True, append_images=frames)
    (root / "train" / "cat" / "notes").write_text("x")
    (root / "train" / "cat" / ".hidden.jpg").write_text("x")
    (root / "train" / "cat" / "x.jpg").mkdir()  # a folder, not an image
    (root / "train" / "cat" / "up").symlink_to(root, target_is_directory=True)
    assert len(trained_on(root)) == 6
    found = folders.check_folder(str(root), thorough=True)
    assert found.state == READY
    told = "\n".join(found.details)
    assert f"skipped: {root / 'train' / 'cat' / 'up'} leads back to {root}" in told
    assert "skipped: 1 of .gif, 1 of no ending; read are .jpg" in told
    assert told.count("skipped: ") == 2


CLASSES_WITHOUT_IMAGES = {
    "empty": lambda path: path.mkdir(),
    "only gifs": lambda path: save(path / "a.gif"),
    "x.jpg": lambda path: path.mkdir(),
    "a link back": lambda path: path.symlink_to(path.parent, target_is_directory=True),
}


@pytest.mark.parametrize("name", CLASSES_WITHOUT_IMAGES)
def test_a_class_without_images_would_shift_no_labels_in_silence(name, root):
    CLASSES_WITHOUT_IMAGES[name](root / "train" / name)
    with pytest.raises(UserError, match=f"the folder {name} has no images, though each folder"):
        trained_on(root)
    found = folders.check_folder(str(root), thorough=False)
    assert (found.state, found.images) == (WRONG, "-")
    assert f"the folder {name} has no images" in found.details[0]


def test_a_class_that_only_one_split_lacks_is_none_of_these(root):
    for path in (root / "test" / "dog").iterdir():
        path.unlink()
    assert load(f"folder:{root}", "test", "").class_names == ("cat", "dog")


def test_two_folders_of_one_split(root):
    for name in ("val", "validation"):
        save(root / name / "cat" / "0.png")
    with pytest.raises(UserError, match="has both val and validation"):
        scan(f"folder:{root}")


def test_splits_by_other_names(tmp_path):
    for name in ("Training", "Testing", "valid"):
        save(tmp_path / name / "cat" / "0.png")
    found = scan(f"folder:{tmp_path}")
    assert {key: path.name for key, path in found.roots.items()} == {
        "train": "Training", "test": "Testing", "validation": "valid",
    }  # fmt: skip
    assert found.classes == ("cat",)


def test_a_link_to_itself(root):
    path = root / "train" / "cat" / "self.jpg"
    path.symlink_to(path)
    with pytest.raises(UserError, match=f"^{path}: .*; repair or remove it") as raised:
        trained_on(root)
    assert "\n" not in str(raised.value)
    assert folders.check_folder(str(root), thorough=True).state == WRONG


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["train/cat/0.png", "train/cat", ""])
def test_what_may_not_be_read_is_named(name, root):
    path = root / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(UserError, match=f"^{path}: .*Permission denied.*; repair or remove it"):
            trained_on(root)
    finally:
        path.chmod(mode)


def test_what_cannot_be_listed_is_named(root, monkeypatch):
    """As above, for root as well."""

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    path = root / "train" / "cat"
    with pytest.raises(UserError, match=f"{path}: cannot be listed .Permission denied.; repair"):
        scan(f"folder:{root}")


def test_an_empty_folder_and_one_class(tmp_path):
    (tmp_path / "empty").mkdir()
    found = folders.check_folder(str(tmp_path / "empty"), thorough=False)
    assert found.state == WRONG
    assert "no images in it" in found.details[0]
    for split in ("train", "test"):
        save(tmp_path / "one" / split / "cat" / "a.png")
    found = folders.check_folder(str(tmp_path / "one"), thorough=False)
    assert (found.state, found.images) == (READY, "train 1, test 1")
    told, *rest = found.details
    assert told == "one class, cat: nothing to tell apart. Is it a folder too high?"
    assert rest == ["1 classes of 2 to 2 images", "  cat: train 1, test 1"]


def test_classes_are_counted_and_their_list_is_cut(tmp_path):
    for i in range(25):
        for k in range(1 + i % 2):
            save(tmp_path / "train" / f"c{i:02}" / f"{k}.png")
    save(tmp_path / "test" / "c00" / "0.png")
    details = folders.check_folder(f"folder:{tmp_path}", thorough=False).details
    assert details[0] == "25 classes of 1 to 2 images"
    assert details[1:3] == ["  c00: train 1, test 1", "  c01: train 2, test 0"]
    assert details[-1] == "  and 5 more"
    assert len(details) == 22


def test_a_sample_is_decoded_and_every_header_read(tmp_path, monkeypatch):
    """A file cut short shows only where it is decoded; one of no format shows in any case."""
    monkeypatch.setattr(folders, "spread", lambda count, thorough: range(count if thorough else 0))
    for i in range(4):
        save(tmp_path / "train" / f"{i}.png")
    cut(tmp_path / "train" / "cut.jpg")
    assert folders.check_folder(str(tmp_path), thorough=False).state == READY
    assert folders.check_folder(str(tmp_path), thorough=True).state == WRONG
    (tmp_path / "train" / "text.jpg").write_text("x")
    assert folders.check_folder(str(tmp_path), thorough=False).details[0] == "refused: 1"
