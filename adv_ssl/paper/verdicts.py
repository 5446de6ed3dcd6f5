"""Whether a claim holds on some exhibits: by the margins of its parts, over seeds if any.

Above 0 a part is true, below it is false; 0 is a tie, and undecided, unless the claim admits ties.
"""

from typing import NamedTuple

import numpy as np

from adv_ssl.paper.claims import Claim
from adv_ssl.paper.exhibits import Exhibits, Missing, interval
from adv_ssl.paper.findings import Finding, sign
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
        return Verdict(UNDECIDED, detail="for the eye: the filters on the page of each run")
    try:
        found = claim.test(exhibits)
    except Missing as error:
        return Verdict(UNDECIDED, detail=f"missing: {error}")
    tie = HOLDS if claim.tie_holds else UNDECIDED
    verdict = {1: HOLDS, 0: tie, -1: FAILS}[sign(found.margin)]
    return Verdict(verdict, found.number, found.margin, detail=found.detail, seeds=1)


def judge_ours(claim: Claim, ours: Ours) -> Verdict:
    """The verdict over all seeds of the scale, each paired with itself; undecided before all are
    there. With a single seed there is no interval, and its margin decides, as the paper's does.
    """
    if claim.printed:
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
    smallest margin of each seed would not do: it is below 0 too often by chance alone.
    """
    parts = np.array([finding.margins for finding in found]).T
    weakest = min((interval(part) for part in parts), key=lambda i: i[1])
    failed = any(interval(part, 1 - 0.05 / len(parts))[2] < 0 for part in parts)
    verdict = HOLDS if weakest[1] > 0 else FAILS if failed else UNDECIDED
    margin, low, high = weakest
    numbers = [finding.number for finding in found if finding.number is not None]
    number = None
    if numbers:
        number, low, high = interval(numbers)
    return Verdict(verdict, number, margin, low, high)
