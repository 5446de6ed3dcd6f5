"""What the paper says, claim by claim, held to any exhibits: the paper's own numbers and ours.

A claim is a function of the exhibits, that gives by how many points it is true: its margin.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adv_ssl.paper.grid import table1_radius
from adv_ssl.paper.tables import AVERAGE, BASELINE, FIGURE3, GAMMAS, Exhibits, Missing, rows
from adv_ssl.recipes import METHODS, THREATS
from adv_ssl.recipes.paper import TRANSFER_SETS

ATTACKED = THREATS[1:]  # all but nominal
OPTIMIZERS = ("sgd", "adamw")
LEVEL = 0.5  # points: what "similar" and "level with" mean here; the paper does not say
ROUNDED = 0.006  # points: what rounding to two places may move a printed average by
NAMES = {"supervised": "Sup", "rotnet": "RotNet", "mae": "MAE", "byol": "BYOL"}
SELF_SUPERVISED = ("rotnet", "mae", "byol")
TIES_HOLD = ("C05", "C26")  # "not below", "best"
PRINTED = ("C31",)
NEAR = ("imagenet", "real", "v2")
FAR = ("r", "sketch", "conflict")


class Finding(NamedTuple):
    """What a claim comes to on some exhibits."""

    margin: float  # points, by how much it is true
    number: float | None  # points, what the paper states a number of
    detail: str


class Claim(NamedTuple):
    """A row of the claims table."""

    id: str
    where: str
    text: str
    stated: float | None  # points
    test: Callable[[Exhibits], Finding] | None  # None: not a matter of numbers
    tie_holds: bool  # a tie is enough
    printed: bool  # of what the paper prints alone: not asked of our numbers


# ---- the claims -----------------------------------------------------------------------------


def _adversarial_wins(e: Exhibits) -> Finding:
    """Every adversarial cell of Figure 2 above the nominal cell of its method (C01, C15)."""
    gains = {
        (row, m, t): e.cell(row, m, t) - e.cell(row, m, "nominal")
        for row in e.variants
        for m in METHODS
        for t in ATTACKED
    }
    above = sum(sign(gain) > 0 for gain in gains.values())
    rest = [f"{NAMES[m]}-{t} {row}" for (row, m, t), gain in gains.items() if sign(gain) <= 0]
    text = f"{above} of {len(gains)} cells above nominal"
    text += f"; not {', '.join(rest)}" if rest else ""
    return Finding(min(gains.values()), None, text)


def _mae_near_byol_far(e: Exhibits) -> Finding:
    """The best cell of each row of Figure 2 is MAE's near ImageNet, BYOL's far from it (C02)."""
    margins, winners = [], []
    for row in (*NEAR, "a", *FAR, "c"):
        expected = "mae" if row in NEAR else "byol"
        cells = {(m, t): e.cell(row, m, t) for m in METHODS for t in ATTACKED}
        first = max(cells.values())
        margins.append(
            max(v for k, v in cells.items() if k[0] == expected)
            - max(v for k, v in cells.items() if k[0] != expected)
        )
        best = [f"{NAMES[m]}-{t}" for (m, t), v in cells.items() if sign(first - v) == 0]
        winners.append(f"{row} {' = '.join(best)}")
    return Finding(min(margins), None, "best: " + ", ".join(winners))


def _rotnet_rivals_mae(e: Exhibits) -> Finding:
    """(C03, C07)"""
    gain = _best(e, "rotnet") - e.mean("mae", "nominal")
    if "conflict" not in e.variants:
        return Finding(gain, None, f"{gain:+.2f}")
    threat = max(ATTACKED, key=lambda t: e.mean("rotnet", t))
    rest = e.mean("rotnet", threat, ["conflict"]) - e.mean("mae", "nominal", ["conflict"])
    return Finding(gain, None, f"{gain:+.2f}; without conflict {rest:+.2f}")


def _above_baseline(e: Exhibits) -> Finding:
    """(C04)"""
    line = e.baseline()
    lowest = min(max(_curve(e, m, t).values()) for m in METHODS for t in ATTACKED) - line
    return Finding(lowest, None, f"the lowest curve ends {lowest:+.2f}")


def _nominal_against_baseline(e: Exhibits) -> Finding:
    """(C05)"""
    means = {m: e.mean(m, "nominal") for m in METHODS}
    below = max(means["byol"], means["rotnet"])
    others = min(means["supervised"], means["mae"])
    bounds = f"true for a baseline in ({below:.3f}, {others:.3f}]"
    if BASELINE not in e.figure1:
        raise Missing(f"baseline; {bounds}")
    line = e.baseline()
    return Finding(min(line - below, others - line), None, f"baseline {line:.2f}; {bounds}")


def _rotnet_below_byol(e: Exhibits) -> Finding:
    """(C06)"""
    return _number(_best(e, "byol") - _best(e, "rotnet"))


def _best_with_linf(e: Exhibits) -> Finding:
    """(C08)"""
    gains = {m: e.mean(m, "linf") - e.mean(m, "l2") for m in ("rotnet", "supervised")}
    return Finding(min(gains.values()), None, _listed(gains))


def _mae_best_with_l2(e: Exhibits) -> Finding:
    """(C09)"""
    return _number(e.mean("mae", "l2") - e.mean("mae", "linf"))


def _byol_similar(e: Exhibits) -> Finding:
    """(C10)"""
    gap = e.mean("byol", "l2") - e.mean("byol", "linf")
    return Finding(LEVEL - abs(gap), None, f"L2 minus L-inf {gap:+.2f}; similar: within {LEVEL}")


def _byol_gain(e: Exhibits) -> Finding:
    """(C11)"""
    curve, stated = _scored(e, "byol", "l2"), _stated(e, "byol", "l2")
    return _number(curve[stated] - e.mean("byol", "nominal"))


def _byol_gains_most(e: Exhibits) -> Finding:
    """(C12)"""
    gains = {m: _best(e, m) - e.mean(m, "nominal") for m in METHODS}
    rest = max(gain for m, gain in gains.items() if m != "byol")
    return Finding(gains["byol"] - rest, None, _listed(gains))


def _best_radius(threat: str) -> Callable[[Exhibits], Finding]:
    """Figure 1's curves have their maximum where Table 1's caption says (C13, C14)."""

    def test(e: Exhibits) -> Finding:
        margins, found = [], []
        for method in METHODS:
            curve, stated = _curve(e, method, threat), _stated(e, method, threat)
            if len(curve) < 2:
                raise Missing(f"sweep of {NAMES[method]} over {threat} radii")
            margins.append(curve[stated] - max(v for k, v in curve.items() if k != stated))
            at = max(curve, key=lambda k: curve[k])
            text = f"{255 * at:.3g}/255" if threat == "linf" else f"{at:g}"
            found.append(f"{NAMES[method]} {text}")
        return Finding(min(margins), None, "best: " + ", ".join(found))

    return test


def _mae_against_byol(e: Exhibits) -> Finding:
    """(C16)"""
    rows = (*NEAR, "a", "r", "sketch", "conflict", "c")
    gaps = {row: e.cell(row, "mae", "l2") - e.cell(row, "byol", "l2") for row in rows}
    for_byol = ("r", "conflict", "c")
    margin = min(-gap if row in for_byol else gap for row, gap in gaps.items())
    return Finding(margin, None, _listed(gaps))


def _supervised_near_rotnet_far(e: Exhibits) -> Finding:
    """(C17)"""
    gaps = {row: e.cell(row, "supervised", "l2") - e.cell(row, "rotnet", "l2")
            for row in (*NEAR, "a", *FAR)}  # fmt: skip
    margin = min(-gap if row in FAR else gap for row, gap in gaps.items())
    return Finding(margin, None, _listed(gaps))


def _best_decay(gamma: float, variants: Sequence[str]) -> Callable[[Exhibits], Finding]:
    """A decay is the best one in these rows of Figure 3, for its three models (C18, C19)."""

    def test(e: Exhibits) -> Finding:
        margins = {
            f"{NAMES[m]} {row}": e.gamma(row, m, gamma)
            - max(e.gamma(row, m, g) for g in GAMMAS if g != gamma)
            for row in variants
            for m, _ in FIGURE3
        }
        rest = [place for place, margin in margins.items() if sign(margin) < 0]
        text = f"{len(margins) - len(rest)} of {len(margins)}"
        text += f"; not {', '.join(rest)}" if rest else ""
        return Finding(min(margins.values()), None, text)

    return test


def _decay_keeps_robustness(e: Exhibits) -> Finding:
    """A smaller decay is more robust, on the mean of the radii all decays have (C20)."""
    gammas = sorted({gamma for gamma, radius in e.figure5 if radius > 0})
    radii = {r for _, r in e.figure5 if r > 0 and all((g, r) in e.figure5 for g in gammas)}
    if len(gammas) < 2 or not radii or set(e.gammas) - set(gammas):
        raise Missing("robust accuracy of all decays")
    means = [float(np.mean([e.figure5[gamma, r].value for r in radii])) for gamma in gammas]
    text = ", ".join(f"{gamma:g}: {mean:.1f}" for gamma, mean in zip(gammas, means, strict=True))
    return Finding(float(-np.diff(means).max()), None, f"mean over radii by decay: {text}")


def _best_models(e: Exhibits) -> Finding:
    """The threat of each of Figure 3's models is its method's best (C21)."""
    gains = {
        m: e.mean(m, t) - max(e.mean(m, other) for other in ATTACKED if other != t)
        for m, t in FIGURE3
    }
    return Finding(min(gains.values()), None, _listed(gains))


def _transfer_gain(method: str) -> Callable[[Exhibits], Finding]:
    """Nominal to L2, mean over the sets, AdamW (C22 to C25: the text does not say which)."""

    def test(e: Exhibits) -> Finding:
        adamw, sgd = (
            e.transfer_mean(o, method, "l2") - e.transfer_mean(o, method, "nominal")
            for o in ("adamw", "sgd")
        )
        return Finding(adamw, adamw, f"AdamW {adamw:+.2f}, SGD {sgd:+.2f}")

    return test


def _supervised_transfers_best(e: Exhibits) -> Finding:
    """The best cell of each set of Table 1, over both optimizers, but DMLab (C26)."""
    sets = [s for s in TRANSFER_SETS if s != "dmlab"]

    def best(dataset: str, methods: Sequence[str]) -> float:
        return max(
            e.transfer(dataset, o, m, t) for o in OPTIMIZERS for m in methods for t in THREATS
        )

    gaps = {s: best(s, ["supervised"]) - best(s, SELF_SUPERVISED) for s in sets}
    return Finding(min(gaps.values()), None, _listed(gaps))


def _optimizers(e: Exhibits) -> Finding:
    """AdamW gains more for RotNet and MAE than for Sup and BYOL, in each column (C27)."""
    gains = {
        m: [e.transfer_mean("adamw", m, t) - e.transfer_mean("sgd", m, t) for t in THREATS]
        for m in METHODS
    }
    much = min(gains["rotnet"] + gains["mae"])
    little = max(abs(gain) for gain in gains["supervised"] + gains["byol"])
    text = ", ".join(f"{NAMES[m]} {min(g):+.2f} to {max(g):+.2f}" for m, g in gains.items())
    return Finding(much - little, None, f"AdamW minus SGD: {text}")


def _mae_transfers_best(e: Exhibits) -> Finding:
    """AdamW averages: MAE-l2 above all other adversarial self-supervision, and level with
    adversarial supervision (C28).
    """
    margins = {}
    for o in OPTIMIZERS:
        mae = e.transfer_mean(o, "mae", "l2")
        others = [(m, t) for m in SELF_SUPERVISED for t in ATTACKED if (m, t) != ("mae", "l2")]
        ahead = mae - max(e.transfer_mean(o, *column) for column in others)
        level = abs(mae - max(e.transfer_mean(o, "supervised", t) for t in ATTACKED))
        margins[o] = min(ahead, LEVEL - level)
    sgd = "holds" if margins["sgd"] > 0 else "fails"
    return Finding(margins["adamw"], None, f"with AdamW; with SGD it {sgd}")


def _always_helps_transfer(e: Exhibits) -> Finding:
    """No average of Table 1 falls under attack (C29)."""
    gains = {
        (o, m, t): e.transfer_mean(o, m, t) - e.transfer_mean(o, m, "nominal")
        for o in OPTIMIZERS
        for m in METHODS
        for t in ATTACKED
    }
    cells = [
        e.transfer(s, *c) - e.transfer(s, *c[:2], "nominal") for s in TRANSFER_SETS for c in gains
    ]
    falls = sum(sign(gain) < 0 for gain in cells)
    rest = [f"{NAMES[m]}-{t} {o} {gain:+.2f}" for (o, m, t), gain in gains.items() if gain < 0]
    text = f"{falls} of {len(cells)} cells below nominal"
    text += f"; averages: {', '.join(rest)}" if rest else ""
    return Finding(min(gains.values()), None, text)


def _averages(e: Exhibits) -> Finding:
    """(C31)"""
    errors = [
        abs(score.value - e.transfer_mean(*column[1:]))
        for column, score in e.table1.items()
        if column[0] == AVERAGE
    ]
    if not errors:
        raise Missing("no transfer")
    text = f"{len(errors)} averages, off by {max(errors):.4f} at most"
    return Finding(ROUNDED - max(errors), None, text)


# ---- small parts ----------------------------------------------------------------------------


def _best(e: Exhibits, method: str) -> float:
    return max(e.mean(method, threat) for threat in ATTACKED)


def _scored(e: Exhibits, method: str, threat: str) -> dict[float, float]:
    """What there is of a curve of Figure 1, by radius."""
    return {k[2]: s.value for k, s in e.figure1.items() if k[:2] == (method, threat)}


def _curve(e: Exhibits, method: str, threat: str) -> dict[float, float]:
    """A curve of Figure 1, by radius; Missing where one of the grid's radii is."""
    curve = _scored(e, method, threat)
    rest = set(e.radii.get((method, threat), ())) - set(curve)
    if rest or not curve:
        at = f" at {min(rest):.4g}" if rest else ""
        raise Missing(f"mean of {NAMES[method]} {threat}{at}")
    return curve


def _number(value: float) -> Finding:
    return Finding(value, value, f"{value:+.2f}")


def _listed(gaps: Mapping[str, float]) -> str:
    return ", ".join(f"{NAMES.get(name, name)} {gap:+.2f}" for name, gap in gaps.items())


def _stated(e: Exhibits, method: str, threat: str) -> float:
    """The radius of Table 1's caption; at images of another size that of the same change per pixel.

    Missing where the curve has none within a fifth of it.
    """
    expected = table1_radius(method, threat) * (e.l2_unit if threat == "l2" else 1)
    near = [r for r in _scored(e, method, threat) if abs(r / expected - 1) < 0.2]
    if not near:
        raise Missing(f"{NAMES[method]} {threat} at {expected:.4g}")
    return min(near, key=lambda radius: abs(radius / expected - 1))


def sign(margin: float) -> int:
    """Of a difference of printed numbers, that are not exact in binary."""
    return 0 if abs(margin) < 1e-9 else int(np.sign(margin))


_TESTS: dict[str, Callable[[Exhibits], Finding]] = {
    "C01": _adversarial_wins,
    "C02": _mae_near_byol_far,
    "C03": _rotnet_rivals_mae,
    "C04": _above_baseline,
    "C05": _nominal_against_baseline,
    "C06": _rotnet_below_byol,
    "C07": _rotnet_rivals_mae,
    "C08": _best_with_linf,
    "C09": _mae_best_with_l2,
    "C10": _byol_similar,
    "C11": _byol_gain,
    "C12": _byol_gains_most,
    "C13": _best_radius("linf"),
    "C14": _best_radius("l2"),
    "C15": _adversarial_wins,
    "C16": _mae_against_byol,
    "C17": _supervised_near_rotnet_far,
    "C18": _best_decay(0.65, ("r", "sketch", "c", "conflict")),
    "C19": _best_decay(0.75, ("v2", "a")),
    "C20": _decay_keeps_robustness,
    "C21": _best_models,
    "C22": _transfer_gain("supervised"),
    "C23": _transfer_gain("rotnet"),
    "C24": _transfer_gain("mae"),
    "C25": _transfer_gain("byol"),
    "C26": _supervised_transfers_best,
    "C27": _optimizers,
    "C28": _mae_transfers_best,
    "C29": _always_helps_transfer,
    "C31": _averages,
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
            row["id"] in TIES_HOLD,
            row["id"] in PRINTED,
        )
        for row in rows("claims")
    ]
