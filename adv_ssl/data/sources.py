"""Where images come from: TFDS sets, image folders, and scikit-learn's digits.

All three are random access, so that the loader can be a pure function of (seed, step), and all
understand TFDS's split slices: ``train[:10%]``, ``train[10%:]``, ``train[:5000]``.
"""

import dataclasses
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from adv_ssl.data import folders
from adv_ssl.errors import UserError, in_one_line
from adv_ssl.files import user_path

UNLABELLED = -1
KEPT_BYTES = 2**29  # of decoded images, of one split
WAITS = (0.1, 1.0, 5.0)  # seconds, before a failed read is tried again: networks fail and recover
Read = Callable[[int], tuple[np.ndarray, Any]]  # place in the split -> image, label
_log = logging.getLogger("adv_ssl")


@dataclasses.dataclass(frozen=True)
class Records(Sequence[dict[str, Any]]):
    """``records[i]`` is ``{"image": uint8 [H, W, 3], "label": int or an array of one shape}``.

    Threads may read at once.
    """

    what: str  # data set and split, for errors
    length: int
    num_classes: int  # 0: unlabelled, and every label is -1
    read: Read
    failures: list[str] = dataclasses.field(default_factory=list)  # of reads that were tried again

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """Reads one record.

        Raises:
          IndexError: ``index`` is outside [-length, length).
          UserError: the label is no class, or the image cannot be read.
        """
        index = range(self.length)[index]
        image, label = self._read_patiently(index)
        label = label if np.ndim(label) else int(label)
        if self.num_classes and np.ndim(label) == 0 and not 0 <= label < self.num_classes:
            raise UserError(
                f"{self.what}: record {index} has label {label}, outside [0, {self.num_classes}): "
                "use a labelled split, or repair the data set."
            )
        return {"image": image, "label": label}

    def _read_patiently(self, index: int) -> tuple[np.ndarray, Any]:
        for wait in WAITS:
            try:
                return self.read(index)
            except UserError as error:
                if not _may_pass(error.__cause__):
                    raise
                self.failures.append(str(error))
                count = len(self.failures)
                _log.warning("%s Trying again after %g s; failed reads: %d.", error, wait, count)
                time.sleep(wait)
        return self.read(index)


def _may_pass(cause: BaseException | None) -> bool:
    """Whether the machine failed, not the file; array_record does not tell its failures apart."""
    failed = isinstance(cause, OSError) and cause.errno is not None
    return failed or isinstance(cause, RuntimeError)


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
    parts: tuple[tuple[str, range], ...] = ()  # of splits of the set, before ``first``

    def shared(self, other: "Source") -> int:
        """How many images this and ``other``, of the same data set, have in common."""
        pairs = [(a, b) for x, a in self.parts for y, b in other.parts if x == y]
        return sum(len(range(max(a.start, b.start), min(a.stop, b.stop))) for a, b in pairs)

    def first(self, count: int) -> "Source":
        """The same split, cut after ``count`` images."""
        length = min(count, len(self.records))
        return dataclasses.replace(self, records=dataclasses.replace(self.records, length=length))


class NoSplit(UserError):
    """A split that a set does not have."""


def load(name: str, split: str, data_dir: str, labels: Labels = LABEL) -> Source:
    """One split of a data set: the arguments and errors of ``opened`` and of what it returns."""
    return opened(name, data_dir, labels)(split)


def opened(name: str, data_dir: str, labels: Labels = LABEL) -> Callable[[str], Source]:
    """A data set, as a function that opens one of its splits, or a slice in TFDS's notation.

    That function raises NoSplit, or UserError where files of a split are missing or damaged.

    Args:
      name: ``digits``, ``folder:/path``, or a TFDS name such as ``cifar10:3.0.2``.
      data_dir: where TFDS keeps prepared sets; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
      labels: of a TFDS set.

    Raises:
      UserError: no such set or folder, or the set is not prepared for random access.
    """
    if name in ("", "folder:"):
        raise UserError(f"data set {name!r}: give digits, folder:/path or a TFDS name.")
    if name == "digits":
        return _digits
    if name.startswith("folder:"):
        return functools.partial(_folder, name, folders.scan(name))
    return functools.partial(_tfds, name, prepared(name, data_dir), data_dir, labels)


def select(name: str, split: str, shards: Mapping[str, list[int]]) -> tuple[tuple[str, range], ...]:
    """The (split, range) pairs which ``split`` stands for, e.g. (("train", range(50)),).

    Args:
      name: the data set, for errors.
      split: what the user asks for.
      shards: images in each shard of each split there is.

    Raises:
      NoSplit: no such split, a malformed slice, or no image in it.
    """
    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=lengths, num_bytes=0)
        for key, lengths in shards.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError):
        parts = []
    ranges = tuple(
        (part.splitname, range(sum(shards[part.splitname]))[part.from_ : part.to]) for part in parts
    )
    if not ranges or not all(part for _, part in ranges):
        known = ", ".join(f"{key} ({sum(lengths)} images)" for key, lengths in shards.items())
        raise NoSplit(
            f"split={split!r} of {name}: no such split, or not so many images; choose from "
            f"{known}, or a slice such as train[:10%]."
        )
    return ranges


def _decoded_once(read: Read, images: int) -> Read:
    """The same images; those small enough for all ``images`` to fit into memory are kept there."""
    kept: dict[int, tuple[np.ndarray, Any]] = {}

    def read_once(i: int) -> tuple[np.ndarray, Any]:
        if i in kept:
            return kept[i]
        image, label = read(i)
        if image.nbytes * images <= KEPT_BYTES:
            image.setflags(write=False)
            kept[i] = image, label
        return image, label

    return read_once


# ---- digits ---------------------------------------------------------------------------------


def _digits(split: str) -> Source:
    """scikit-learn's 1,797 grey 8x8 digits: 1,437 to train, 360 to test, in each class alike."""
    from sklearn.datasets import load_digits  # here: other sets start without, seconds earlier
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the file
    images = np.repeat(grey[..., None], 3, axis=-1)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    order = {"train": train, "test": test}
    parts = select("digits", split, {key: [len(value)] for key, value in order.items()})
    chosen = np.concatenate([order[key][part] for key, part in parts])
    records = Records(
        f"digits {split}", len(chosen), 10, lambda i: (images[chosen[i]], digits.target[chosen[i]])
    )
    return Source(records, 10, tuple(map(str, digits.target_names)), parts)


# ---- image folders --------------------------------------------------------------------------


def _folder(name: str, found: folders.Folder, split: str) -> Source:
    """A folder of images, in one sub-folder for each class, or unlabelled.

    Sub-folders train, validation (or val) and test are the splits; without them a tenth of the
    files is ``test``, the rest ``train``, by a hash of each file's name: the same on every machine.
    Files are in the order of that hash: a slice of a split has all classes mixed. Hidden files and
    files of other types are skipped.
    """
    parts = select(name, split, {key: [len(paths)] for key, paths in found.files.items()})
    chosen = [(found.roots[key], found.files[key][i]) for key, part in parts for i in part]
    labelled = all(folders.subfolders(found.roots[key]) for key, _ in parts)
    names = found.classes if labelled else ()
    index = {child: label for label, child in enumerate(names)}

    def read(i: int) -> tuple[np.ndarray, int]:
        root, path = chosen[i]
        return folders.decode(path), index.get(path.relative_to(root).parts[0], UNLABELLED)

    records = Records(f"{name} {split}", len(chosen), len(names), _decoded_once(read, len(chosen)))
    return Source(records, len(names), names, parts)


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
    command = _build(name, folder)
    try:
        # Files alone: neither code of the set nor the network, whatever its name
        builder = read_only_builder.builder_from_files(as_tfds_writes(name), data_dir=folder)
    except ValueError:  # not found, or not a name
        if user_path(name).is_dir():
            raise UserError(
                f"data set {name!r}: that is a folder; did you mean folder:{name}?"
            ) from None
        raise NotPrepared(
            f"data set {name!r} is not prepared in {folder} (digits and folder:/path need none of "
            f"that): see `python -m adv_ssl.data`, or {command}"
        ) from None
    except Exception as error:  # damaged metadata, or a place that cannot be read from here
        reason = in_one_line(error)
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


def as_tfds_writes(name: str) -> str:
    """The name of a set, with 5.* as 5.*.*."""
    return re.sub(r":\d+\.\*$", r"\g<0>.*", name)


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


def _tfds(
    name: str,
    builder: read_only_builder.ReadOnlyBuilder,
    data_dir: str,
    labels: Labels,
    split: str,
) -> Source:
    info, command = builder.info, _build(name, tfds_folder(data_dir))
    parts = select(name, split, {key: value.shard_lengths for key, value in info.splits.items()})
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
        except MemoryError:
            raise
        except Exception as error:  # of a damaged record the libraries raise almost anything
            reason = in_one_line(error)
            raise UserError(
                f"data set {name!r}: image {i} of {split} in {builder.data_dir} cannot be read "
                f"({reason}); move that folder away, then {command}"
            ) from error
        image = example["image"][..., :3]  # no alpha
        rgb = np.broadcast_to(image, (*image.shape[:2], 3))  # grey, 1 channel, to 3
        return np.ascontiguousarray(rgb), labels.read(example) if names else UNLABELLED

    if names and labels is LABEL and read(0)[1] == UNLABELLED:  # TFDS's mark of a split without
        names = ()
    once = _decoded_once(read, len(examples))
    records = Records(f"{name} {split}", len(examples), len(names), once)
    return Source(records, len(names), names, parts)
