"""Whether a claim holds on some exhibits: by its margin, over seeds where there are some.

Above 0 it holds, below it fails; 0 is a tie, and undecided, unless the claim admits ties.
"""

import contextlib
from typing import NamedTuple

from adv_ssl.paper.claims import Claim, Finding, sign
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
    """The verdict over the seeds that have all of it, each paired with itself.

    Decided where the 95% interval of the margin leaves 0 out. With a single seed there is no
    interval, and its margin decides, as the paper's does.
    """
    if claim.printed:
        return Verdict(UNDECIDED, detail="of what the paper prints: not asked of ours")
    whole = judge(claim, ours.whole)
    found: dict[int, Finding] = {}
    for seed, exhibits in ours.seeds.items():
        with contextlib.suppress(Missing):
            found |= {seed: claim.test(exhibits)} if claim.test else {}
    if not found:
        mixed = whole.seeds > 0
        return Verdict(UNDECIDED, detail="missing: no seed has all of it") if mixed else whole
    if len(found) == 1:
        return judge(claim, ours.seeds[min(found)])
    _, low, high = interval([finding.margin for finding in found.values()])
    verdict = HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    numbers = [finding.number for finding in found.values() if finding.number is not None]
    number = None
    if numbers:
        number, low, high = interval(numbers)
    return Verdict(verdict, number, low, high, whole.detail, len(found))
