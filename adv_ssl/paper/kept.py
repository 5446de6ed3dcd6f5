"""What nominal fine-tuning leaves of the robustness that an attacked pre-training gave.

Beyond the paper, whose Figure 5 follows one model (C20): here it is every model of a scale, by the
scores that its run makes of itself, clean and attacked, on what is held out of the training set.
"""

import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from adv_ssl.files import write_csv
from adv_ssl.markup import Html, image, join, table, tag
from adv_ssl.names import METHOD_TITLES, NORMS, radius
from adv_ssl.paper import figures
from adv_ssl.paper.exhibits import Score, over_seeds
from adv_ssl.paper.grid import Scale
from adv_ssl.paper.layouts import GROUPS, MISSING, difference, digits
from adv_ssl.paper.store import Record
from adv_ssl.paper.tables import score
from adv_ssl.recipes import METHODS, THREATS

Encoder = tuple[str, str, float]  # method, threat, epsilon
ByDecay = Mapping[Encoder, Mapping[float, Score]]
_BySeed = dict[tuple[Encoder, float], dict[int, Score]]


class Kept(NamedTuple):
    """Percent over the seeds: ``clean``, ``attacked``, and what both are above the nominal encoder
    of the same method, decay and seed, ``clean_gain``, ``attacked_gain``. Nothing is chosen.
    """

    attack: str  # such as PGD, L2 0.25; "": nothing is scored under attack
    of: Mapping[str, ByDecay]
    ends: Mapping[str, Mapping[Encoder, Score]]  # at the smallest decay minus at the largest


def kept(records: Sequence[Record], decays: Sequence[float]) -> Kept:
    """Of what runs scored of themselves, under the attack that most of them have; ``decays`` of the
    scale, going up.
    """
    own = [r for r in records if r.suite == "main" and r.stage == "finetune"]
    attacks = Counter((r.attack, r.radius) for r in own if r.attack).most_common(1)
    attack = attacks[0][0] if attacks else ("", -1.0)
    search, _, norm = attack[0].rpartition("-")
    named = f"{search.upper()}, {NORMS[norm]} {radius(norm, attack[1])}" if attacks else ""
    each = {
        "clean": _by_seed([r for r in own if not r.attack]),
        "attacked": _by_seed([r for r in own if (r.attack, r.radius) == attack]),
    }
    each |= {f"{of}_gain": _gains(scores) for of, scores in each.items()}
    return Kept(
        named,
        {of: _over_seeds(scores) for of, scores in each.items()},
        {of: _ends(scores, decays[0], decays[-1]) for of, scores in each.items()},
    )


def gains(records: Sequence[Record]) -> ByDecay:
    """Of one kind of score: points of each attacked encoder above the nominal one of the same
    method, decay and seed.
    """
    return _over_seeds(_gains(_by_seed(records)))


def _by_seed(records: Sequence[Record]) -> _BySeed:
    scores: _BySeed = defaultdict(dict)
    for r in records:
        scores[r[:3], r.gamma][r.seed] = score(r)
    return scores


def _gains(scores: _BySeed) -> _BySeed:
    gains: _BySeed = {}
    for ((method, threat, epsilon), decay), seeds in scores.items():
        nominal = scores.get(((method, "nominal", 0.0), decay), {})
        if threat != "nominal":
            gains[(method, threat, epsilon), decay] = {
                seed: Score(seeds[seed].value - nominal[seed].value)
                for seed in seeds.keys() & nominal.keys()
            }
    return gains


def _over_seeds(scores: _BySeed) -> ByDecay:
    found: dict[Encoder, dict[float, Score]] = defaultdict(dict)
    for (encoder, decay), seeds in scores.items():
        if seeds:
            found[encoder][decay] = over_seeds(list(seeds.values()))
    return found


def _ends(scores: _BySeed, first: float, last: float) -> dict[Encoder, Score]:
    """Over the seeds that have both decays."""
    found: dict[Encoder, Score] = {}
    for encoder in {encoder for encoder, _ in scores}:
        ours, theirs = (scores.get((encoder, decay), {}) for decay in (first, last))
        if both := ours.keys() & theirs.keys():
            found[encoder] = over_seeds([Score(ours[s].value - theirs[s].value) for s in both])
    return found


def section(records: Sequence[Record], scale: Scale, out: pathlib.Path) -> Html:
    """The curves of each method's first radii, and all the numbers."""
    made = kept(records, scale.gammas)
    if not made.attack:
        return tag("p", "no numbers: nothing is scored under attack yet", class_="missing")
    rows = {
        title: {(m, t): scores[m, t, e[0]] for (m, t), e in scale.radii.items()
                if (m, t, e[0]) in scores}
        for title, scores in (("clean", made.of["clean"]), (made.attack, made.of["attacked"]))
    }  # fmt: skip
    drawn = figures.by_decay(rows, scale.gammas)
    picture = image(out, "kept", drawn, "clean and robust accuracy by layer-wise decay")
    write_csv(out / "kept.csv", _COLUMNS, _numbers(made))
    decays = [f"{gamma:g}" for gamma in scale.gammas]
    heads = ("pre-training", "top-1 %", *decays, f"{decays[0]} minus {decays[-1]}")
    note = (
        f"Top-1 of fine-tuned models on held-out images, clean and under {made.attack}, by the "
        "layer-wise decay of fine-tuning. Not in the paper, whose Figure 5 follows one model. The "
        "curves are of each method's first radii. "
        "Gain is what the attacked encoder has above the nominal one of the same seed and decay. "
        "95% intervals: over seeds if there are two or more, else over images. "
        "kept.csv has the same numbers."
    )
    numbers = table(heads, list(_lines(made, scale)), range(2, len(heads)))
    return join(tag("figure", picture, class_="stacked"), numbers, tag("p", note, class_="note"))


def _lines(made: Kept, scale: Scale) -> Iterator[Sequence[Html | str]]:
    """Of the table: each encoder clean and attacked, with its gains."""
    radii = {(m, t): scale.radii[m, t] for m in METHODS for t in THREATS}
    encoders = [(*pair, epsilon) for pair, epsilons in radii.items() for epsilon in epsilons]
    for encoder in (e for e in encoders if e in made.of["clean"]):
        method, threat, epsilon = encoder
        size = f" {radius(threat, epsilon)}" if epsilon else ""
        name = f"{METHOD_TITLES[method]}, {GROUPS[threat]}{size}"
        for of in ("clean", "attacked"):
            yield name, of, *_cells(made, of, encoder, scale, _told)
            if epsilon:
                yield "", "gain", *_cells(made, f"{of}_gain", encoder, scale, _gain)
            name = ""


def _cells(
    made: Kept, of: str, encoder: Encoder, scale: Scale, told: Callable[[Score | None], Html]
) -> list[Html]:
    found = made.of[of].get(encoder, {})
    ends = made.ends[of].get(encoder)
    return [*[told(found.get(gamma)) for gamma in scale.gammas], _gain(ends)]


def _told(found: Score | None) -> Html:
    return tag("span", MISSING if found is None else f"{found.value:.1f}")


def _gain(found: Score | None) -> Html:
    """The interval below it: beside it the table would be too wide."""
    value, _, ends = difference(found).partition(" ")
    return tag("span", value, tag("br"), tag("small", ends))


_COLUMNS = ("method", "threat", "epsilon", "gamma", "of", "value", "low", "high", "seeds")


def _numbers(made: Kept) -> Iterator[Sequence[object]]:
    """The rows of kept.csv; gamma "ends": the smallest decay minus the largest."""
    for of, encoders in made.of.items():
        for encoder, decays in encoders.items():
            rows: dict[object, Score] = {**dict(sorted(decays.items()))}
            if encoder in made.ends[of]:
                rows["ends"] = made.ends[of][encoder]
            for decay, found in rows.items():
                yield *encoder, decay, of, *map(digits, found[:3]), found.seeds
