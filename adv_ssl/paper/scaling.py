"""Whether the gain of attacked pre-training begins with its length or with the size of the model:
the follow-ups of a small scale.

A gain is the score of an attacked encoder minus the nominal one's, of the same seed and scale.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence

from adv_ssl.markup import TIMES, Html, image, join, table, tag
from adv_ssl.names import METHOD_TITLES, radius
from adv_ssl.paper import figures, grid, kept, tables
from adv_ssl.paper.exhibits import Score
from adv_ssl.paper.layouts import VARIANT_TITLES, difference
from adv_ssl.paper.store import Record

Gains = Mapping[tuple[str, str], Mapping[str, Score]]  # points by variant and method, by scale
HELD_OUT = {"clean": "held out, clean", "attacked": "held out, under attack"}


def gains(scale: str, records: Mapping[str, Sequence[Record]]) -> Gains:
    """Of the followed radii and decay, over the seeds that have both scores: of the variants, and
    on held-out images ``clean`` and ``attacked``.

    ``records`` are those of the scale and of its follow-ups, by name.
    """
    followed = _followed(scale)
    methods = [method for method, threat in followed.radii if threat == "l2"]
    found = {name: _of_scale(records[name], followed) for name in _titles(scale)}
    return {
        key: {name: of[key] for name, of in found.items() if key in of}
        for key in itertools.product((*HELD_OUT, *followed.variants), methods)
    }


def _of_scale(records: Sequence[Record], followed: grid.Scale) -> dict[tuple[str, str], Score]:
    """The same, of the records of one scale."""
    made, (gamma,) = kept.kept(records, followed.gammas), followed.gammas
    scores = [r for r in records if r.stage == "finetune" and tables.is_variant_score(r, followed)]
    each = {of: made.of[f"{of}_gain"] for of in HELD_OUT}
    each |= {v: kept.gains([r for r in scores if r.dataset == v]) for v in followed.variants}
    return {
        (what, method): by_decay[gamma]
        for what, encoders in each.items()
        for (method, threat, epsilon), by_decay in encoders.items()
        if epsilon in followed.radii.get((method, threat), ()) and gamma in by_decay
    }


def _followed(scale: str) -> grid.Scale:
    """Any of the follow-ups: they differ in steps and in the model alone."""
    return grid.SCALES[grid.follow_ups(scale)[0]]


def _titles(scale: str) -> Mapping[str, str]:
    lengths = {scale: 1, **grid.LONGER[scale]}
    return {name: f"{TIMES}{n}" for name, n in lengths.items()} | grid.LARGER[scale]


def section(
    scale: str, records: Mapping[str, Sequence[Record]], called: pathlib.Path, out: pathlib.Path
) -> Html:
    """The curves and their numbers; ``called`` is how commands name the store."""
    made, scales, followed = gains(scale, records), _titles(scale), _followed(scale)
    titles = HELD_OUT | dict(zip(followed.variants, VARIANT_TITLES[followed.suite], strict=True))
    encoders = {
        method: f"{METHOD_TITLES[method]}, L2 {radius('l2', radii[0])}"
        for (method, threat), radii in followed.radii.items()
        if threat == "l2"
    }
    rows = [
        (titles[variant], encoders[method],
         *[difference(of_scales.get(name)) for name in scales])
        for (variant, method), of_scales in made.items()
    ]  # fmt: skip
    heads = ("top-1", "pre-training", *scales.values())
    numbers = table(heads, rows, range(2, len(heads)))
    picture = tag("p", "no numbers: nothing is scored yet", class_="missing")
    if any(made.values()):
        drawn = figures.gains_by_scale(made, titles, scales, 1 + len(grid.LONGER[scale]))
        picture = image(out, "scaling", drawn, "gains by the length of pre-training and the model")
    note = (
        "Points that attacked pre-training is above nominal of the same seed, with the 95% "
        f"interval over seeds: at {TIMES}1, this scale; with so many times the steps of "
        "pre-training; and with a larger model. "
    )
    lacks = [name for name in scales if any(name not in of for of in made.values())]
    commands = [grid.run_command(name, called) for name in lacks]
    fill = ["What is missing is filled by ", tag("code", "; ".join(commands))] if lacks else []
    return join(tag("figure", picture), numbers, tag("p", note, *fill, class_="note"))
