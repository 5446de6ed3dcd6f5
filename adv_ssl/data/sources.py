"""Where images come from: TFDS sets, image folders, and scikit-learn's digits.

All three are random access, so that the loader can be a pure function of (seed, step), and all
understand TFDS's split slices: ``train[:10%]``, ``train[10%:]``, ``train[:5000]``.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorflow_datasets.core import read_only_builder

from adv_ssl.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Folders of images taken for a split, and the split they are
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
UNLABELLED = -1
# From 89 million pixels on Pillow only warns, and takes a gigabyte: such a file is refused
warnings.simplefilter("error", Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True)
class Records(Sequence[dict[str, Any]]):
    """``records[i]`` is ``{"image": uint8 [H, W, 3], "label": int or an array of one shape}``.

    Threads may read at once.
    """

    what: str  # data set and split, for errors
    length: int
    num_classes: int  # 0: unlabelled, and every label is -1
    read: Callable[[int], tuple[np.ndarray, Any]]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """Reads one record.

        Raises:
          IndexError: ``index`` is outside [-length, length).
          UserError: the label is no class, or the image cannot be read.
        """
        index = range(self.length)[index]
        image, label = self.read(index)
        label = label if np.ndim(label) else int(label)
        if self.num_classes and np.ndim(label) == 0 and not 0 <= label < self.num_classes:
            raise UserError(
                f"{self.what}: record {index} has label {label}, outside [0, {self.num_classes}): "
                "use a labelled split, or repair the data set."
            )
        return {"image": image, "label": label}


@dataclasses.dataclass(frozen=True)
class Labels:
    """How an example of a TFDS set becomes its label."""

    feature: str  # whose names are the classes
    read: Callable[[Mapping[str, Any]], Any]  # example -> int or an array of one shape


LABEL = Labels("label", lambda example: example["label"])


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set."""

    records: Records
    num_classes: int  # 0: unlabelled
    class_names: tuple[str, ...]

    def first(self, count: int) -> "Source":
        """The same split, cut after ``count`` images."""
        length = min(count, len(self.records))
        return dataclasses.replace(self, records=dataclasses.replace(self.records, length=length))


def load(name: str, split: str, data_dir: str, labels: Labels = LABEL) -> Source:
    """Opens one split of a data set; no image is read yet.

    Args:
      name: ``digits``, ``folder:/path``, or a TFDS name such as ``cifar10:3.0.2``.
      split: a split of it or a slice of one, in TFDS's notation.
      data_dir: where TFDS keeps prepared sets; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
      labels: of a TFDS set.

    Raises:
      UserError: no such set, split or folder, or the set is not prepared for random access.
    """
    if name in ("", "folder:"):
        raise UserError(f"data.name={name!r}: give digits, folder:/path or a TFDS name.")
    if name == "digits":
        return _digits(split)
    if name.startswith("folder:"):
        return _folder(name, split)
    return _tfds(name, split, data_dir, labels)


def _select(name: str, split: str, shards: Mapping[str, list[int]]) -> list[tuple[str, slice]]:
    """The (split, range) pairs which ``split`` stands for, e.g. [("train", slice(0, 50))].

    Args:
      name: the data set, for errors.
      split: what the user asks for.
      shards: images in each shard of each split there is.

    Raises:
      UserError: no such split, a malformed slice, or no image in it.
    """
    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=lengths, num_bytes=0)
        for key, lengths in shards.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError):
        parts = []
    ranges = [
        (part.splitname, slice(*slice(part.from_, part.to).indices(sum(shards[part.splitname]))))
        for part in parts
    ]
    if not ranges or any(r.start >= r.stop for _, r in ranges):
        known = ", ".join(f"{key} ({sum(lengths)} images)" for key, lengths in shards.items())
        raise UserError(
            f"split={split!r} of {name}: no such split, or no image in it; choose from {known}, "
            "or a slice such as train[:10%] or train[:5000]."
        )
    return ranges


# ---- digits ---------------------------------------------------------------------------------


def _digits(split: str) -> Source:
    """scikit-learn's 1,797 grey 8x8 digits: 1,437 to train, 360 to test, in each class alike."""
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the file
    images = np.repeat(grey[..., None], 3, axis=-1)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    order = {"train": train, "test": test}
    parts = _select("digits", split, {key: [len(value)] for key, value in order.items()})
    chosen = np.concatenate([order[key][part] for key, part in parts])
    records = Records(
        f"digits {split}", len(chosen), 10, lambda i: (images[chosen[i]], digits.target[chosen[i]])
    )
    return Source(records, 10, tuple(map(str, digits.target_names)))


# ---- image folders --------------------------------------------------------------------------


def _folder(name: str, split: str) -> Source:
    """A folder of images, in one sub-folder for each class, or unlabelled.

    Sub-folders train, validation (or val) and test are the splits; without them a tenth of the
    files is ``test``, the rest ``train``, by a hash of each file's name: the same on every machine.
    Files are in the order of that hash: a slice of a split has all classes mixed. Hidden files and
    files of other types are skipped.
    """
    found = folder(name)
    parts = _select(name, split, {key: [len(paths)] for key, paths in found.files.items()})
    chosen = [(found.roots[key], path) for key, part in parts for path in found.files[key][part]]
    labelled = all(_subfolders(found.roots[key]) for key, _ in parts)
    names = found.classes if labelled else ()
    index = {child: label for label, child in enumerate(names)}

    def read(i: int) -> tuple[np.ndarray, int]:
        root, path = chosen[i]
        return decode(path), index.get(path.relative_to(root).parts[0], UNLABELLED)

    return Source(Records(f"{name} {split}", len(chosen), len(names), read), len(names), names)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a folder, by split."""

    roots: dict[str, pathlib.Path]  # of each split
    files: dict[str, list[pathlib.Path]]  # of each split, in hash order
    # Over all splits: a class that one of them lacks must not shift the labels of the others
    classes: tuple[str, ...]


def folder(name: str) -> Folder:
    """Lists the images of ``folder:/path``; none is opened.

    Raises:
      UserError: no such folder, no images, a class without images, or something in it cannot be
        listed.
    """
    root = pathlib.Path(name.removeprefix("folder:")).expanduser()
    if not root.is_dir():
        raise UserError(f"{name}: there is no folder {root}; give the path of a folder of images.")
    try:
        roots = _split_folders(name, root)
        if roots:
            files = {key: _files(child) for key, child in roots.items()}
        else:
            files = _divide(name, root)
            roots = dict.fromkeys(files, root)
        classes = sorted({child for root in roots.values() for child in _subfolders(root)})
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); repair or remove it."
        ) from error
    seen = {
        path.parts[len(roots[key].parts)] for key, paths in files.items() for path in paths
    }  # much faster than relative_to
    empty = [child for child in classes if child not in seen]
    if empty:
        raise UserError(
            f"{name}: the folder {empty[0]} has no images, though each folder is a class; files "
            f"end in {', '.join(SUFFIXES)}. Remove the folder, or put its images in."
        )
    return Folder(roots, files, tuple(classes))


def _split_folders(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folder of each split; empty if the folder is not divided into splits."""
    children = _subfolders(root)
    if "val" in children and "validation" in children:
        raise UserError(f"{name}: has both val and validation; remove or rename one of them.")
    folders = {key: root / child for child, key in SPLIT_FOLDERS.items() if child in children}
    others = [child for child in children if child not in SPLIT_FOLDERS]
    if len(folders) == 1 and others:  # CIFAR-100 has a class called train
        raise UserError(
            f"{name}: is {next(iter(folders.values())).name} a split or a class? Beside it is "
            f"{others[0]}. Put all classes into one sub-folder train, or the others elsewhere."
        )
    return folders


def _divide(name: str, root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """A folder without splits in two; a file stays where it is when others come or go."""
    files: dict[str, list[pathlib.Path]] = {"train": [], "test": []}
    for path in _files(root):
        files["train" if _hash(path.relative_to(root)) % 10 else "test"].append(path)
    if not files["test"]:
        raise UserError(
            f"{name}: none of its {len(files['train'])} images falls into the tenth that is taken "
            "for test, by file name: put some into sub-folders train and test."
        )
    logging.info(
        "%s has no folders train and test: by file name %d of its images are train, %d test.",
        name, len(files["train"]), len(files["test"]),
    )  # fmt: skip
    return files


def _hash(path: pathlib.Path) -> int:
    """The same on every machine, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path.as_posix()), digest_size=8).digest())


def _subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a split's folder, in hash order.

    Raises:
      UserError: there is none, or there are some beside the folders of the classes.
    """
    above = frozenset(map(str, folder.resolve().parents))
    paths = [pathlib.Path(path) for path in _walk(str(folder), above)]
    if not paths:
        raise UserError(f"folder:{folder}: no images in it; files end in {', '.join(SUFFIXES)}.")
    stray = [path for path in paths if path.parent == folder]
    if stray and _subfolders(folder):
        raise UserError(
            f"{stray[0]} lies beside the folders of the classes: move images of no class away, or "
            "remove the sub-folders for an unlabelled set."
        )
    return sorted(paths, key=lambda path: (_hash(path.relative_to(folder)), path))


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Paths of all images below a folder; links are followed, but never back to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, above | {real})
            elif entry.name.lower().endswith(SUFFIXES):
                if not entry.is_file():
                    raise UserError(f"{entry.path}: a link to nowhere; repair or remove it.")
                yield entry.path


def decode(path: pathlib.Path) -> np.ndarray:
    """Reads an image file of any mode as uint8 [H, W, 3] RGB, upright.

    Raises:
      UserError: the file cannot be read, or is no image.
    """
    with opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip
            grey = np.round(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """An image file whose header has been read.

    Raises:
      UserError: whatever fails here or in the body, as one line that names the file.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file, or a link to nowhere")
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point images have no known range")
            yield image
    except Exception as error:  # on a broken file Pillow's decoders raise almost anything
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable image ({reason}); repair or remove it.") from error


# ---- TensorFlow Datasets --------------------------------------------------------------------


class NotPrepared(UserError):
    """A TFDS set that is not there at all, as opposed to one that is damaged."""


def prepared(name: str, data_dir: str) -> read_only_builder.ReadOnlyBuilder:
    """A set which TFDS has prepared as array_record; reading it needs no TensorFlow.

    Raises:
      NotPrepared: there is no such set in ``data_dir``.
      UserError: its metadata are damaged, or it is in a format without random access.
    """
    folder = tfds_folder(data_dir)
    exact = re.sub(r":\d+\.\*$", r"\g<0>.*", name)  # TFDS writes 5.* as 5.*.*
    command = _build(name, folder)
    try:
        # Files alone: neither code of the set nor the network, whatever its name
        builder = read_only_builder.builder_from_files(exact, data_dir=folder)
    except ValueError:  # not found, or not a name
        raise NotPrepared(
            f"data set {name!r} (digits, folder:/path or a TFDS name) is not prepared in {folder}; "
            f"{command}"
        ) from None
    except Exception as error:  # damaged metadata, or a place that cannot be read from here
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data set {name!r} in {folder} cannot be read ({type(error).__name__}: {reason}); "
            f"name another data.dir, or {command}"
        ) from error
    if "array_record" not in {f.value for f in builder.info.available_file_formats()}:
        raise UserError(
            f"data set {name!r} is prepared in {builder.data_dir} as "
            f"{builder.info.file_format.value}, which has no random access: move that folder away, "
            f"then {command}"
        )
    return builder


def tfds_folder(data_dir: str) -> str:
    """Where TFDS's sets are: ``data_dir``, or if it is "" $TFDS_DATA_DIR or TFDS's default."""
    # Read now: TFDS itself looks at the variable only when it is imported
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(folder)


def _build(name: str, folder: str) -> str:
    return (
        "prepare it once, where TensorFlow is installed: "
        f"tfds build {name if '*' not in name else name.split(':')[0]} --file_format=array_record "
        f"--data_dir={folder}"
    )


def _tfds(name: str, split: str, data_dir: str, labels: Labels) -> Source:
    builder = prepared(name, data_dir)
    info, command = builder.info, _build(name, tfds_folder(data_dir))
    parts = _select(name, split, {key: value.shard_lengths for key, value in info.splits.items()})
    for path in (path for key, _ in parts for path in info.splits[key].filepaths):
        if not path.exists():
            raise UserError(f"data set {name!r} is incomplete: {path} is missing; {command}")
    features = dict(info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
        raise UserError(
            f"data set {name!r} has no image feature; it has {', '.join(features)}. Choose another."
        )
    label = features.get(labels.feature)
    if isinstance(label, tfds.features.Sequence):
        label = label.feature
    names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    examples = builder.as_data_source(split=split, file_format="array_record")

    def read(i: int) -> tuple[np.ndarray, int]:
        try:
            example = examples[i]
        except Exception as error:  # of a damaged record the libraries raise almost anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"data set {name!r}: image {i} of {split} in {builder.data_dir} cannot be read "
                f"({reason}); move that folder away, then {command}"
            ) from error
        image = example["image"][..., :3]  # no alpha
        rgb = np.broadcast_to(image, (*image.shape[:2], 3))  # grey, 1 channel, to 3
        return np.ascontiguousarray(rgb), labels.read(example) if names else UNLABELLED

    return Source(Records(f"{name} {split}", len(examples), len(names), read), len(names), names)
