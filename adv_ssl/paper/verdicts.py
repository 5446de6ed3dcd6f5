"""Whether a claim holds on some exhibits, by the margins of its parts, over seeds if any; and the
table of all claims: of the paper | on the paper's numbers | on ours.

Above 0 a part is true, below it is false; 0 is a tie, and undecided, unless the claim admits ties.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adv_ssl.files import write_csv
from adv_ssl.markup import Html, join, table, tag
from adv_ssl.paper.claims import PRINTED, TIES_HOLD, Claim, claims
from adv_ssl.paper.exhibits import Exhibits, Missing, interval
from adv_ssl.paper.findings import Finding, sign
from adv_ssl.paper.layouts import digits, signed
from adv_ssl.paper.tables import Ours

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


class Verdict(NamedTuple):
    """A finding over the seeds."""

    verdict: str
    number: float | None = None  # points, what the paper states a number of
    margin: float | None = None  # points, of the weakest part: the lowest end of an interval
    low: float | None = None  # 95% interval of that margin over seeds; of a number: its own
    high: float | None = None
    detail: str = ""
    seeds: int = 0


def judge(claim: Claim, exhibits: Exhibits) -> Verdict:
    """The verdict on one set of exhibits."""
    if claim.test is None:
        return Verdict(UNDECIDED, detail="for the eye: Figure 4")
    try:
        found = claim.test(exhibits)
    except Missing as error:
        return Verdict(UNDECIDED, detail=f"missing: {error}")
    tie = HOLDS if claim.id in TIES_HOLD else UNDECIDED
    verdict = {1: HOLDS, 0: tie, -1: FAILS}[sign(found.margin)]
    return Verdict(verdict, found.number, found.margin, detail=found.detail, seeds=1)


def judge_ours(claim: Claim, ours: Ours) -> Verdict:
    """The verdict over all seeds of the scale, each paired with itself; undecided before all are
    there. With a single seed there is no interval, and its margin decides, as the paper's does.
    """
    if claim.id in PRINTED:
        return Verdict(UNDECIDED, detail="of what the paper prints: not asked of ours")
    whole = judge(claim, ours.whole)
    if claim.test is None:
        return whole
    found: list[Finding] = []
    lacks: list[str] = []
    for seed in ours.needed:
        try:
            if seed not in ours.seeds:
                raise Missing(f"seed {seed}")
            found.append(claim.test(ours.seeds[seed]))
        except Missing as error:
            lacks.append(str(error))
    if lacks:
        some = f"; {len(found)} of {len(ours.needed)} seeds have all of it" if found else ""
        return Verdict(UNDECIDED, detail=f"missing: {lacks[0]}{some}", seeds=len(found))
    if len(found) == 1:
        return judge(claim, ours.seeds[ours.needed[0]])
    return _over_seeds(found)._replace(detail=whole.detail, seeds=len(found))


def _over_seeds(found: list[Finding]) -> Verdict:
    """Holds where the 95% interval of every part is above 0: then all of it does, at that level.
    Fails where that of a part is below, at a level that allows for the number of parts. The
    smallest margin of each seed would not do: it is below 0 too often by chance alone. The margin
    is that of the part which decides, with the interval that does.
    """
    parts = np.array([finding.margins for finding in found]).T
    weakest = min((interval(part) for part in parts), key=lambda i: i[1])
    strict = (interval(part, 1 - 0.05 / len(parts)) for part in parts)
    lowest = min(strict, key=lambda i: i[2])
    verdict = HOLDS if weakest[1] > 0 else FAILS if lowest[2] < 0 else UNDECIDED
    margin, low, high = lowest if verdict == FAILS else weakest
    numbers = [finding.number for finding in found if finding.number is not None]
    number = None
    if numbers:
        number, low, high = interval(numbers)
    return Verdict(verdict, number, margin, low, high)


# ---- the table -------------------------------------------------------------------------------

Judged = Sequence[tuple[Claim, Verdict, Verdict]]


def judged(theirs: Exhibits, ours: Ours) -> Judged:
    """Every claim with the verdicts on the paper's numbers and on ours."""
    return [(claim, judge(claim, theirs), judge_ours(claim, ours)) for claim in claims()]


def section(found: Judged, comparable: bool, out: pathlib.Path) -> Html:
    """The table of claims, and claims.csv. ``comparable``: ours may be set beside the paper's."""
    rows, lines = [], []
    for claim, theirs, ours in found:
        number, difference = _claimed(claim, ours, comparable)
        stated = "" if claim.stated is None else f"{claim.stated:+.2f}"
        name = join(tag("b", claim.id), tag("br"), tag("small", claim.where))
        judgements = _judgement(theirs), _judgement(ours)
        rows.append((name, claim.text, *judgements, stated, number, difference))
        lines.append(
            (claim.id, claim.where, claim.text, claim.stated, *_plain(theirs), *_plain(ours),
             *map(digits, (ours.margin, ours.low, ours.high)), ours.seeds, difference)
        )  # fmt: skip
    write_csv(out / "claims.csv", _COLUMNS, lines)
    note = (
        "Each claim is one function, applied to the paper's printed numbers and to ours: on the "
        "variants that there are. On the paper's, undecided is a tie at the printed precision or a "
        "number that is not printed; where it states a number, it is the sign that is judged. "
        "Ours are decided once all seeds have all of a claim: it holds where the 95% interval over "
        "seeds of each of its parts is above 0, it fails where that of one is below, at a level "
        "that allows for the number of parts; a single seed decides by its sign. In percentage "
        "points: the number that the paper states, or the margin of the weakest part."
    )
    columns = ("claim", "of the paper", "on the paper's numbers", "on ours", "stated", "ours",
               "difference")  # fmt: skip
    return join(
        tag("p", note, class_="note"), table(columns, rows, numbers=(4, 5, 6), class_="claims")
    )


_COLUMNS = (
    *("id", "where", "claim", "stated", "paper", "paper_detail", "paper_number"),
    *("ours", "ours_detail", "ours_number", "margin", "low", "high", "seeds", "difference"),
)


def _plain(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.verdict, verdict.detail, digits(verdict.number)


def _judgement(verdict: Verdict) -> Html:
    mark = tag("span", verdict.verdict, class_=f"verdict {verdict.verdict}")
    return join(mark, tag("br"), tag("small", verdict.detail))


def _claimed(claim: Claim, ours: Verdict, comparable: bool) -> tuple[Html | str, str]:
    """Our number or margin with its interval, and by how much it is above the stated one."""
    value = ours.margin if ours.number is None else ours.number
    if value is None:
        return "", ""
    number = [f"{value:+.2f}"]
    if ours.low is not None and ours.high is not None:
        number += [tag("br"), tag("small", f"{ours.low:+.2f} to {ours.high:+.2f}")]
    difference = ""
    if comparable and ours.number is not None and claim.stated is not None:
        difference = signed(ours.number - claim.stated, 2)
    return tag("span", *number), difference
