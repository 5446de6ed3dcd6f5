"""The table of claims: of the paper | on the paper's numbers | on ours."""

import pathlib
from collections.abc import Sequence

from adv_ssl.files import write_csv
from adv_ssl.markup import Html, join, table, tag
from adv_ssl.paper.claims import Claim, claims
from adv_ssl.paper.exhibits import Exhibits
from adv_ssl.paper.layouts import digits, signed
from adv_ssl.paper.tables import Ours
from adv_ssl.paper.verdicts import Verdict, judge, judge_ours

Judged = Sequence[tuple[Claim, Verdict, Verdict]]


def judged(theirs: Exhibits, ours: Ours) -> Judged:
    """Every claim with the verdicts on the paper's numbers and on ours."""
    return [(claim, judge(claim, theirs), judge_ours(claim, ours)) for claim in claims()]


def section(judged: Judged, comparable: bool, out: pathlib.Path) -> Html:
    """The table of claims, and claims.csv. ``comparable``: ours may be set beside the paper's."""
    rows, lines = [], []
    for claim, theirs, ours in judged:
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
