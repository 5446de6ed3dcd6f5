"""The table of all data sets that were asked for."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from adv_ssl.data import sources
from adv_ssl.doctor.check import READY, Report, check, told_bytes
from adv_ssl.doctor.folders import check_folder
from adv_ssl.doctor.sets import SETS, find

DIGITS = "digits"


def reports(words: Sequence[str], data_dir: str, thorough: bool) -> list[Report]:
    """Looks at the sets and folders that are named; at all sets if none is.

    Raises:
      UserError: a word is neither a set nor a folder.
    """
    words = words or [DIGITS, *SETS]
    known = {word: find(word) for word in words if word != DIGITS and not _is_folder(word)}

    def report(word: str) -> Report:
        if word in known:
            return check(known[word], data_dir, thorough)
        return _digits() if word == DIGITS else check_folder(word, thorough)

    return [report(word) for word in words]


def _is_folder(word: str) -> bool:
    if word in SETS:
        return False
    return word.startswith("folder:") or os.sep in word or pathlib.Path(word).is_dir()


def _digits() -> Report:
    counts = {split: len(sources.load(DIGITS, split, "").records) for split in ("train", "test")}
    images = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    return Report(DIGITS, READY, images, 0, "scikit-learn")


def table(found: Sequence[Report]) -> Iterator[str]:
    """Lines: a row for each set, what is wrong with it beneath; how many are ready."""
    rows = [("set", "state", "images", "disk", "where")]
    rows += [(r.name, r.state, r.images, told_bytes(r.size) if r.size else "-", r.where)
             for r in found]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    details: list[Sequence[str]] = [(), *(r.details for r in found)]
    for row, lines in zip(rows, details, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for line in ("  ".join(cells).rstrip(), *(f"    {line}" for line in lines)):
            yield line.encode(errors="backslashreplace").decode()  # a file's name may be any bytes
    yield f"{sum(r.state == READY for r in found)} of {len(found)} ready"
