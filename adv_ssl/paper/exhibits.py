"""The exhibits of the paper as numbers, and what it prints of them, from data/*.csv.

Ours are of the same type (``tables``): whatever is drawn or claimed of the one is of the other too.
"""

import csv
import dataclasses
import fractions
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from adv_ssl.evaluation.rules import VARIANTS
from adv_ssl.recipes import METHODS, THREATS
from adv_ssl.recipes import paper as paper_sets

DATA = pathlib.Path(__file__).parent / "data"
# The models of Figure 3, by method and threat
FIGURE3 = (("supervised", "linf"), ("mae", "l2"), ("byol", "l2"))
BASELINE = ("supervised", "scratch", 0.0)  # Figure 1's zero line: never fine-tuned (D14)
AVERAGE = "average"  # the last row of Table 1


class Missing(LookupError):
    """A number that is not there."""


class Score(NamedTuple):
    """A number in percent."""

    value: float
    low: float | None = None  # 95% interval: over seeds if there are two or more, else over images
    high: float | None = None
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Exhibits:
    """All exhibits; of the dictionaries, what is not there is missing."""

    variants: tuple[str, ...]
    chosen: Mapping[tuple[str, str], float]  # (method, threat) -> the best epsilon
    leading: Mapping[str, str]  # method -> the threat of its best attacked model
    figure1: Mapping[tuple[str, str, float], Score]  # method, threat, epsilon: mean of variants
    figure2: Mapping[tuple[str, str, str], Score]  # variant, method, threat
    figure3: Mapping[tuple[str, str, float], Score]  # variant, method, gamma
    figure5: Mapping[tuple[float, float], Score]  # gamma, radius of the attack
    table1: Mapping[tuple[str, str, str, str], Score]  # set, optimizer, method, threat
    l2_unit: float = 1.0  # what an L2 radius of 1 of the paper is here
    # What Figures 1 and 5 are to have before they are judged; of the paper's, whatever is printed
    radii: Mapping[tuple[str, str], tuple[float, ...]] = dataclasses.field(default_factory=dict)
    gammas: tuple[float, ...] = ()
    # (method, threat) of which a model that might be the best is not scored: not to be judged yet
    unsettled: Collection[tuple[str, str]] = ()

    def mean(self, method: str, threat: str, without: Collection[str] = ()) -> float:
        """The mean over the variants of the best model of a method and threat."""
        rows = [row for row in self.variants if row not in without]
        return float(np.mean([self.cell(row, method, threat) for row in rows]))

    def cell(self, variant: str, method: str, threat: str) -> float:
        """A cell of Figure 2; Missing where there is none, or another model may be the best."""
        self.check_settled(method, threat)
        return _get(self.figure2, (variant, method, threat))

    def gamma(self, variant: str, method: str, gamma: float) -> float:
        """A cell of Figure 3; Missing where there is none, or another radius may be the best."""
        self.check_settled(method, dict(FIGURE3)[method])
        return _get(self.figure3, (variant, method, gamma))

    def check_settled(self, method: str, threat: str) -> None:
        """Missing where a model of them that may be the best is not scored."""
        if (method, threat) in self.unsettled:
            raise Missing(f"{method} {threat}: not all models that the best is chosen from")

    def baseline(self) -> float:
        """The mean of Figure 1's zero line; Missing where it is not known."""
        if BASELINE not in self.figure1:
            raise Missing("the baseline")
        return self.figure1[BASELINE].value

    def transfer(self, dataset: str, optimizer: str, method: str, threat: str) -> float:
        """A cell of Table 1; Missing where there is none."""
        return _get(self.table1, (dataset, optimizer, method, threat))

    def transfer_mean(self, optimizer: str, method: str, threat: str) -> float:
        """The mean over the sets of Table 1, not rounded; Missing where one is."""
        sets = paper_sets.TRANSFER_SETS
        return float(np.mean([self.transfer(s, optimizer, method, threat) for s in sets]))


def _get(scores: Mapping[Any, Score], key: tuple[object, ...]) -> float:
    if key not in scores:
        raise Missing(" ".join(str(part) for part in key))
    return scores[key].value


def over_seeds(scores: Sequence[Score]) -> Score:
    """Their mean with its interval; a single one as it is."""
    if len(scores) == 1:
        return scores[0]
    value, low, high = interval([score.value for score in scores])
    return Score(value, low, high, len(scores))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its interval of that level by Student's t, of two or more values."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half


# ---- the paper's numbers --------------------------------------------------------------------


def paper() -> Exhibits:
    """What the paper prints. Its Figures 1 and 5 are images: of Figure 1 the best models' means
    follow from Figure 2 (F6), of the rest there is nothing.
    """
    figure2, chosen = {}, {}
    for row in rows("figure2"):
        figure2[row["variant"], row["method"], row["threat"]] = Score(float(row["top1"]))
        chosen[row["method"], row["threat"]] = _epsilon(row["epsilon"])
    figure3 = {
        (row["variant"], row["method"], float(row["gamma"])): Score(float(row["top1"]))
        for row in rows("figure3")
    }
    table1 = {
        (row["dataset"], row["optimizer"], row["method"], row["threat"]): Score(float(row["top1"]))
        for row in rows("table1")
    }
    means = {
        (*column, epsilon): Score(float(np.mean([figure2[v, *column].value for v in VARIANTS])))
        for column, epsilon in chosen.items()
    }
    leading = {
        method: max(THREATS[1:], key=lambda t: means[method, t, chosen[method, t]].value)
        for method in METHODS
    }
    return Exhibits(VARIANTS, chosen, leading, means, figure2, figure3, {}, table1)


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a file of ``data``."""
    with (DATA / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _epsilon(text: str) -> float:
    """6/255 or 0.5."""
    return float(fractions.Fraction(text))
