"""Figure 4: the patch embedding's filters of the best encoders, by method and threat (I21, C30)."""

import pathlib
import shlex
from collections.abc import Mapping

import numpy as np

from adv_ssl.files import read_arrays
from adv_ssl.markup import Html, image, join, tag
from adv_ssl.names import METHOD_TITLES, radius
from adv_ssl.paper import figures, grid, runner
from adv_ssl.paper.grid import Model
from adv_ssl.paper.layouts import GROUPS, Places
from adv_ssl.recipes import METHODS, THREATS

FILE = "figures/filters.npz"  # in the folder of a cell that pre-trains


def section(
    scale: str,
    chosen: Mapping[tuple[str, str], float],
    folder: pathlib.Path,
    called: pathlib.Path,
    out: pathlib.Path,
) -> Html:
    """The picture, and the commands of what it lacks.

    Args:
      scale: of the grid.
      chosen: our best radius of each method and threat.
      folder: the store.
      called: how commands name the store.
      out: folder of the picture.
    """
    places = Places(scale, grid.SCALES[scale], chosen)
    sheets, told, lacks = {}, [], []
    for threat in THREATS:
        for method in METHODS:
            epsilon = places.shown(method, threat)
            found = _of_first_seed(scale, method, threat, epsilon, folder)
            if isinstance(found, str):
                lacks.append(found)
                continue
            seed, sheets[threat, method] = found
            size = f" {radius(threat, epsilon)}" if epsilon else ""
            told.append(f"{METHOD_TITLES[method]} {GROUPS[threat]}{size}, seed {seed}")
    note = tag(
        "p",
        "The first 28 principal components of the standardised filters (I21), of the first seed "
        f"that has them: {'; '.join(told) or 'none yet'}. The paper's figure is an image, and its "
        "claim C30 is for the eye.",
        class_="note",
    )
    words = ["python", "-m", "adv_ssl.paper", "run", f"--scale={scale}", f"--store={called}"]
    lines = []
    for cell in (cell for cell in grid.cells(scale) if cell.name in lacks):
        how = shlex.join([*words, f"--only={cell.name}"])
        if runner.done(cell, folder):
            how = f"{cell.name} is done, and its pictures are elsewhere: remove it and run it again"
        lines.append(tag("li", tag("code", how)))
    missing = [tag("p", "missing:", class_="missing"), tag("ul", *lines)] if lacks else []
    if not sheets:
        return join(note, *missing)
    drawn = figures.filter_sheets(sheets)
    return join(tag("figure", image(out, "figure4_ours", drawn, "Filters")), note, *missing)


def _of_first_seed(
    scale: str, method: str, threat: str, epsilon: float, folder: pathlib.Path
) -> tuple[int, np.ndarray] | str:
    """(seed, components [K, p, p, 3]), or the name of the first seed's cell where none has any."""
    options = grid.SCALES[scale]
    first = Model(method, threat, epsilon, options.decays(method, threat, epsilon)[0])
    names = {seed: grid.run_name(scale, first, seed) for seed in options.seeds}
    for seed, name in names.items():
        if (folder / name / FILE).exists():
            try:
                return seed, read_arrays(folder / name / FILE)["components"]
            except Exception:  # damaged, as if it were not there: numpy raises almost anything
                continue
    return names[options.seeds[0]]
