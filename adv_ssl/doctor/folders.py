"""Is a folder of images fit for training: what each class has, which files would be refused."""

import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from adv_ssl.data.folders import SUFFIXES, Folder, decode, opened, scan
from adv_ssl.doctor.check import READY, WRONG, Report, in_threads, shortened, spread
from adv_ssl.errors import UserError
from adv_ssl.files import user_path

SMALL = 16  # pixels a side: below it a photograph shows nothing
CLASSES = 20  # told one by one
REFUSED = "refused"


def check_folder(path: str, thorough: bool) -> Report:
    """Looks at the header of each image of a folder, and decodes a sample of them, or all.

    Args:
      path: of the folder, with sub-folders train and test, or as classes, or neither.
      thorough: decode every image.
    """
    root = user_path(path.removeprefix("folder:"))
    try:
        found = scan(f"folder:{root}")
    except UserError as error:
        return Report(path, WRONG, "-", 0, str(root), [str(error), *_left_out(root)])
    seen: dict[str, list[str]] = defaultdict(list)
    for files in found.files.values():
        whole = set(spread(len(files), thorough))
        items = [(file, i in whole) for i, file in enumerate(files)]
        for remarks in in_threads(_look, items, path):
            for kind, remark in remarks:
                seen[kind].append(remark)
    images = ", ".join(f"{split} {len(files):,}" for split, files in found.files.items())
    size = sum(os.path.getsize(f) for files in found.files.values() for f in files if f.exists())
    details = [*_remarks(seen), *_left_out(root), *_by_class(found)]
    return Report(path, WRONG if seen[REFUSED] else READY, images, size, str(root), details)


def _look(item: tuple[pathlib.Path, bool]) -> list[tuple[str, str]]:
    """What is to be said of one file, each with its kind."""
    path, whole = item
    try:
        with opened(path) as image:
            kinds = list(_kinds(image.mode, image.size, getattr(image, "n_frames", 1)))
        if whole:
            decode(path)
    except UserError as error:
        return [(REFUSED, str(error))]
    return [(kind, str(path)) for kind in kinds]


def _kinds(mode: str, size: tuple[int, int], frames: int) -> Iterator[str]:
    if mode == "CMYK":
        yield "CMYK, read as RGB"
    if mode.startswith("I"):
        yield "16 bits, read as 8"
    if mode in ("RGBA", "LA", "PA"):
        yield "transparent, read without that"
    if frames > 1:
        yield "several frames, the first one is read"
    if min(size) < SMALL:
        yield f"below {SMALL} pixels a side"


def _remarks(seen: Mapping[str, list[str]]) -> Iterator[str]:
    """How many files of each kind, with examples; those that would stop a training first."""
    for kind in sorted(seen, key=lambda kind: (kind != REFUSED, kind)):
        if seen[kind]:
            yield f"{kind}: {len(seen[kind]):,}"
            yield from (f"  {line}" for line in shortened(seen[kind]))


def _left_out(root: pathlib.Path) -> Iterator[str]:
    """Files of other types, which are skipped, and links back to a folder above."""
    others: Counter[str] = Counter()
    for folder, folders, files in os.walk(root):
        above = {os.path.realpath(folder), *map(str, pathlib.Path(folder).resolve().parents)}
        for name in folders:
            path = os.path.join(folder, name)
            if os.path.islink(path) and os.path.realpath(path) in above:
                yield f"skipped: {path} leads back to {os.path.realpath(path)}"
        shown = [name for name in files if not name.startswith(".")]
        others.update(
            pathlib.Path(name).suffix.lower() or "no ending"
            for name in shown
            if not name.lower().endswith(SUFFIXES)
        )
    if others:
        most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:5]
        told = ", ".join(f"{count:,} of {suffix}" for suffix, count in most)
        yield f"skipped: {told}; read are {', '.join(SUFFIXES)}"


def _by_class(found: Folder) -> Iterator[str]:
    """How many images each class has, by split."""
    if not found.classes:
        yield "no classes: for pre-training alone"
        return
    counts = {
        split: Counter(path.parts[len(found.roots[split].parts)] for path in files)
        for split, files in found.files.items()
    }
    if len(found.classes) == 1:
        yield f"one class, {found.classes[0]}: nothing to tell apart. Is it a folder too high?"
    sizes = [sum(count[name] for count in counts.values()) for name in found.classes]
    yield f"{len(sizes):,} classes of {min(sizes):,} to {max(sizes):,} images"
    for name in found.classes[:CLASSES]:
        told = ", ".join(f"{split} {count[name]:,}" for split, count in counts.items())
        yield f"  {name}: {told}"
    if len(sizes) > CLASSES:
        yield f"  and {len(sizes) - CLASSES:,} more"
