"""Figure 4: the patch embedding's filters of the best encoders, by method and threat (I21, C30)."""

import pathlib
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
            names = _cells(scale, method, threat, epsilon)
            sheets_of = ((seed, _components(folder / name / FILE)) for seed, name in names.items())
            found = next(((seed, sheet) for seed, sheet in sheets_of if sheet is not None), None)
            if found is None:
                lacks.append(next(iter(names.values())))
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
    lines = []
    for cell in (cell for cell in grid.cells(scale) if cell.name in lacks):
        how = grid.run_command(scale, called, cell.name)
        if runner.done(cell, folder):
            how = f"{cell.name} is done, and its pictures are elsewhere: remove it and run it again"
        lines.append(tag("li", tag("code", how)))
    missing = [tag("p", "missing:", class_="missing"), tag("ul", *lines)] if lacks else []
    if not sheets:
        return join(note, *missing)
    drawn = figures.filter_sheets(sheets)
    return join(tag("figure", image(out, "figure4_ours", drawn, "Filters")), note, *missing)


def _cells(scale: str, method: str, threat: str, epsilon: float) -> dict[int, str]:
    """The cells that pre-train an encoder, by seed."""
    options = grid.SCALES[scale]
    first = Model(method, threat, epsilon, options.decays(method, threat, epsilon)[0])
    return {seed: grid.run_name(scale, first, seed) for seed in options.seeds}


def _components(path: pathlib.Path) -> np.ndarray | None:
    """[K, p, p, 3]; None: not there, or damaged."""
    try:
        return read_arrays(path)["components"]
    except Exception:  # numpy raises almost anything
        return None
