"""Scores a suite row by row; a row that cannot be scored has a record with the reason."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.data.sources import Source
from adv_ssl.data.transforms import eval_crop
from adv_ssl.errors import UserError
from adv_ssl.evaluation import class_order, rules
from adv_ssl.evaluation.corrupted import corrupted
from adv_ssl.evaluation.images import SHOWN, described, opened, resize_of
from adv_ssl.evaluation.predict import Model, Predictions, predict
from adv_ssl.evaluation.scores import sentence, wilson
from adv_ssl.evaluation.suites import SUITES, Row, Scored, top1
from adv_ssl.files import read_json, write_arrays, write_json

Record = dict[str, Any]
_CLASSES = {"imagenet": 1000, "cifar10": 10}  # of the suites whose sets all have the same
_log = logging.getLogger("adv_ssl")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a suite is scored."""

    data_dir: str  # of TFDS; "": $TFDS_DATA_DIR, or TFDS's default
    batch_size: int  # over all devices
    seed: int  # of the corruptions that are made on the fly
    images: int | None = None  # the first so many of each set; None: all
    corrupted: pathlib.Path | None = None  # where images corrupted on the fly are kept


def run(name: str, model: Model, options: Options, workdir: pathlib.Path) -> list[Record]:
    """Scores the rows of a suite that ``workdir``/results.json does not have yet.

    Returns all records of that file. A row whose set is not prepared, or not of the model's
    classes, has a record with ``value`` null and the reason under ``missing``; the same command
    tries it again. UserError, with all of that written: not one row has a score; at once, where
    the model's classes are of another number than the suite's.
    """
    classes = _CLASSES.get(name, model.classes)
    if model.classes != classes:
        raise UserError(
            f"--suite={name}: its sets have {classes} classes and the model has {model.classes}: "
            "score a model that was fine-tuned on them, or take --suite=robust --data=SET."
        )
    path = workdir / "results.json"
    records = read_json(path, list, suite=str, kind=str, dataset=str) if path.exists() else []
    kept = [r for r in records if r["suite"] == name and r["kind"] == "row"]
    done = {dataset for dataset, own in _own(kept).items() if own["value"] is not None}
    others = [r for r in records if r["suite"] != name]
    of = {"stage": model.stage, "step": model.step, "seed": options.seed}
    kept = [r for r in kept if r["dataset"] in done]
    for row in SUITES[name]:
        if row.name not in done:
            kept += [{"suite": name, **r} for r in _score(row, model, options, workdir / "figures")]
            write_json(path, others + kept)
    order = [row.name for row in SUITES[name]]
    kept.sort(key=lambda r: order.index(r["dataset"]))  # one that was missing came last
    records = others + kept + [{"suite": name, **of, **r} for r in summary(name, kept)]
    write_json(path, records)
    _say_what_lacks(name, kept)
    return records


def _say_what_lacks(name: str, records: Sequence[Record]) -> None:
    """The last line of a suite. UserError: nothing of it has a score."""
    own, rows = _own(records), len(SUITES[name])
    lacking = [what for what in own if own[what]["value"] is None]
    if len(lacking) == rows:
        raise UserError(
            f"--suite={name}: nothing was scored, each of its {rows} sets is missing; "
            f"{lacking[0]}: {own[lacking[0]]['missing']}"
        )
    what = ", ".join(lacking) if len(lacking) < 10 else str(len(lacking))
    missing = f"; {what} missing" if lacking else ""
    _log.info("%s: %d of %d sets scored%s", name, rows - len(lacking), rows, missing)


def _own(records: Sequence[Record]) -> dict[str, Record]:
    """The first record of each row: its own metric."""
    own: dict[str, Record] = {}
    for r in records:
        own.setdefault(r["dataset"], r)
    return own


def _score(row: Row, model: Model, options: Options, figures: pathlib.Path) -> list[Record]:
    """A record for each metric of a row; a single one, without a value, where it has no score."""
    place = f"{row.dataset} {row.split}" + (", corrupted here" if row.corruption else "")
    base = {"kind": "row", "dataset": row.name, "source": place,
            "stage": model.stage, "step": model.step, "seed": options.seed}  # fmt: skip
    size, resize = model.architecture.image_size, resize_of(row, model)
    try:
        source = opened(row, model, options.data_dir)
        if options.images:
            source = source.first(options.images)
        if row.corruption:
            source = corrupted(source, row.corruption, options.seed, options.corrupted)
        predictions = predict(model, source, row.name, resize, options.batch_size)
        scored = row.rule(predictions.logits, predictions.labels)
    except UserError as error:  # a damaged image, too, takes no other set's score
        _log.info("%s: missing: %s", row.name, error)
        return [{**base, **_missing(str(error))}]
    records = [
        {
            **base,
            **_counted(metric, hits, n),
            "prepared": described(resize, size),
            **_circumstances(row, source, predictions),
        }
        for metric, (hits, n) in scored.counts.items()
    ]
    order = _order(row, source, scored, predictions)
    records[0]["flags"] = [*model.flags, *_doubts(row, model, records[0]), *order]
    if not row.name.startswith("c/"):
        _save_wrong(row, source, scored, predictions.labels, size, resize, figures)
    _log.info("%s", sentence(records[0]))
    return records


def _counted(metric: str, hits: int, n: int) -> Record:
    if n == 0:
        return {**_missing("nothing to count"), "metric": metric}
    interval = wilson(hits, n)
    return {"metric": metric, "value": hits / n, "n": n, "ci95": interval, "attack": None}


def _missing(reason: str) -> Record:
    return {"metric": "top1", "value": None, "n": 0, "ci95": None, "attack": None,
            "missing": reason}  # fmt: skip


def _circumstances(row: Row, source: Source, predictions: Predictions) -> Record:
    """What a number was made with, beside provenance.json."""
    return {
        "whole": len(source.records) == row.images,
        "precision": "float32",
        "seconds": round(predictions.seconds, 2),
        "images_per_second": round(len(predictions.logits) / predictions.seconds, 1),
        "input_wait": round(predictions.input_wait, 3),
    }


def _doubts(row: Row, model: Model, record: Record) -> list[str]:
    """What makes the number of a row questionable."""
    flags: list[str] = []
    if record["value"] is None:
        return flags
    if not record["whole"]:
        flags.append(f"a sample: {record['n']} images, the set has {row.images}")
    elif row.labelled and record["n"] != row.labelled:
        flags.append(f"{record['n']} images have a label, not {row.labelled}: prepare the set anew")
    if row.name != "conflict":
        hits = round(record["value"] * record["n"])
        flags += class_order.by_chance(hits, record["n"], row.among or model.classes)
    return flags


def _order(row: Row, source: Source, scored: Scored, predictions: Predictions) -> list[str]:
    """Whether classes seem to have changed places; not asked of hard images, which prove less."""
    if row.rule is not top1 or row.name.startswith("c/"):
        return []
    moved = class_order.moved(scored.predicted, predictions.labels, predictions.logits.shape[-1])
    if not moved:
        return []
    names = _names(row, source)
    first = f"{names[moved[0].label]} for {names[moved[0].predicted]}"
    return [f"{len(moved)} classes seem swapped, such as {first}: is it this set's class order?"]


def _save_wrong(
    row: Row,
    source: Source,
    scored: Scored,
    labels: np.ndarray,
    size: int,
    resize: int,
    figures: pathlib.Path,
) -> None:
    """The first images that a row got wrong, as the model saw them: figures/wrong_<row>.npz."""
    first = np.flatnonzero(~scored.right)[:SHOWN]
    images = [eval_crop(source.records[int(i)]["image"], resize, size) for i in first]
    names = _names(row, source)
    write_arrays(
        figures / f"wrong_{row.name}.npz",
        images=np.array(images, np.uint8).reshape(-1, size, size, 3),
        label=np.array([_label_text(row, labels[i], names) for i in first], str),
        said=np.array([names[int(scored.predicted[i])] for i in first], str),
    )


def _names(row: Row, source: Source) -> tuple[str, ...]:
    """What people call the classes that a row decides between."""
    if row.name == "conflict":
        return tuple(rules.conflict_classes())
    return rules.class_words(source.class_names)


def _label_text(row: Row, label: np.ndarray, names: Sequence[str]) -> str:
    if row.name == "conflict":
        return f"shape {names[int(label[0])]}, texture {names[int(label[1])]}"
    if row.name == "real":
        return " or ".join(names[int(i)] for i in np.flatnonzero(label))
    return names[int(label)]


# ---- many scores in one ---------------------------------------------------------------------


def summary(name: str, records: Sequence[Record]) -> Iterator[Record]:
    """The means over the rows of a suite; without a value, and with the reason, where one lacks."""
    tops = _own(records)
    cells = [tops.get(f"c/{t}_{s}") for t in TYPES for s in SEVERITIES]
    if name == "transfer":
        return
    corrupted = _mean("c", "top1", cells, f"of the {len(cells)} corrupted sets")
    yield corrupted
    if name == "imagenet":
        mce = {**corrupted, "metric": "mce", "ci95": None}
        if corrupted["value"] is not None:
            mce["value"] = rules.corruption_mce(
                {(t, s): tops[f"c/{t}_{s}"]["value"] for t in TYPES for s in SEVERITIES}
            )
        yield mce
        tops["c"] = corrupted
        eight = [tops.get(variant) for variant in rules.VARIANTS]
        yield _mean("mean", "top1", eight, "of the eight rows")


def _mean(dataset: str, metric: str, rows: Sequence[Record | None], of: str) -> Record:
    """The unweighted mean. Its interval is the mean of theirs: wide enough if they are correlated.

    ``n`` is the number of rows.
    """
    base = {"kind": "summary", "dataset": dataset, "source": f"mean {of}"}
    scored = [row for row in rows if row is not None and row["value"] is not None]
    if len(scored) < len(rows):
        why = f"{len(rows) - len(scored)} {of} have no score"
        return {**base, **_missing(why), "metric": metric}
    whole = all(row["whole"] for row in scored)
    return {
        **base,
        "metric": metric,
        "value": float(np.mean([row["value"] for row in scored])),
        "n": len(scored),
        "ci95": [float(v) for v in np.mean([row["ci95"] for row in scored], axis=0)],
        "attack": None,
        "whole": whole,
        "seconds": round(sum(row.get("seconds", 0.0) for row in scored), 2),
        "flags": [] if whole else ["over samples"],
    }
