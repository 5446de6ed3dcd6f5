"""Our exhibits, from the scores of a store: of the models that are shown, over seeds and each."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adv_ssl.paper import grid
from adv_ssl.paper.exhibits import AVERAGE, BASELINE, FIGURE3, Exhibits, Score, over_seeds
from adv_ssl.paper.grid import Model, Scale
from adv_ssl.paper.store import METRICS, TRANSFER, Record
from adv_ssl.recipes import METHODS
from adv_ssl.recipes import paper as paper_sets

TABLES = ("figure1", "figure2", "figure3", "figure5", "table1")
SELECTIONS = ("test", "held_out")  # what the best radius and decay are the best on
Rows = dict[str, Score]  # of one model and seed, by variant
Runs = dict[Model, dict[int, Rows]]


@dataclasses.dataclass(frozen=True)
class Ours:
    """Over all seeds, and of each alone: of the same models, those with the best mean over all."""

    whole: Exhibits
    seeds: Mapping[int, Exhibits]
    needed: tuple[int, ...]  # seeds, without which nothing is judged
    attack: str = ""  # of Figure 5, such as apgd-l2; "": none was run


class _Choice(NamedTuple):
    """The models that are shown."""

    decays: Mapping[tuple[Any, ...], Model]  # of each method, threat and radius: Figure 1
    pairs: Mapping[tuple[Any, ...], Model]  # of each method and threat: Figure 2
    attacked: Mapping[tuple[Any, ...], Model]  # of each method
    unsettled: frozenset[tuple[str, str]]


def ours(records: Sequence[Record], scale: Scale, selection: str = "test") -> Ours:
    """The same exhibits from a store.

    The radius and the decay that are shown are those with the best mean of the variants on the
    evaluation sets themselves, as the paper's are (D15); or, ``selection`` being held_out, those
    with the best top-1 on what was held out of the training set. Where only one decay is run of all
    radii, Figure 1 has that one: no radius may choose among more models than another.
    """
    records = [r for r in records if r.method in METHODS and r.seed in scale.seeds]
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    held_out: dict[Model, list[float]] = defaultdict(list)
    for r in records:
        model = Model(r.method, r.threat, r.epsilon, r.gamma)
        if r.stage == "finetune" and is_variant_score(r, scale):
            runs[model][r.seed][r.dataset] = score(r)
        elif r.stage == "finetune" and r.suite == "main" and not r.attack:
            held_out[model].append(r.value)
    choice = _chosen(runs, held_out, scale, selection)
    attack = next((r.attack for r in records if r.suite == "robust" and r.attack), "")
    seeds = {
        seed: _of_seed([r for r in records if r.seed == seed], seed, runs, choice, scale)
        for seed in sorted({r.seed for r in records})
    }
    return Ours(_merged(list(seeds.values()), choice, scale), seeds, scale.seeds, attack)


def _chosen(
    runs: Runs, held_out: Mapping[Model, Sequence[float]], scale: Scale, selection: str
) -> _Choice:
    """Once, for all seeds: a choice for each of them would be among more numbers."""
    merits = {
        model: _merit(of_seed, held_out[model], scale, selection) for model, of_seed in runs.items()
    }
    swept = {m: v for m, v in merits.items() if scale.swept is None or m.gamma == scale.swept}
    pairs = _best_of_each(merits, 2)
    attacked = {model: merits[model] for model in pairs.values() if model.threat != "nominal"}
    whole = {model for model, merit in merits.items() if merit[0] == len(scale.seeds)}
    unsettled = {
        (method, threat)
        for (method, threat), radii in scale.radii.items()
        for radius in radii
        for gamma in scale.decays(method, threat, radius)
        if Model(method, threat, radius, gamma) not in whole
    }
    return _Choice(_best_of_each(swept, 3), pairs, _best_of_each(attacked, 1), frozenset(unsettled))


def is_variant_score(r: Record, scale: Scale) -> bool:
    """Whether a record is the score of one of the scale's variants, by that variant's metric."""
    return (
        r.suite == scale.suite
        and r.dataset in scale.variants
        and r.metric == METRICS.get(r.dataset, "top1")
    )


def score(r: Record) -> Score:
    """In percent, with the interval over images."""
    low, high = (None if end is None else 100 * end for end in (r.low, r.high))
    return Score(100 * r.value, low, high)


def _merit(
    of_seed: Mapping[int, Rows], held_out: Sequence[float], scale: Scale, selection: str
) -> tuple[int, int, float]:
    """What a model is chosen by: how many seeds are scored on all variants, on how many variants
    any is, then its mean over seeds.
    """
    means = [mean.value for rows in of_seed.values() if (mean := _mean(rows, scale.variants))]
    values = held_out if selection == "held_out" else means
    merit = float(np.mean(values)) if values else 0.0
    return len(means), max(map(len, of_seed.values())), merit


def _best_of_each(merits: Mapping[Model, Any], fields: int) -> dict[tuple[Any, ...], Model]:
    """Of the models that share their first ``fields`` fields the one with the largest merit."""
    groups: dict[tuple[Any, ...], list[Model]] = defaultdict(list)
    for model in merits:
        groups[model[:fields]].append(model)
    return {key: max(models, key=merits.__getitem__) for key, models in groups.items()}


def _mean(rows: Rows, variants: Sequence[str]) -> Score | None:
    """Over the variants, unweighted (F5); None unless all are there. The interval is their mean
    interval: wide enough even if they are correlated.
    """
    if any(variant not in rows for variant in variants):
        return None
    scores = [rows[variant] for variant in variants]
    value = float(np.mean([score.value for score in scores]))
    if any(score.low is None for score in scores):
        return Score(value)
    low, high = (float(np.mean([score[i] for score in scores])) for i in (1, 2))
    return Score(value, low, high)


def _of_seed(
    records: Sequence[Record], seed: int, runs: Runs, choice: _Choice, scale: Scale
) -> Exhibits:
    """The exhibits of one seed."""
    means: dict[Any, Score | None] = {
        key: _mean(runs[model].get(seed, {}), scale.variants)
        for key, model in choice.decays.items()
    }
    line = {
        r.dataset: score(r)
        for r in records
        if (r.method, r.threat, r.stage) == ("supervised", "nominal", "pretrain")
        and is_variant_score(r, scale)
    }
    means[BASELINE] = _mean(line, scale.variants)
    figure3: dict[tuple[str, str, float], Score] = {}
    for method, threat in FIGURE3:
        if own := choice.pairs.get((method, threat)):
            for gamma in scale.decays(*own[:3]):
                found = runs.get(own._replace(gamma=gamma), {}).get(seed, {})
                figure3 |= {(row, method, gamma): score for row, score in found.items()}
    return _exhibits(
        scale,
        choice,
        figure1={key: mean for key, mean in means.items() if mean is not None},
        figure2={
            (row, *key): score
            for key, model in choice.pairs.items()
            for row, score in runs[model].get(seed, {}).items()
        },
        figure3=figure3,
        figure5=_robust(records, scale),
        table1=_transfers(records),
    )


def _robust(records: Sequence[Record], scale: Scale) -> dict[tuple[float, float], Score]:
    """Figure 5."""
    return {
        (r.gamma, r.radius): score(r)
        for r in records
        if r.suite == "robust" and r.stage == "finetune" and r[:3] == scale.robust
    }


def _transfers(records: Sequence[Record]) -> dict[tuple[str, str, str, str], Score]:
    """Table 1, with the averages of the columns that are whole."""
    table = {
        (r.dataset, r.optimizer, r.method, r.threat): score(r)
        for r in records
        if r.suite == TRANSFER
        and not r.attack
        and math.isclose(r.epsilon, grid.table1_radius(r.method, r.threat))
    }
    sets = tuple(paper_sets.TRANSFER_SETS)
    for column in {key[1:] for key in table}:
        found = {s: table[s, *column] for s in sets if (s, *column) in table}
        mean = _mean(found, sets)
        if mean is not None:
            table[AVERAGE, *column] = mean
    return table


def _merged(seeds: Sequence[Exhibits], choice: _Choice, scale: Scale) -> Exhibits:
    """Every number over the seeds that have it."""

    def merged(name: str) -> dict[Any, Score]:
        tables = [getattr(exhibits, name) for exhibits in seeds]
        keys = dict.fromkeys(key for table in tables for key in table)
        return {key: over_seeds([t[key] for t in tables if key in t]) for key in keys}

    return _exhibits(scale, choice, **{name: merged(name) for name in TABLES})


def _exhibits(scale: Scale, choice: _Choice, **of_each: Mapping[Any, Score]) -> Exhibits:
    return Exhibits(
        variants=scale.variants,
        chosen={pair: model.epsilon for pair, model in choice.pairs.items()},
        leading={method: model.threat for (method,), model in choice.attacked.items()},
        l2_unit=scale.l2_unit,
        radii=scale.radii,
        gammas=scale.gammas,
        unsettled=choice.unsettled,
        **of_each,
    )
