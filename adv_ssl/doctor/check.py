"""Is a prepared data set whole: splits, counts, class order, records that can be read."""

import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from adv_ssl.data import sources
from adv_ssl.doctor.sets import Set
from adv_ssl.errors import UserError, in_one_line
from adv_ssl.evaluation.rules import wnids
from adv_ssl.preemption import stop_if_asked

READY, WRONG, MISSING = "ready", "wrong", "missing"
WHOLE = 1000  # images of a split that are all decoded; of a larger one
SAMPLE = 64
SHOWN = 5  # examples of one kind of trouble


class Report(NamedTuple):
    """What is to be said of a data set."""

    name: str
    state: str  # READY, WRONG or MISSING
    images: str  # how many, by split
    size: int  # bytes on the disk
    where: str
    details: Sequence[str] = ()  # what is wrong, what to do


class Part(NamedTuple):
    """One prepared set of TFDS."""

    state: str
    folder: str = ""
    counts: Mapping[str, int] = {}
    problems: Sequence[str] = ()


def check(known: Set, data_dir: str, thorough: bool) -> Report:
    """Looks at all parts of a set.

    Args:
      known: the set.
      data_dir: where TFDS keeps prepared sets; "" is TFDS's default.
      thorough: decode every image, not a sample.
    """
    parts = {name: check_part(known, name, data_dir, thorough) for name in known.parts}
    states = [part.state for part in parts.values()]
    there = [part for part in parts.values() if part.state != MISSING]
    state = next((s for s in (WRONG, MISSING) if s in states), READY)
    where = os.path.join(sources.tfds_folder(data_dir), known.name)
    images = f"{states.count(READY)} of {len(parts)} sets"
    if len(parts) == 1:
        images = _told(known, there[0].counts) if there else "-"
        where = there[0].folder if there else where
    details = [*_problems(parts), *_advice(known, parts, data_dir)]
    size = sum(_size(pathlib.Path(part.folder)) for part in there)
    return Report(known.name, state, images, size, where, details)


def check_part(known: Set, name: str, data_dir: str, thorough: bool) -> Part:
    """Looks at one set of TFDS."""
    try:
        builder = sources.prepared(name, data_dir)
    except sources.NotPrepared:
        return Part(MISSING)
    except UserError as error:
        folder = os.path.join(sources.tfds_folder(data_dir), name.split(":")[0])
        return Part(WRONG, folder, {}, [str(error)])
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    problems = [
        f"{split}: {counts.get(split, 0):,} of {images:,} images"
        + (": it can be read, as a sample" if 0 < counts.get(split, 0) < images else "")
        for split, images in known.splits.items()
        if counts.get(split, 0) != images
    ]
    for split in (split for split in known.splits if counts.get(split)):
        try:
            source = sources.load(name, split, data_dir, known.labels)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += _wrong_classes(known, source.class_names)
        problems += _unreadable(known, builder, split, source.num_classes, thorough)
    problems = list(dict.fromkeys(problems))  # what is wrong with each split is said once
    return Part(WRONG if problems else READY, str(builder.data_dir), counts, problems)


def _wrong_classes(known: Set, names: Sequence[str]) -> Iterator[str]:
    """Names in another order would be other labels (F11)."""
    expected = list(wnids() if known.imagenet else sorted(names))
    if len(names) != known.facts.classes:
        yield f"{len(names)} classes, not {known.facts.classes}"
    elif list(names) != expected:
        pairs = enumerate(zip(names, expected, strict=True))
        at, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        yield f"classes in another order: class {at} is {ours}, not {theirs}"


def _unreadable(
    known: Set, builder: Any, split: str, classes: int, thorough: bool
) -> Iterator[str]:
    """Decodes a split's images strictly, where the reader would take a cut one as it is."""
    examples = builder.as_data_source(
        split=split,
        file_format="array_record",
        decoders={"image": tfds.decode.SkipDecoding()},
    )

    def trouble(i: int) -> str:
        try:
            example = examples[i]
            with Image.open(io.BytesIO(example["image"])) as image:
                image.load()
            label = known.labels.read(example)
        except Exception as error:  # of a damaged record the libraries raise almost anything
            return f"{split}: image {i} cannot be read ({in_one_line(error, 100)})"
        if np.ndim(label) == 0 and not 0 <= label < classes:
            return f"{split}: image {i} has label {label}, outside [0, {classes})"
        return ""

    chosen = spread(len(examples), thorough)
    yield from shortened(filter(None, in_threads(trouble, chosen, f"{known.name} {split}")))


def spread(count: int, thorough: bool) -> Sequence[int]:
    """Places of the images to decode: all, or of many SAMPLE, from the first to the last."""
    if thorough or count <= WHOLE:
        return range(count)
    return [int(i) for i in np.linspace(0, count - 1, SAMPLE)]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
    """The results of ``work``, in order; it ends early on Ctrl-C or SIGTERM (Preempted)."""
    step = 2048
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), step):
            stop_if_asked()
            yield from pool.map(work, items[start : start + step])
            if len(items) > step and sys.stderr.isatty():
                done = min(start + step, len(items))
                print(f"\r{what}: {done:,} of {len(items):,}", end="\r", file=sys.stderr)


def shortened(lines: Iterable[str]) -> list[str]:
    """The first few of many, and how many more."""
    lines = list(lines)
    more = len(lines) - SHOWN
    return lines if more <= 0 else [*lines[:SHOWN], f"and {more:,} more"]


def _told(known: Set, counts: Mapping[str, int]) -> str:
    """Each split that is needed: train 900 of 1,281,167."""
    return ", ".join(
        f"{split} {counts.get(split, 0):,}"
        + ("" if counts.get(split, 0) == images else f" of {images:,}")
        for split, images in known.splits.items()
    )


def _problems(parts: Mapping[str, Part]) -> Iterator[str]:
    """Each with the part it is of, where there are several."""
    for name, part in parts.items():
        prefix = f"{name}: " if len(parts) > 1 else ""
        yield from (prefix + problem for problem in part.problems)


def _advice(known: Set, parts: Mapping[str, Part], data_dir: str) -> Iterator[str]:
    """What to do about a set that is not ready."""
    wrong = [part.folder for part in parts.values() if part.state == WRONG]
    if wrong:
        yield f"for a whole one move {wrong[0]} away, then:"
    if wrong or any(part.state == MISSING for part in parts.values()):
        yield command(known, data_dir)
        yield from requirements(known, data_dir)


def command(known: Set, data_dir: str) -> str:
    """The line that prepares a set."""
    at = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m adv_ssl.data --prepare={known.name}{at}"


def requirements(known: Set, data_dir: str) -> Iterator[str]:
    """What it takes to prepare a set: packages, work by hand, the network, the disk."""
    yield from (f"before, {said}" for said in known.absent(data_dir))
    if known.facts.terms and not known.facts.by_hand:
        yield f"licence: {known.facts.terms}"
    yield amounts(known, data_dir)


def amounts(known: Set, data_dir: str) -> str:
    """What preparing a set fetches and takes."""
    facts = known.facts
    free = shutil.disk_usage(_existing(pathlib.Path(sources.tfds_folder(data_dir)))).free
    fetched = f"downloads {told_bytes(facts.download)}, " if facts.download else ""
    little = "only " if free < facts.disk + facts.download else ""
    return f"{fetched}takes {told_bytes(facts.disk)}; {little}{told_bytes(free)} are free"


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def told_bytes(count: float) -> str:
    """In the largest decimal unit, as disks are sold: 167 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return (
        f"{count:.1f} {units[0]}" if units[0] != "B" and count < 9.95 else f"{count:.0f} {units[0]}"
    )
