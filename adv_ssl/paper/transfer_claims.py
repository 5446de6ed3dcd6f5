"""What the paper says of transfer: the claims on Table 1 (C22 to C29, C31)."""

from collections.abc import Callable, Sequence

from adv_ssl.paper.exhibits import AVERAGE, Exhibits, Missing
from adv_ssl.paper.findings import (
    ATTACKED,
    NAMES,
    SELF_SUPERVISED,
    Finding,
    level,
    listed,
    sign,
)
from adv_ssl.paper.layouts import OPTIMIZERS
from adv_ssl.recipes import METHODS, THREATS
from adv_ssl.recipes.paper import TRANSFER_SETS

ROUNDED = 0.006  # points: what rounding to two places may move a printed average by


def _transfer_gain(method: str) -> Callable[[Exhibits], Finding]:
    """Nominal to L2, mean over the sets, AdamW (C22 to C25: the text does not say which)."""

    def test(e: Exhibits) -> Finding:
        adamw, sgd = (
            e.transfer_mean(o, method, "l2") - e.transfer_mean(o, method, "nominal")
            for o in ("adamw", "sgd")
        )
        return Finding([adamw], adamw, f"AdamW {adamw:+.2f}, SGD {sgd:+.2f}")

    return test


def _supervised_transfers_best(e: Exhibits) -> Finding:
    """The best cell of each set of Table 1, over both optimizers, but DMLab (C26)."""
    sets = [s for s in TRANSFER_SETS if s != "dmlab"]

    def best(dataset: str, methods: Sequence[str]) -> float:
        return max(
            e.transfer(dataset, o, m, t) for o in OPTIMIZERS for m in methods for t in THREATS
        )

    gaps = {s: best(s, ["supervised"]) - best(s, SELF_SUPERVISED) for s in sets}
    return Finding([*gaps.values()], None, listed(gaps))


def _optimizers(e: Exhibits) -> Finding:
    """AdamW gains more for RotNet and MAE than for Sup and BYOL, in each column (C27)."""
    gains = {
        m: [e.transfer_mean("adamw", m, t) - e.transfer_mean("sgd", m, t) for t in THREATS]
        for m in METHODS
    }
    much, little = gains["rotnet"] + gains["mae"], gains["supervised"] + gains["byol"]
    margins = [more - side * less for more in much for less in little for side in (1, -1)]
    text = ", ".join(f"{NAMES[m]} {min(g):+.2f} to {max(g):+.2f}" for m, g in gains.items())
    return Finding(margins, None, f"AdamW minus SGD: {text}")


def _mae_transfers_best(e: Exhibits) -> Finding:
    """AdamW averages: MAE-l2 above all other adversarial self-supervision, and level with
    adversarial supervision (C28).
    """
    margins = {}
    for o in OPTIMIZERS:
        mae = e.transfer_mean(o, "mae", "l2")
        others = [(m, t) for m in SELF_SUPERVISED for t in ATTACKED if (m, t) != ("mae", "l2")]
        ahead = [mae - e.transfer_mean(o, *column) for column in others]
        supervised = max(e.transfer_mean(o, "supervised", t) for t in ATTACKED)
        margins[o] = [*ahead, *level(mae - supervised)]
    sgd = "holds" if min(margins["sgd"]) > 0 else "fails"
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
    return Finding([*gains.values()], None, text)


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
    return Finding([ROUNDED - max(errors)], None, text)


TESTS: dict[str, Callable[[Exhibits], Finding]] = {
    "C22": _transfer_gain("supervised"),
    "C23": _transfer_gain("rotnet"),
    "C24": _transfer_gain("mae"),
    "C25": _transfer_gain("byol"),
    "C26": _supervised_transfers_best,
    "C27": _optimizers,
    "C28": _mae_transfers_best,
    "C29": _always_helps_transfer,
    "C31": _averages,
}
