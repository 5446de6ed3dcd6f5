"""Every data set that a configuration or a suite needs, with what a whole one holds.

Names, versions, test splits, class lists and labels come from the table of the suites; the
rest from the catalogue.
"""

import difflib
import importlib.util
import os
import shutil
from typing import NamedTuple

from adv_ssl.data.catalogue import FACTS, Facts
from adv_ssl.data.sources import LABEL, Labels, tfds_folder
from adv_ssl.errors import UserError
from adv_ssl.evaluation.suites import SUITES, builder

_MODULES = {"scikit-image": "skimage"}  # where it is not the package's name


class Set(NamedTuple):
    """A data set; the 75 corrupted ones are one."""

    name: str
    parts: tuple[str, ...]  # of TFDS, with versions
    splits: dict[str, int]  # images in each split of each part
    labels: Labels
    imagenet: bool  # its classes are the 1000 sorted WNIDs; otherwise sorted names
    facts: Facts

    def absent(self, data_dir: str) -> list[str]:
        """What preparing the set needs and is not here, as words on how to get it."""
        names = ("tensorflow", *self.facts.packages)  # reading needs none of them
        packages = [n for n in names if not importlib.util.find_spec(_MODULES.get(n, n))]
        said = []
        if packages:
            wanted = " ".join(packages)
            said.append(f"pip install {wanted}, best in a .venv of its own: docs/data.md")
        program = self.facts.program
        if program and not shutil.which(program):
            said.append(
                f"install ImageMagick and make it known as {program}: "
                f"ln -s $(which convert) ~/.local/bin/{program}"
            )
        manual = os.path.join(tfds_folder(data_dir), "downloads", "manual")
        files = [n for n in self.facts.by_hand if not os.path.exists(os.path.join(manual, n))]
        if files:
            said.append(f"put {' and '.join(files)} into {manual} ({self.facts.terms})")
        return said


def _set(name: str) -> Set:
    rows = [row for suite in SUITES.values() for row in suite if builder(row.dataset) == name]
    scored = {row.split: row.images for row in rows if "[" not in row.split}
    return Set(
        name,
        tuple(dict.fromkeys(row.dataset for row in rows)),
        {**FACTS[name].train, **scored},
        next((row.labels for row in rows), LABEL),
        any(row.imagenet for row in rows),
        FACTS[name],
    )


SETS = {name: _set(name) for name in FACTS}


def find(name: str) -> Set:
    """A set by its name. UserError: there is none."""
    if name not in SETS:
        close = difflib.get_close_matches(name, SETS, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"{name}: no such data set; {meant}choose from digits, {', '.join(SETS)}, or give the "
            "path of a folder of images."
        )
    return SETS[name]
