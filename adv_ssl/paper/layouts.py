"""How each exhibit is laid out: its rows and columns, the number in each cell, and what fills it.

Tables, pictures and CSV files are made from these, the paper's and ours alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adv_ssl.names import NORMS, radius
from adv_ssl.paper import grid
from adv_ssl.paper.exhibits import AVERAGE, BASELINE, FIGURE3, Exhibits, Score
from adv_ssl.paper.grid import Scale
from adv_ssl.recipes import METHODS, THREATS

Key = tuple[Any, ...]
TITLES = {
    "figure1": ("Figure 1", "Mean top-1 over the variants against the radius of pre-training"),
    "figure2": ("Figure 2", "The best models of each method and threat, variant by variant"),
    "figure3": ("Figure 3", "Layer-wise decay in fine-tuning"),
    "figure5": ("Figure 5", "Robust accuracy by layer-wise decay"),
    "table1": ("Table 1", "Transfer to small sets"),
}
NOTES = {
    "figure1": "Radii at equal distances. The paper's figure is an image: its best models' means "
    "follow from its Figure 2, other points and its zero line are not printed; the text says what "
    "lies above and below the line (C05). "
    "Bars are 95% intervals: over seeds if there are two or more, else over images.",
    "figure2": "Rows are coloured by themselves, red is better. In the paper radius and decay have "
    "the best mean on these very sets (D15).",
    "figure3": "As Figure 2.",
    "figure5": "Top-1 under attack, with 95% intervals. The paper's figure is an image.",
    "table1": "The best of a row is bold. Encoders of the radii in the paper's caption.",
}
SHORT = {"supervised": "Sup-PT", "rotnet": "RotNet", "mae": "MAE", "byol": "BYOL"}
GROUPS = {"nominal": "Nominal", **NORMS}
VARIANT_TITLES = {
    "imagenet": ("ImageNet", "IN-Real", "IN-V2", "IN-A", "IN-R", "IN-Sketch", "Conflict", "IN-C"),
    "cifar10": ("CIFAR-10", "Conflict", "corrupted"),
}  # by suite, in the order of a scale's variants
SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "sun397": "SUN-397",
        "resisc45": "RESISC-45", "dmlab": "DMLab", AVERAGE: "Average"}  # fmt: skip
MISSING = "\N{EN DASH}"  # of a number that is not there
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


class Head(NamedTuple):
    """A row or a column: its part of the key, and what stands there."""

    key: Key
    label: str


class Layout(NamedTuple):
    """An exhibit as a table."""

    name: str  # of the dictionary of ``Exhibits``
    fields: tuple[str, ...]  # names of a key's parts
    rows: Sequence[Head]
    columns: Sequence[Head]
    groups: Sequence[tuple[str, int]]  # (heading, number of columns below it)
    key: Callable[[Key, Key], Key]  # of a row and a column
    fill: Callable[[Key], str]  # key -> names of the cells that fill it, for --only
    decimals: int = 1


def layouts(name: str, exhibits: Exhibits) -> dict[str, Layout]:
    """All exhibits at a scale; ``exhibits`` are ours, whose best radii Figures 2 and 3 show."""
    scale = grid.SCALES[name]
    places = Places(name, scale, exhibits.chosen)
    made = [_figure1(scale, places), _figure2(scale, places), _figure3(scale, places),
            _figure5(scale, exhibits, places)]  # fmt: skip
    if scale.transfers:
        made.append(_table1(scale, places))
    return {layout.name: layout for layout in made}


class Places(NamedTuple):
    """Patterns of names of cells."""

    name: str
    scale: Scale
    chosen: Mapping[tuple[str, str], float]

    def model(self, method: str, threat: str, epsilon: float | None = None) -> str:
        """The folder of a radius: the one given, or the one that is shown."""
        if epsilon is None:
            epsilon = self.shown(method, threat)
        return f"{self.name}/{method}/{grid.threat_folder(threat, epsilon)}/seed*"

    def shown(self, method: str, threat: str) -> float:
        """The best radius; as long as none is scored, the paper's, or the first of a scale that
        does not have it.
        """
        radii, stated = self.scale.radii[method, threat], grid.table1_radius(method, threat)
        return self.chosen.get((method, threat), stated if stated in radii else radii[0])

    def scores(self, method: str, threat: str, gamma: float | None, epsilon: float | None) -> str:
        """What scores a model, or all its decays."""
        decay = "*" if gamma is None else f"{gamma:g}"
        return f"{self.model(method, threat, epsilon)}/gamma{decay}/scores/{self.scale.suite}"


def signed(value: float, places: int) -> str:
    """With its sign, and 0 as +0."""
    return f"{round(value, places) + 0.0:+.{places}f}"


def digits(value: float | None) -> str:
    """For a CSV file."""
    return "" if value is None else f"{value:.4f}"


def difference(score: Score | None) -> str:
    """With the ends of its interval, if it has one, all with their signs."""
    if score is None:
        return MISSING
    if score.low is None or score.high is None:
        return signed(score.value, 1)
    return f"{signed(score.value, 1)} ({signed(score.low, 1)} to {signed(score.high, 1)})"


def _figure1(scale: Scale, places: Places) -> Layout:
    rows = [Head(BASELINE[1:], "from scratch"), Head(("nominal", 0.0), "nominal")]
    for threat in THREATS[1:]:
        epsilons = sorted(
            {e for (_, t), radii in scale.radii.items() if t == threat for e in radii}
        )
        rows += [Head((threat, e), f"{GROUPS[threat]} {radius(threat, e)}") for e in epsilons]

    def fill(key: Key) -> str:
        if key == BASELINE:
            return f"{places.model('supervised', 'nominal', 0.0)}/gamma*/scores/baseline"
        return (
            places.scores(key[0], key[1], scale.swept, key[2])
            if key[2] in scale.radii.get(key[:2], ())
            else ""
        )

    return Layout(
        "figure1",
        ("method", "threat", "epsilon"),
        rows,
        [Head((m,), SHORT[m]) for m in METHODS],
        [("", len(METHODS))],
        lambda row, column: (*column, *row),
        fill,
        decimals=2,
    )


def _variants(scale: Scale) -> list[Head]:
    names = zip(scale.variants, VARIANT_TITLES[scale.suite], strict=True)
    return [Head((variant,), label) for variant, label in names]


def _figure2(scale: Scale, places: Places) -> Layout:
    columns = [Head((m, t), SHORT[m]) for t in THREATS for m in METHODS]
    return Layout(
        "figure2",
        ("variant", "method", "threat"),
        _variants(scale),
        columns,
        [(GROUPS[threat], len(METHODS)) for threat in THREATS],
        lambda row, column: row + column,
        lambda key: places.scores(key[1], key[2], None, None),
    )


def _figure3(scale: Scale, places: Places) -> Layout:
    threats = dict(FIGURE3)

    def fill(key: Key) -> str:
        _, method, gamma = key
        threat = threats[method]
        run = gamma in scale.decays(method, threat, places.shown(method, threat))
        return places.scores(method, threat, gamma, None) if run else ""

    return Layout(
        "figure3",
        ("variant", "method", "gamma"),
        _variants(scale),
        [Head((m, g), f"{g:g}") for m in threats for g in scale.gammas],
        [(f"{SHORT[m]} {GROUPS[t]}", len(scale.gammas)) for m, t in FIGURE3],
        lambda row, column: row + column,
        fill,
    )


def _figure5(scale: Scale, exhibits: Exhibits, places: Places) -> Layout:
    method, threat, epsilon = scale.robust
    radii = sorted({key[1] for key in exhibits.figure5}) or [0.0]
    model = places.model(method, threat, epsilon)
    return Layout(
        "figure5",
        ("gamma", "radius"),
        [Head((r,), radius(threat, r) if r else "clean") for r in radii],
        [Head((g,), f"decay {g:g}") for g in scale.gammas],
        [(f"{SHORT[method]}, {GROUPS[threat]} {radius(threat, epsilon)}", len(scale.gammas))],
        lambda row, column: column + row,
        lambda key: f"{model}/gamma{key[0]:g}/scores/robust",
    )


def _table1(scale: Scale, places: Places) -> Layout:
    def fill(key: Key) -> str:
        dataset = "*" if key[0] == AVERAGE else key[0]
        model = places.model(key[2], key[3], grid.table1_radius(key[2], key[3]))
        return f"{model}/transfer_{dataset}_{key[1]}"

    return Layout(
        "table1",
        ("dataset", "optimizer", "method", "threat"),
        [
            Head((s, o), f"{SETS.get(s, s)} {OPTIMIZERS[o]}")
            for s in (*scale.transfers, AVERAGE)
            for o in OPTIMIZERS
        ],
        [Head((m, t), GROUPS[t]) for m in METHODS for t in THREATS],
        [(SHORT[m], len(THREATS)) for m in METHODS],
        lambda row, column: row + column,
        fill,
        decimals=2,
    )
