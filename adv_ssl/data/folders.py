"""Folders of images: what is in them, and how one file is read."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from adv_ssl.errors import UserError, in_one_line
from adv_ssl.files import user_path

_log = logging.getLogger("adv_ssl")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Folders of images taken for a split, in any case, and the split they are
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_PIXELS = 89_478_485  # where Pillow begins to warn: 270 MB for each thread that decodes one
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is an error here


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a folder, by split."""

    roots: dict[str, pathlib.Path]  # of each split
    files: dict[str, list[pathlib.Path]]  # of each split, in hash order
    # Over all splits: a class that one of them lacks must not shift the labels of the others
    classes: tuple[str, ...]


def scan(name: str) -> Folder:
    """Lists the images of ``folder:/path``; none is opened.

    Raises:
      UserError: no such folder, no images, a class without images, or something in it cannot be
        listed.
    """
    root = user_path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"{name}: there is no folder {root}; give the path of a folder of images.")
    try:
        roots = _split_folders(name, root)
        if roots:
            files = {key: _files(child) for key, child in roots.items()}
        else:
            files = _divide(name, root)
            roots = dict.fromkeys(files, root)
        children = {key: {*subfolders(folder)} for key, folder in roots.items()}
        classes = sorted(set().union(*children.values()))
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
    if trained := children.get("train"):
        for key, there in children.items():
            _tell_strangers(name, key, *sorted(there - trained))
    return Folder(roots, files, tuple(classes))


def _split_folders(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folder of each split; empty if the folder is not divided into splits."""
    folders: dict[str, pathlib.Path] = {}
    others = []
    for child in subfolders(root):
        key = SPLIT_FOLDERS.get(child.lower())
        if key is None:
            others.append(child)
        elif key in folders:
            raise UserError(
                f"{name}: has both {folders[key].name} and {child}; remove or rename one of them."
            )
        else:
            folders[key] = root / child
    if len(folders) == 1 and others:  # CIFAR-100 has a class called train
        raise UserError(
            f"{name}: is {next(iter(folders.values())).name} a split or a class? Beside it is "
            f"{others[0]}. Put all classes into one sub-folder train, or the others elsewhere."
        )
    return {key: folders[key] for key in dict.fromkeys(SPLIT_FOLDERS.values()) if key in folders}


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
    _tell_divided(name, len(files["train"]), len(files["test"]))
    return files


@functools.cache  # once, however many of its splits are opened
def _tell_divided(name: str, train: int, test: int) -> None:
    _log.info(
        "%s has no folders train and test: by file name %d of its images are train, %d test.",
        name, train, test,
    )  # fmt: skip


@functools.cache
def _tell_strangers(name: str, split: str, *classes: str) -> None:
    if classes:
        _log.warning(
            "%s: %d classes of %s have no image in train, such as %s: is a folder named otherwise?",
            name, len(classes), split, classes[0],
        )  # fmt: skip


def _hash(path: pathlib.Path) -> int:
    """The same on every machine, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path.as_posix()), digest_size=8).digest())


def subfolders(folder: pathlib.Path) -> list[str]:
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
    if stray and subfolders(folder):
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
                if entry.is_symlink() and not entry.is_file():
                    raise UserError(f"{entry.path}: a link to nowhere; repair or remove it.")
                yield entry.path


def decode(path: pathlib.Path) -> np.ndarray:
    """Reads an image file of any mode as uint8 [H, W, 3] RGB, upright.

    Raises:
      UserError: the file cannot be read, or is no image.
    """
    with opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip
            grey = np.round(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """An image file whose header has been read.

    Raises:
      UserError: whatever fails here or in the body, as one line that names the file.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point images have no known range")
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height}: may be a decompression bomb")
            yield image
    except MemoryError:
        raise
    except Exception as error:  # on a broken file Pillow's decoders raise almost anything
        reason = in_one_line(error)
        raise UserError(f"{path}: not a readable image ({reason}); repair or remove it.") from error
