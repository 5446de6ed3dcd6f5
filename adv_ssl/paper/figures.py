"""Drawings of exhibits, the same for the paper's and for ours: numbers in, a ``Figure`` out."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adv_ssl.figures import COLOURS, INK, MARKERS, plain
from adv_ssl.names import METHOD_TITLES, axis
from adv_ssl.paper.exhibits import Score
from adv_ssl.paper.layouts import GROUPS, MISSING
from adv_ssl.recipes import METHODS, THREATS

PANELS = THREATS[1:]  # of Figure 1, from left to right
# From blue to red through white, as the paper's tables; pale, so that black can be read on it
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#7aa6d8", "#dbe7f4", "#fbfbfb", "#f8d9cf", "#e8836b"]
)


class Line(NamedTuple):
    """A level over all radii, with the band that it is in."""

    value: float | None  # None: the band is all that is known
    low: float
    high: float
    label: str


def radius_curves(
    means: Mapping[tuple[str, str, float], Score],
    radii: Mapping[str, Sequence[float]],
    line: Line | None,
) -> Figure:
    """Figure 1: the mean over the variants against the radius, a panel for each norm.

    Args:
      means: percent by method, threat and epsilon; radii without a number are left out.
      radii: of each panel, epsilons going up; they stand at equal distances.
      line: the zero line of the paper's figure, where it is known.
    """
    figure = Figure(figsize=(8.4, 3.6), dpi=180)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.07, 0.235, 0.99, 0.91, wspace=0.05)
    for axes, threat in zip(panels, PANELS, strict=True):
        _panel(axes, means, threat, radii[threat], line)
        axes.set_xlabel(axis(threat), fontsize=8, color=INK)
    panels[0].set_title("mean top-1 over variants, %", loc="left", fontsize=8, color=INK)
    _legend(figure, panels[0])
    return figure


def _panel(
    axes: Axes,
    means: Mapping[tuple[str, str, float], Score],
    threat: str,
    radii: Sequence[float],
    line: Line | None,
) -> None:
    places = {0.0: 0} | {radius: i + 1 for i, radius in enumerate(radii)}
    for i, method in enumerate(METHODS):
        points = [
            (place, means[key])
            for radius, place in places.items()
            if (key := (method, threat if radius else "nominal", radius)) in means
        ]
        _curve(axes, points, i, METHOD_TITLES[method])
    if line:
        label = line.label if line.value is None else None
        axes.axhspan(line.low, line.high, label=label, color="#8a949e", alpha=0.22, linewidth=0)
        if line.value is not None:
            axes.axhline(line.value, color=INK, linestyle="--", linewidth=1.2, label=line.label)
    scale = 255 if threat == "linf" else 1
    axes.set_xticks(list(places.values()), [f"{scale * radius:g}" for radius in places])
    axes.set_xlim(-0.4, len(radii) + 0.4)
    plain(axes, size=8)


def filter_sheets(sheets: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """Figure 4: a row for each threat, a column for each method; each a sheet of components.

    ``sheets``: [K, p, p, 3] in [0, 1], by threat and method; shown in rows of seven.
    """
    figure = Figure(figsize=(10.5, 5.0), dpi=180)
    grid = figure.subplots(len(THREATS), len(METHODS))
    figure.subplots_adjust(0.035, 0.01, 0.995, 0.94, wspace=0.04, hspace=0.06)
    for row, threat in zip(grid, THREATS, strict=True):
        for axes, method in zip(row, METHODS, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if (threat, method) in sheets:
                axes.imshow(_tiled(sheets[threat, method]), interpolation="nearest")
            else:
                axes.text(0.5, 0.5, "missing", ha="center", va="center", color=INK, fontsize=8)
            if threat == THREATS[0]:
                axes.set_title(METHOD_TITLES[method], fontsize=9, color=INK)
            if method == METHODS[0]:
                axes.set_ylabel(GROUPS[threat], fontsize=9, color=INK)
    return figure


def _tiled(images: np.ndarray, across: int = 7) -> np.ndarray:
    """[K, p, p, 3] -> one image, with a white line between them."""
    down, side = -(-len(images) // across), images.shape[1] + 1
    tiles = np.ones((down * across, side, side, 3))
    tiles[: len(images), :-1, :-1] = images
    rows = tiles.reshape(down, across, side, side, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(down * side, across * side, 3)[:-1, :-1]


def _legend(figure: Figure, axes: Axes) -> None:
    """One for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8, frameon=False)


def _spaced(axes: Axes, title: str, places: Sequence[str]) -> None:
    """Puts ticks at equal distances."""
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_title(title, loc="left", fontsize=8, color=INK)
    plain(axes, size=8)


def _curve(axes: Axes, points: Sequence[tuple[int, Score]], i: int, label: str) -> None:
    """Markers with intervals; lines between neighbours, dotted over radii without a number."""
    x = [place + 0.06 * (i - 1.5) for place, _ in points]  # beside the other curves'
    values = [score.value for _, score in points]
    axes.errorbar(x, values, _errors([score for _, score in points]), label=label, fmt=MARKERS[i],
                  color=COLOURS[i], markersize=5, capsize=2)  # fmt: skip
    for (n, (here, _)), (m, (there, _)) in pairwise(enumerate(points)):
        axes.plot([x[n], x[m]], [values[n], values[m]], "-" if there == here + 1 else ":",
                  color=COLOURS[i], linewidth=1.5)  # fmt: skip


def _errors(scores: Sequence[Score]) -> np.ndarray:
    """[2, N] below and above; nan where there is no interval."""
    ends = np.array([(s.low, s.value, s.high) for s in scores], float).reshape(-1, 3)
    return np.diff(ends).T


def gains_by_scale(
    gains: Mapping[tuple[str, str], Mapping[str, Score]],
    titles: Mapping[str, str],
    scales: Mapping[str, str],
    lengths: int,
) -> Figure:
    """What attacked pre-training is above nominal, a panel for each variant.

    Args:
      gains: points by variant and method, by scale; what is not there is left out.
      titles: of the variants.
      scales: their titles.
      lengths: so many of the scales, the first, are lengths and make a curve.
    """
    across = min(3, len(titles))
    down = -(-len(titles) // across)
    figure = Figure(figsize=(8.4, 0.8 + 2.4 * down), dpi=180)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    figure.subplots_adjust(0.06, 0.7 / (0.8 + 2.4 * down), 0.99, 0.94, wspace=0.2, hspace=0.35)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for axes, (variant, title) in zip(panels, titles.items(), strict=False):
        axes.axhline(0, color=INK, linestyle="--", linewidth=1.2)
        for i, method in enumerate(METHODS):
            if found := gains.get((variant, method)):
                points = [(place, found[n]) for place, n in enumerate(scales) if n in found]
                curve = [point for point in points if point[0] < lengths]
                _curve(axes, curve, i, METHOD_TITLES[method])
                for point in points[len(curve) :]:
                    _curve(axes, [point], i, "_")  # not in the legend
        _spaced(axes, title, [*scales.values()])
    for axes in panels[::across]:
        axes.set_ylabel("points above nominal", fontsize=8, color=INK)
    _legend(figure, panels[0])
    return figure


def by_decay(
    rows: Mapping[str, Mapping[tuple[str, str], Mapping[float, Score]]], decays: Sequence[float]
) -> Figure:
    """Scores against the layer-wise decay of fine-tuning, a curve for each threat.

    Args:
      rows: of panels, one for each method: percent by method and threat, by decay; what is not
        there is left out.
      decays: going up; they stand at equal distances.
    """
    figure = Figure(figsize=(8.4, 0.9 + 1.75 * len(rows)), dpi=180)
    panels = figure.subplots(len(rows), len(METHODS), sharex=True, sharey="row", squeeze=False)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(0.06, 0.75 / height, 0.99, 1 - 0.28 / height, wspace=0.08, hspace=0.24)
    for line, (title, scores) in zip(panels, rows.items(), strict=True):
        line[0].set_ylabel("top-1, %", fontsize=8, color=INK)
        for axes, method in zip(line, METHODS, strict=True):
            for i, (threat, label) in enumerate(GROUPS.items()):
                found = scores.get((method, threat), {})
                points = [(place, found[d]) for place, d in enumerate(decays) if d in found]
                _curve(axes, points, i, f"pre-training: {label}")
            _spaced(axes, f"{METHOD_TITLES[method]}: {title}", [f"{decay:g}" for decay in decays])
    for axes in panels[-1]:
        axes.set_xlabel("layer-wise decay", fontsize=8, color=INK)
    _legend(figure, panels[0][0])
    return figure


class Sheet(NamedTuple):
    """A table to be coloured."""

    rows: Sequence[str]
    columns: Sequence[str]
    groups: Sequence[tuple[str, int]]  # headings with the columns each is over
    values: np.ndarray  # float [R, C] in percent, nan: missing
    decimals: int = 1
    coloured: bool = True  # by row, red is better; else the best of a row is bold


def sheet(table: Sheet) -> Figure:
    """Figures 2 and 3, Table 1: cells in the colour of their place between a row's ends."""
    rows, columns = table.values.shape
    figure = Figure(figsize=(1.35 + 0.62 * columns, 0.75 + 0.31 * rows), dpi=180)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((1.25 / width, 0.62 / height, 1 - 1.35 / width, 1 - 0.72 / height))
    for r in range(rows):
        shades = _shades(table.values[r])
        for c in range(columns):
            _cell(axes, table, r, c, shades[c])
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_yticks(np.arange(rows) + 0.5, table.rows)
    axes.set_xticks(np.arange(columns) + 0.5, table.columns)
    axes.tick_params(labelsize=8.5, length=0, colors=INK)
    axes.spines[:].set_visible(False)
    start = 0
    for name, over in table.groups:
        axes.text(start + over / 2, rows + 0.95 + 0.25, name, ha="center", va="center",
                  fontsize=9, color=INK, fontweight="bold")  # fmt: skip
        if start:
            axes.axvline(start, color="white", linewidth=5)
        start += over
    return figure


def _shades(row: np.ndarray) -> np.ndarray:
    """[C] -> [C], 0 the smallest, 1 the largest; nan stays."""
    if np.isnan(row).all():
        return row
    low, high = np.nanmin(row), np.nanmax(row)
    return (row - low) / (high - low) if high > low else row - low + 0.5


def _cell(axes: Axes, table: Sheet, r: int, c: int, shade: float) -> None:
    value = table.values[r, c]
    lacks = math.isnan(value)
    face = "#f1f3f5" if lacks else HEAT(shade) if table.coloured else "#fbfbfb"
    axes.add_patch(Rectangle((c, r), 1, 1, facecolor=face, edgecolor="white", linewidth=1))
    best = shade == 1 and not table.coloured
    axes.text(c + 0.5, r + 0.52, MISSING if lacks else f"{value:.{table.decimals}f}",
              ha="center", va="center", fontsize=8.5, color="#8a949e" if lacks else "#1f262d",
              fontweight="bold" if best else "normal")  # fmt: skip
