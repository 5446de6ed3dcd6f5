"""Whether a claim holds on some exhibits: by its margin, over seeds where there are some.

Above 0 it holds, below it fails; 0 is a tie, and undecided, unless the claim admits ties.
"""

from typing import NamedTuple

from adv_ssl.paper.claims import Claim, sign
from adv_ssl.paper.tables import Exhibits, Missing, Ours, interval

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


class Verdict(NamedTuple):
    """A finding over the seeds."""

    verdict: str
    number: float | None = None
    low: float | None = None  # 95% interval of the number, or of the margin, over seeds
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
    return Verdict(verdict, found.number, detail=found.detail, seeds=1)


def judge_ours(claim: Claim, ours: Ours) -> Verdict:
    """The verdict over seeds: decided where the 95% interval of the margin leaves 0 out.

    With a single seed there is no interval, and its margin decides, as the paper's does.
    """
    whole = judge(claim, ours.whole)
    found = []
    for exhibits in ours.seeds.values():
        try:
            found += [claim.test(exhibits)] if claim.test else []
        except Missing:
            continue
    if len(found) < 2:
        return whole
    _, low, high = interval([f.margin for f in found])
    verdict = HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    numbers = [f.number for f in found if f.number is not None]
    if numbers:
        _, low, high = interval(numbers)
    return whole._replace(verdict=verdict, low=low, high=high, seeds=len(found))
