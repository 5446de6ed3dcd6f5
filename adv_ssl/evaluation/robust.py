"""Accuracy against radius: each image attacked until it falls, saved as it goes (A24-A27).

An image that falls at one radius has fallen at every larger one: the same point lies in the larger
ball. So the radii go up, each with the images that still stand.
"""

import dataclasses
import json
import logging
import pathlib
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adv_ssl import sharding
from adv_ssl.attacks import BALLS
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.evaluation import doubts
from adv_ssl.evaluation.predict import Model, classifier
from adv_ssl.evaluation.scores import wilson
from adv_ssl.files import read_json, write_json
from adv_ssl.robustness.autoattack import ATTACKS, CLEAN, PGD, STANDS, Budget, Verdict, autoattack
from adv_ssl.train import stop_if_preempted

Record = dict[str, Any]
RADII = {  # where none are asked for
    "l2": ("0.125", "0.25", "0.5", "1", "2"),  # A24
    "linf": ("1/255", "2/255", "4/255", "8/255"),
}
IMAGES = 5000  # A24: a fixed part of the set
SEARCHES = {  # what --attack may be -> the attacks, one after the other
    "pgd": (PGD,),  # A25
    "apgd": ATTACKS[:2],  # A24
    "autoattack": ATTACKS,  # A26
}
STANDARD = Budget()
CHUNK = 256  # images between two saves
_log = logging.getLogger("adv_ssl")


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is asked for."""

    norm: str
    radii: tuple[float, ...]  # pixels in [0, 1]
    attack: str  # a key of SEARCHES
    images: int  # the first so many of the set
    seed: int
    batch_size: int  # images attacked at once, over all devices
    budget: Budget = STANDARD

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise UserError(f"--norm={self.norm}: choose from {', '.join(BALLS)}.")
        if self.attack not in SEARCHES:
            raise UserError(f"--attack={self.attack}: choose from {', '.join(SEARCHES)}.")
        for radius in self.radii:
            if radius <= 0:
                raise UserError(f"--radii: {radius:g} is not above 0; 0 is scored in any case.")
            if self.norm == "linf" and radius > 1:
                raise UserError(
                    f"--radii: {radius:g} in L-inf: pixels are in [0, 1]; did you mean "
                    f"{radius:g}/255?"
                )
        if not self.radii:
            raise UserError("--radii: name one at least.")
        if list(self.radii) != sorted(set(self.radii)):
            raise UserError(f"--radii={','.join(map(str, self.radii))}: each once, going up.")
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more.")

    def described(self, radius: float) -> Record:
        """The attack of a record."""
        budget = {
            PGD: {"steps": self.budget.pgd_steps, "restarts": self.budget.restarts},
            "apgd": {"steps": self.budget.steps, "targets": self.budget.targets},
            "autoattack": {
                "steps": self.budget.steps,
                "targets": self.budget.targets,
                "queries": self.budget.queries,
            },
        }[self.attack]
        return {"name": self.attack, "norm": self.norm, "epsilon": radius, **budget}


def run(
    model: Model, source: Source, resize: int, curve: Curve, workdir: pathlib.Path
) -> list[Record]:
    """A record for the clean images and one for each radius.

    What a chunk of images fell to is written to ``workdir``/robust as soon as it is known, and
    read from there by the same command.
    """
    few, size = source.first(curve.images), model.architecture.image_size
    falls: dict[str, list[str]] = {}
    began, count = time.perf_counter(), 0
    for start in range(0, len(few.records), CHUNK):
        path = workdir / "robust" / f"{_name(curve, source)}_{start:06}.json"
        if not path.exists():
            chunk = _images(few, size, resize, start)
            write_json(path, dict(_attacked(model, chunk, curve)))
            count += len(chunk["label"])
            pace = count / (time.perf_counter() - began)
            done = start + len(chunk["label"])
            _log.info("robust: %d of %d images, %.2f a second", done, len(few.records), pace)
        for radius, fell in read_json(path, dict).items():
            falls.setdefault(radius, []).extend(fell)
    seconds = round(time.perf_counter() - began, 2)
    records = [
        _record(float(radius), fell, curve, source.records.what, seconds)
        for radius, fell in falls.items()
    ]
    for record in records:
        _log.info("%s", sentence(record))
    _doubt(model, _images(few, size, resize, 0), curve, source, workdir)
    return _keep(records, workdir / "results.json")


def _doubt(
    model: Model,
    chunk: Mapping[str, np.ndarray],
    curve: Curve,
    source: Source,
    workdir: pathlib.Path,
) -> None:
    """Climbs the ladder at the middle radius with the first chunk: robust/doubts_<norm>_*.json."""
    radius, what = curve.radii[len(curve.radii) // 2], source.records.what
    mark = _mark(curve.seed, radius, len(chunk["label"]), _held(source))
    path = workdir / "robust" / f"doubts_{curve.norm}_{mark}.json"
    if not path.exists():
        images, labels = chunk["image"], chunk["label"]
        found = doubts.ladder(model, images, labels, curve.norm, radius, curve.seed)
        about = {"dataset": what, "norm": curve.norm, "epsilon": radius, "n": len(labels)}
        write_json(path, {**about, **found})
    for flag in read_json(path, dict)["flags"]:
        _log.warning("robust: %s", flag)


def _keep(records: list[Record], path: pathlib.Path) -> list[Record]:
    """Puts the records into results.json, in the place of older ones of the same attack."""
    before = read_json(path, list) if path.exists() else []
    mine = [(r["suite"], r["dataset"], r["attack"]) for r in records]
    kept = [r for r in before if (r["suite"], r["dataset"], r["attack"]) not in mine]
    write_json(path, [*kept, *records])
    return records


def sentence(record: Record) -> str:
    """A record for the log."""
    attack, (low, high) = record["attack"], record["ci95"]
    under = f"{attack['name']} {attack['norm']} {attack['epsilon']:.4g}" if attack else "clean"
    text = f"{record['dataset']}, {under}: {record['value']:.2%} [{low:.2%}, {high:.2%}]"
    return "; ".join([f"{text}, n={record['n']}", *record["flags"]])


def _name(curve: Curve, source: Source) -> str:
    """Of the files of a search: everything that their content hangs on."""
    budget = dataclasses.asdict(curve.budget)
    mark = _mark(budget, curve.seed, curve.radii, curve.images, _held(source))
    return f"{curve.attack}_{curve.norm}_{mark}"


def _held(source: Source) -> tuple[Any, ...]:
    """What tells one set of images from another."""
    return source.records.what, len(source.records), source.class_names


def _mark(*content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _images(source: Source, size: int, resize: int, start: int) -> Mapping[str, np.ndarray]:
    """Images [N, S, S, 3] in [0, 1], labels and places, of the chunk from ``start`` on."""
    batch = next(
        eval_batches(source, image_size=size, resize=resize, batch_size=CHUNK, start=start)
    )
    mask = batch.pop("mask")
    chunk = {key: value[mask] for key, value in batch.items()}
    return {**chunk, "image": chunk["image"].astype(np.float32) / 255}


def _attacked(
    model: Model, chunk: Mapping[str, np.ndarray], curve: Curve
) -> Iterator[tuple[str, list[str]]]:
    """(radius, what each image fell to), radius by radius from 0 on."""
    images = chunk["image"]
    fallen, points = np.full(len(images), STANDS, "<U8"), images
    for radius in (0.0, *curve.radii):
        stop_if_preempted()
        verdicts = autoattack(
            classifier(model.architecture),
            model.params,
            images,
            chunk["label"],
            chunk["index"],
            norm=curve.norm,
            epsilon=radius,
            seed=curve.seed,
            batch_size=sharding.rounded_up(min(curve.batch_size, len(images))),
            attacks=SEARCHES[curve.attack] if radius else (),
            budget=curve.budget,
            verdict=Verdict((CLEAN,), fallen, points) if radius else None,
        )
        for verdict in verdicts:
            fallen, points = verdict.broken_by, verdict.x_adv
            stop_if_preempted()
        yield f"{radius:.9g}", fallen.tolist()


def _record(radius: float, fell: list[str], curve: Curve, what: str, seconds: float) -> Record:
    stands = sum(by == STANDS for by in fell)
    fell_to = Counter(by for by in fell if by != STANDS)
    return {
        "suite": "robust",
        "kind": "row",
        "dataset": what,
        "source": what,
        "metric": "top1",
        "value": stands / len(fell),
        "n": len(fell),
        "ci95": wilson(stands, len(fell)),
        "attack": curve.described(radius) if radius else None,
        "seed": curve.seed,
        "precision": "float32",
        "seconds": seconds,
        "fell_to": dict(fell_to),
        "flags": _doubts(fell_to, len(fell)),
    }


def _doubts(fell_to: Mapping[str, int], images: int) -> list[str]:
    late = fell_to.get("square", 0)
    if late <= 0.01 * images:
        return []
    return [f"Square broke {late} images that attacks by gradient left: are gradients masked?"]
