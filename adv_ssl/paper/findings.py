"""What a claim comes to on some exhibits, and the terms that the claims are made of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adv_ssl.recipes import THREATS

ATTACKED = THREATS[1:]  # all but nominal
LEVEL = 0.5  # points: what "similar" and "level with" mean here; the paper does not say
NAMES = {"supervised": "Sup", "rotnet": "RotNet", "mae": "MAE", "byol": "BYOL"}
SELF_SUPERVISED = ("rotnet", "mae", "byol")


class Finding(NamedTuple):
    """What a claim comes to on some exhibits."""

    margins: Sequence[float]  # points, by how much each of its parts is true
    number: float | None  # points, what the paper states a number of
    detail: str

    @property
    def margin(self) -> float:
        """Points, by how much all of it is true."""
        return min(self.margins)


def number(value: float) -> Finding:
    """Of a claim that a difference is above 0, and how large."""
    return Finding([value], value, f"{value:+.2f}")


def listed(gaps: Mapping[str, float]) -> str:
    """By method or by variant, with signs."""
    return ", ".join(f"{NAMES.get(name, name)} {gap:+.2f}" for name, gap in gaps.items())


def level(gap: float) -> list[float]:
    """Margins of a gap that is to be within LEVEL."""
    return [LEVEL - gap, LEVEL + gap]


def sign(margin: float) -> int:
    """Of a difference of printed numbers, that are not exact in binary."""
    return 0 if abs(margin) < 1e-9 else int(np.sign(margin))
