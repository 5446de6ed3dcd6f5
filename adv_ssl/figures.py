"""Drawings of a run: arrays in, a ``Figure`` or what it shows out; no files, no global state.

Images are float32 [H, W, 3] in [0, 1]. Colours are those of Okabe and Ito, told apart by everyone;
curves differ by marker as well.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # loaded when something is drawn: a training run starts without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
INK, FAINT = "#333b44", "#e4e7eb"
MANY_POINTS = 60  # from here on a curve is drawn faint, with a running mean over it


def filter_components(
    kernel: np.ndarray, patch: int, count: int = 28
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the patch embedding's filters (paper section D and Fig. 4; I21).

    The filters are standardised first: every pixel has its mean over the filters subtracted and is
    divided by its standard deviation over them (a pixel that is the same in all filters stays 0).
    A component's sign is free: here its entry of largest magnitude is positive, so that the figure
    is the same each time.

    Args:
      kernel: [patch * patch * 3, width]: a filter a column, pixels in (row, col, channel) order.
      patch: pixels a side.
      count: components wanted; K = min(count, patch * patch * 3, width) are given.

    Returns:
      Components [K, patch, patch, 3], each rescaled from its min..max to [0, 1], largest share of
      variance first; and those shares [K], of a sum of at most 1.

    Raises:
      ValueError: if the kernel does not have patch * patch * 3 rows.
    """
    if kernel.ndim != 2 or kernel.shape[0] != patch * patch * 3:
        raise ValueError(f"kernel {kernel.shape}: expected [{patch} * {patch} * 3, width].")
    filters = np.asarray(kernel, np.float64).T
    filters = filters - filters.mean(0)
    spread = filters.std(0)
    filters = filters / np.where(spread > 1e-12, spread, 1.0)
    _, singular, components = np.linalg.svd(filters, full_matrices=False)
    total = np.sum(singular**2)
    explained = singular**2 / (total if total > 0 else 1.0)
    k = min(count, len(singular))
    components = components[:k]
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(k), largest])[:, None]
    low, high = components.min(1, keepdims=True), components.max(1, keepdims=True)
    scaled = (components - low) / np.where(high > low, high - low, 1.0)
    return scaled.reshape(k, patch, patch, 3).astype(np.float32), explained[:k]


def amplification(perturbation: np.ndarray) -> float:
    """The factor that shows perturbations: the largest of one digit (20, 7, 0.5) that leaves 99% of
    their entries within +-1/2. The few beyond, in L2, are cut: they would hide the rest.
    """
    reach = float(np.quantile(np.abs(perturbation), 0.99)) or float(np.abs(perturbation).max())
    if reach == 0:
        return 1.0
    ideal = 0.5 / reach * (1 + 1e-5)  # float32's last bits must not turn 10 into 9
    unit = 10.0 ** math.floor(math.log10(ideal))
    return float(f"{math.floor(ideal / unit) * unit:.0e}")


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> "Figure":
    """Images of one size in rows of one length, with gaps between them.

    Small images are enlarged by a whole number, each pixel to a square (nearest neighbour).
    """
    size = len(rows[0][0])
    zoom = math.ceil(192 / size)
    gap = round(0.04 * size * zoom)
    images = np.clip(np.array(rows), 0, 1).repeat(zoom, 2).repeat(zoom, 3)
    tiles = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])[:-gap, :-gap]
    figure = _figure(sheet.shape[1] / 100, sheet.shape[0] / 100, dpi=100)
    figure.figimage(sheet)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over ``window`` points, fewer at the ends. [T] -> [T]."""
    box = np.ones(window)
    return np.convolve(values, box, "same") / np.convolve(np.ones(len(values)), box, "same")


def curve(
    steps: np.ndarray, values: np.ndarray, title: str, bounds: tuple[float, float] | None = None
) -> "Figure":
    """One metric over training, [T] against [T], with its last value at the upper right.

    ``bounds`` of the y axis: for shares, whose distance to 0 and 1 is what tells something.
    """
    from matplotlib import ticker

    figure = _figure(3.5, 2.1, dpi=200)
    axes = figure.add_axes((0.15, 0.19, 0.81, 0.66))
    line = values
    if len(values) >= MANY_POINTS:
        axes.plot(steps, values, color=COLOURS[0], alpha=0.25, linewidth=0.7)
        line = running_mean(values, window=max(5, len(values) // 25))
    # A point alone is no line: it needs its marker.
    marker = "o" if len(values) < 10 else ""
    axes.plot(steps, line, color=COLOURS[0], linewidth=1.5, marker=marker, markersize=3)
    if bounds is not None:
        axes.set_ylim(*bounds)
    axes.set_title(title, loc="left", fontsize=8, color=INK, fontweight="bold")
    axes.set_title(f"{values[-1]:.3g}", loc="right", fontsize=8, color=COLOURS[0])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_xlabel("step", fontsize=7.5, color=INK, labelpad=2)
    plain(axes)
    return figure


def robust_accuracy(curves: Mapping[str, Sequence[Sequence[float]]], radius: str) -> "Figure":
    """Accuracy over the radius of the attack: a curve a name, of points (radius, value, low, high).

    Values are shares, 0..1, ``low`` and ``high`` their intervals' ends; ``radius`` names the axis.
    """
    from matplotlib import ticker

    figure = _figure(4.4, 2.8, dpi=220)
    axes = figure.add_axes((0.12, 0.16, 0.85, 0.8))
    for i, (name, points) in enumerate(curves.items()):
        x, value, low, high = np.array(points, float).T
        error = np.maximum(0.0, [value - low, high - value])
        axes.errorbar(
            x, value, error, label=name, color=COLOURS[i % 6], marker=MARKERS[i % 6],
            capsize=3, linewidth=1.5, markersize=4,
        )  # fmt: skip
    highest = max(point[3] for points in curves.values() for point in points)
    axes.set_ylim(0, min(1.02, math.ceil(5 * highest) / 5 + 0.02))
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    if len(curves) > 1:
        for text in axes.legend(fontsize=7, frameon=False).get_texts():
            text.set_parse_math(False)
    axes.set_xlabel(radius, fontsize=7.5, color=INK, labelpad=2)
    plain(axes)
    return figure


def filters(components: np.ndarray, explained: np.ndarray) -> "Figure":
    """Components [K, p, p, 3] in rows of seven, each over its share of the variance, [K]."""
    rows = max(1, math.ceil(len(components) / 7))
    figure = _figure(7, 1.16 * rows, dpi=160)
    grid = figure.subplots(rows, 7, squeeze=False)
    figure.subplots_adjust(0.0, 0.16 / rows, 1.0, 1.0, wspace=0.06, hspace=0.22)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, share in zip(grid.flat, components, explained, strict=False):
        axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
        axes.text(0.5, -0.04, f"{share:.1%}", transform=axes.transAxes, ha="center", va="top",
                  fontsize=7, color=INK)  # fmt: skip
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure(width: float, height: float, dpi: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi)


def plain(axes: "Axes", size: float = 7) -> None:
    """No frame, faint lines to read values by."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9aa3ad")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=size, length=0, colors=INK)
