"""What the paper says, claim by claim, held to any exhibits: the paper's own numbers and ours.

A claim is a function of the exhibits. It gives the margins, in points, by which the parts of what
it says are true: it is true where all of them are above 0.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from adv_ssl.names import radius
from adv_ssl.paper import transfer_claims
from adv_ssl.paper.exhibits import BASELINE, FIGURE3, Exhibits, Missing, rows
from adv_ssl.paper.findings import (
    ATTACKED,
    LEVEL,
    NAMES,
    SELF_SUPERVISED,
    Finding,
    level,
    listed,
    number,
    sign,
)
from adv_ssl.paper.grid import GAMMAS, table1_radius
from adv_ssl.recipes import METHODS, THREATS

TIES_HOLD = ("C02", "C26")  # "best": a tie is enough
PRINTED = ("C31",)  # of what the paper prints alone: not asked of our numbers
NEAR = ("imagenet", "real", "v2", "a", "cifar10")  # in distribution, or close to it
FAR = ("r", "sketch", "conflict", "c")


class Claim(NamedTuple):
    """A row of the claims table."""

    id: str
    where: str
    text: str
    stated: float | None  # points
    test: Callable[[Exhibits], Finding] | None  # None: not a matter of numbers


# ---- the claims -----------------------------------------------------------------------------


def _adversarial_wins(methods: Sequence[str]) -> Callable[[Exhibits], Finding]:
    """Every adversarial cell of Figure 2 above the nominal cell of its method (C01, C15)."""

    def test(e: Exhibits) -> Finding:
        gains = {
            (row, m, t): e.cell(row, m, t) - e.cell(row, m, "nominal")
            for row in e.variants
            for m in methods
            for t in ATTACKED
        }
        above = sum(sign(gain) > 0 for gain in gains.values())
        rest = [f"{NAMES[m]}-{t} {row}" for (row, m, t), gain in gains.items() if sign(gain) <= 0]
        text = f"{above} of {len(gains)} cells above nominal"
        text += f"; not {', '.join(rest)}" if rest else ""
        return Finding([*gains.values()], None, text)

    return test


def _mae_near_byol_far(e: Exhibits) -> Finding:
    """The best self-supervised cell of each row of Figure 2 is MAE's near the training
    distribution, BYOL's far from it (C02).
    """
    margins, winners = [], []
    for row in e.variants:
        expected = "mae" if row in NEAR else "byol"
        cells = {(m, t): e.cell(row, m, t) for m in SELF_SUPERVISED for t in ATTACKED}
        its = max(v for (m, _), v in cells.items() if m == expected)
        margins += [its - v for (m, _), v in cells.items() if m != expected]
        first = max(cells.values())
        best = [f"{NAMES[m]}-{t}" for (m, t), v in cells.items() if sign(first - v) == 0]
        winners.append(f"{row} {' = '.join(best)}")
    return Finding(margins, None, "best: " + ", ".join(winners))


def _rotnet_rivals_mae(e: Exhibits) -> Finding:
    """(C03, C07)"""
    best = _best(e, "rotnet")
    gain = best - e.mean("mae", "nominal")
    text = f"{gain:+.2f}; of adversarial MAE {best - _best(e, 'mae'):+.2f}"
    if "conflict" in e.variants:
        rest = e.mean("rotnet", e.leading["rotnet"], ["conflict"])
        text += f"; without conflict {rest - e.mean('mae', 'nominal', ['conflict']):+.2f}"
    return Finding([gain], None, text)


def _above_baseline(e: Exhibits) -> Finding:
    """Each curve of Figure 1 at its best radius (C04)."""
    line = e.baseline()
    tops = {(m, t): _curve(e, m, t)[_chosen(e, m, t)] - line for m in METHODS for t in ATTACKED}
    return Finding([*tops.values()], None, f"the lowest curve reaches {min(tops.values()):+.2f}")


def _nominal_against_baseline(e: Exhibits) -> Finding:
    """(C05)"""
    means = {m: _curve(e, m, "nominal")[0.0] for m in METHODS}
    below, above = ("byol", "rotnet"), ("supervised", "mae")
    bounds = (
        f"true for a baseline in ({max(means[m] for m in below):.3f}, "
        f"{min(means[m] for m in above):.3f}]"
    )
    if BASELINE not in e.figure1:
        raise Missing(f"baseline; {bounds}")
    line = e.baseline()
    margins = [line - means[m] for m in below] + [means[m] - line for m in above]
    return Finding(margins, None, f"baseline {line:.2f}; {bounds}")


def _rotnet_below_byol(e: Exhibits) -> Finding:
    """(C06)"""
    return number(_best(e, "byol") - _best(e, "rotnet"))


def _best_threats(*pairs: tuple[str, str]) -> Callable[[Exhibits], Finding]:
    """The threat of each pair is its method's best, nominal among the others (C08, C21)."""

    def test(e: Exhibits) -> Finding:
        gains = {
            m: [e.mean(m, t) - e.mean(m, other) for other in THREATS if other != t]
            for m, t in pairs
        }
        text = listed({m: min(of) for m, of in gains.items()})
        return Finding([gain for of in gains.values() for gain in of], None, text)

    return test


def _mae_best_with_l2(e: Exhibits) -> Finding:
    """(C09)"""
    return number(e.mean("mae", "l2") - e.mean("mae", "linf"))


def _byol_similar(e: Exhibits) -> Finding:
    """(C10)"""
    gap = e.mean("byol", "l2") - e.mean("byol", "linf")
    return Finding(level(gap), None, f"L2 minus L-inf {gap:+.2f}; similar: within {LEVEL}")


def _byol_gain(e: Exhibits) -> Finding:
    """(C11)"""
    curve, stated = _scored(e, "byol", "l2"), _stated(e, "byol", "l2")
    return number(curve[stated] - _curve(e, "byol", "nominal")[0.0])


def _byol_gains_most(e: Exhibits) -> Finding:
    """(C12)"""
    gains = {m: _best(e, m) - e.mean(m, "nominal") for m in METHODS}
    margins = [gains["byol"] - gain for m, gain in gains.items() if m != "byol"]
    return Finding(margins, None, listed(gains))


def _best_radius(threat: str) -> Callable[[Exhibits], Finding]:
    """Figure 1's curves have their maximum where Table 1's caption says (C13, C14)."""

    def test(e: Exhibits) -> Finding:
        margins, found = [], []
        for method in METHODS:
            curve, stated = _curve(e, method, threat), _stated(e, method, threat)
            if len(curve) < 2:
                raise Missing(f"sweep of {NAMES[method]} over {threat} radii")
            margins += [curve[stated] - v for k, v in curve.items() if k != stated]
            at = max(curve, key=lambda k: curve[k])
            found.append(f"{NAMES[method]} {radius(threat, at)}")
        return Finding(margins, None, "best: " + ", ".join(found))

    return test


def _mae_against_byol(e: Exhibits) -> Finding:
    """(C16)"""
    gaps = {row: e.cell(row, "mae", "l2") - e.cell(row, "byol", "l2") for row in e.variants}
    for_byol = ("r", "conflict", "c")
    margins = [-gap if row in for_byol else gap for row, gap in gaps.items()]
    return Finding(margins, None, listed(gaps))


def _supervised_near_rotnet_far(e: Exhibits) -> Finding:
    """(C17)"""
    gaps = {
        row: e.cell(row, "supervised", "l2") - e.cell(row, "rotnet", "l2")
        for row in e.variants
        if row != "c"  # of which the text says nothing
    }
    margins = [-gap if row in FAR else gap for row, gap in gaps.items()]
    return Finding(margins, None, listed(gaps))


def _best_decay(gamma: float, variants: Sequence[str]) -> Callable[[Exhibits], Finding]:
    """A decay is the best of the paper's four in these rows of Figure 3, as far as the scale has
    them, for its three models (C18, C19).
    """

    def test(e: Exhibits) -> Finding:
        margins = {
            f"{NAMES[m]} {row}": [
                e.gamma(row, m, gamma) - e.gamma(row, m, g) for g in GAMMAS if g != gamma
            ]
            for row in variants
            if row in e.variants
            for m, _ in FIGURE3
        }
        if not margins:
            raise Missing(f"{', '.join(variants)}: not of this scale")
        rest = [place for place, of in margins.items() if sign(min(of)) < 0]
        text = f"{len(margins) - len(rest)} of {len(margins)}"
        text += f"; not {', '.join(rest)}" if rest else ""
        return Finding([margin for of in margins.values() for margin in of], None, text)

    return test


def _decay_keeps_robustness(e: Exhibits) -> Finding:
    """A smaller decay is more robust, on the mean of the radii all decays have (C20)."""
    gammas = sorted({gamma for gamma, radius in e.figure5 if radius > 0})
    radii = {r for _, r in e.figure5 if r > 0 and all((g, r) in e.figure5 for g in gammas)}
    if len(gammas) < 2 or not radii or set(e.gammas) - set(gammas):
        raise Missing("robust accuracy of all decays")
    means = [float(np.mean([e.figure5[gamma, r].value for r in radii])) for gamma in gammas]
    text = ", ".join(f"{gamma:g}: {mean:.1f}" for gamma, mean in zip(gammas, means, strict=True))
    return Finding([*-np.diff(means)], None, f"mean over radii by decay: {text}")


# ---- small parts ----------------------------------------------------------------------------


def _best(e: Exhibits, method: str) -> float:
    """The mean of its best attacked model, chosen once for all seeds."""
    if method not in e.leading:
        raise Missing(f"attacked {NAMES[method]}")
    return e.mean(method, e.leading[method])


def _chosen(e: Exhibits, method: str, threat: str) -> float:
    if (method, threat) not in e.chosen:
        raise Missing(f"best radius of {NAMES[method]} {threat}")
    return e.chosen[method, threat]


def _scored(e: Exhibits, method: str, threat: str) -> dict[float, float]:
    """What there is of a curve of Figure 1, by radius."""
    e.check_settled(method, threat)
    return {k[2]: s.value for k, s in e.figure1.items() if k[:2] == (method, threat)}


def _curve(e: Exhibits, method: str, threat: str) -> dict[float, float]:
    """A curve of Figure 1, by radius; Missing where one of the grid's radii is."""
    curve = _scored(e, method, threat)
    rest = set(e.radii.get((method, threat), ())) - set(curve)
    if rest or not curve:
        at = f" at {min(rest):.4g}" if rest else ""
        raise Missing(f"mean of {NAMES[method]} {threat}{at}")
    return curve


def _stated(e: Exhibits, method: str, threat: str) -> float:
    """The radius of Table 1's caption; at images of another size that of the same change per pixel.

    Missing where the curve has none within a fifth of it.
    """
    expected = table1_radius(method, threat) * (e.l2_unit if threat == "l2" else 1)
    near = [r for r in _scored(e, method, threat) if abs(r / expected - 1) < 0.2]
    if not near:
        raise Missing(f"{NAMES[method]} {threat} at {expected:.4g}")
    return min(near, key=lambda radius: abs(radius / expected - 1))


_TESTS: dict[str, Callable[[Exhibits], Finding]] = {
    "C01": _adversarial_wins(SELF_SUPERVISED),
    "C02": _mae_near_byol_far,
    "C03": _rotnet_rivals_mae,
    "C04": _above_baseline,
    "C05": _nominal_against_baseline,
    "C06": _rotnet_below_byol,
    "C07": _rotnet_rivals_mae,
    "C08": _best_threats(("rotnet", "linf"), ("supervised", "linf")),
    "C09": _mae_best_with_l2,
    "C10": _byol_similar,
    "C11": _byol_gain,
    "C12": _byol_gains_most,
    "C13": _best_radius("linf"),
    "C14": _best_radius("l2"),
    "C15": _adversarial_wins(METHODS),
    "C16": _mae_against_byol,
    "C17": _supervised_near_rotnet_far,
    "C18": _best_decay(0.65, ("r", "sketch", "c", "conflict")),
    "C19": _best_decay(0.75, ("v2", "a")),
    "C20": _decay_keeps_robustness,
    "C21": _best_threats(*FIGURE3),
    **transfer_claims.TESTS,
}  # C30 is for the eye


def claims() -> list[Claim]:
    """All of them, in order."""
    return [
        Claim(
            row["id"],
            row["where"],
            row["claim"],
            float(row["number"]) if row["number"] else None,
            _TESTS.get(row["id"]),
        )
        for row in rows("claims")
    ]
