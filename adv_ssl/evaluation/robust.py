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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adv_ssl.attacks import check_radius
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.evaluation import class_order, gradient_masking
from adv_ssl.evaluation.images import SHOWN, described
from adv_ssl.evaluation.predict import Model, classifier, decisions
from adv_ssl.evaluation.rules import class_words
from adv_ssl.evaluation.scores import sentence, wilson
from adv_ssl.files import read_json, write_arrays, write_json
from adv_ssl.preemption import stop_if_asked
from adv_ssl.robustness.autoattack import ATTACKS, CLEAN, PGD, STANDS, Budget, Verdict, autoattack

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
        for radius in self.radii:
            if radius <= 0:
                raise UserError(f"--radii: {radius:g} is not above 0; 0 is scored in any case.")
        if not self.radii:
            raise UserError("--radii: name one at least.")
        if list(self.radii) != sorted(set(self.radii)):
            raise UserError(
                f"--radii={','.join(map(str, self.radii))}: must be strictly increasing."
            )

    def check(self, image_size: int) -> None:
        """UserError where a radius is in another unit."""
        for radius in self.radii:
            check_radius("--radii", self.norm, radius, 3 * image_size**2)

    @property
    def middle(self) -> float:
        """The radius whose attack is doubted."""
        return self.radii[len(self.radii) // 2]

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


class Found(NamedTuple):
    """What the images of a chunk fell to at one radius."""

    radius: float
    fell: list[str]  # of each image the attack, or STANDS
    x_adv: np.ndarray  # [N, S, S, 3]: where it fell; the image itself where it stands
    predicted: np.ndarray  # [N]: the class of ``x_adv``, in a pass of its own
    unsure: int  # images that fell, of which that pass does not agree
    seconds: float

    def told(self) -> Record:
        """What is kept of it."""
        return {"fell": self.fell, "unsure": self.unsure, "seconds": self.seconds}


def run(
    model: Model, source: Source, resize: int, curve: Curve, workdir: pathlib.Path
) -> list[Record]:
    """A record for the clean images and one for each radius.

    What a chunk of images fell to is written to ``workdir``/robust as soon as it is known, and
    read from there by the same command.
    """
    few, size = source.first(curve.images), model.architecture.image_size
    name, folder = _name(curve, source, resize), workdir / "robust"
    chunks, began, count = [], time.perf_counter(), 0
    for start in range(0, len(few.records), CHUNK):
        path = folder / f"{name}_{start:06}.json"
        if not path.exists():
            chunk = _images(few, size, resize, start)
            found = list(_attacked(model, chunk, curve))
            if start == 0:
                shown = workdir / "figures" / f"fallen_{name}.npz"
                _save_fallen(found, chunk, curve, source, shown)
            write_json(path, {f"{one.radius:.9g}": one.told() for one in found})
            count += len(chunk["label"])
            pace = count / (time.perf_counter() - began)
            done = start + len(chunk["label"])
            _log.info("robust: %d of %d images, %.2f a second", done, len(few.records), pace)
        chunks.append(read_json(path, dict))
    doubted = _doubt(model, few.first(CHUNK), resize, curve, workdir)
    of_radii = [*model.flags, *_stretched(source, size)]
    stand = _joined(chunks, 0.0)["fell"].count(STANDS)
    chance = class_order.by_chance(stand, len(few.records), model.classes)
    flags = {0.0: [*model.flags, *chance]} | dict.fromkeys(curve.radii, of_radii)
    flags[curve.middle] = of_radii + doubted
    facts = {
        "stage": model.stage,
        "step": model.step,
        "image_size": size,
        "prepared": described(resize, size),
        "whole": len(few.records) == len(source.records),
    }
    records = [
        _record(radius, _joined(chunks, radius), curve, source, facts, flags[radius])
        for radius in (0.0, *curve.radii)
    ]
    for record in records:
        _log.info("%s", sentence(record))
    return _keep(records, workdir / "results.json")


def _stretched(source: Source, size: int) -> list[str]:
    """A radius is another one on enlarged images."""
    height, width = source.records[0]["image"].shape[:2]
    if min(height, width) >= size:
        return []
    return [
        f"the radius is over {size} x {size} pixels, to which images of {height} x {width} are "
        "stretched"
    ]


def _doubt(
    model: Model, source: Source, resize: int, curve: Curve, workdir: pathlib.Path
) -> list[str]:
    """What the ladder, climbed at the middle radius with all of ``source``, says of the attack.

    It is kept in ``workdir``/robust/doubts_<norm>_*.json.
    """
    what, n = source.records.what, len(source.records)
    mark = _mark(curve.seed, curve.middle, _held(source), resize)
    path = workdir / "robust" / f"doubts_{curve.norm}_{mark}.json"
    if not path.exists():
        chunk = _images(source, model.architecture.image_size, resize, 0)
        images, labels = chunk["image"], chunk["label"]
        found = gradient_masking.ladder(
            model, images, labels, curve.norm, curve.middle, curve.seed, curve.batch_size
        )
        about = {"dataset": what, "norm": curve.norm, "epsilon": curve.middle, "n": n}
        write_json(path, {**about, **found})
    flags: list[str] = read_json(path, dict)["flags"]
    return flags


def _keep(records: list[Record], path: pathlib.Path) -> list[Record]:
    """Puts the records into results.json, in the place of older ones of the same attack."""

    def identity(record: Record) -> tuple[Any, ...]:
        same = record["suite"], record["dataset"], record["n"], record.get("prepared")
        return *same, record["attack"]

    before = read_json(path, list) if path.exists() else []
    mine = [identity(r) for r in records]
    write_json(path, [*(r for r in before if identity(r) not in mine), *records])
    return records


def _name(curve: Curve, source: Source, resize: int) -> str:
    """Of the files of a search: everything that their content depends on."""
    budget = dataclasses.asdict(curve.budget)
    mark = _mark(budget, curve.seed, curve.radii, curve.images, _held(source), resize)
    return f"{curve.attack}_{curve.norm}_{mark}"


def _held(source: Source) -> tuple[Any, ...]:
    """What tells one set of images from another."""
    return source.records.what, len(source.records), source.class_names


def _mark(*content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _images(source: Source, size: int, resize: int, start: int) -> Mapping[str, np.ndarray]:
    """Images [N, S, S, 3] in [0, 1], labels and places, of the chunk from ``start`` on."""
    stop = min(start + CHUNK, len(source.records))
    batch = next(
        eval_batches(
            source, image_size=size, resize=resize, batch_size=CHUNK, start=start, stop=stop
        )
    )
    mask = batch.pop("mask")
    chunk = {key: value[mask] for key, value in batch.items()}
    return {**chunk, "image": chunk["image"].astype(np.float32) / 255}


def _attacked(model: Model, chunk: Mapping[str, np.ndarray], curve: Curve) -> Iterator[Found]:
    """Radius by radius, from 0 on."""
    images, labels = chunk["image"], chunk["label"]
    size = min(curve.batch_size, len(images))
    fallen, points = np.full(len(images), STANDS, object), images
    for radius in (0.0, *curve.radii):
        stop_if_asked()
        began = time.perf_counter()
        verdicts = autoattack(
            classifier(model.architecture),
            model.params,
            images,
            labels,
            chunk["index"],
            norm=curve.norm,
            epsilon=radius,
            seed=curve.seed,
            batch_size=size,
            attacks=SEARCHES[curve.attack] if radius else (),
            budget=curve.budget,
            verdict=Verdict((CLEAN,), fallen, points) if radius else None,
        )
        for verdict in verdicts:
            fallen, points = verdict.broken_by, verdict.x_adv
            stop_if_asked()
        seconds = round(time.perf_counter() - began, 2)
        predicted = decisions(model, points, size)
        fell = (predicted != labels) & _inside(curve.norm, radius, points, images)
        unsure = int(((fallen != STANDS) & ~fell).sum())
        _log.info(
            "robust: from image %d, radius %.4g: %d of %d stand, %.1f s",
            chunk["index"][0], radius, (fallen == STANDS).sum(), len(images), seconds,
        )  # fmt: skip
        yield Found(radius, fallen.tolist(), points, predicted, unsure, seconds)


def _inside(norm: str, radius: float, points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[N]: whether a point is an image, and in the ball around its own."""
    d = (points.astype(np.float64) - images).reshape(len(images), -1)
    distance = np.abs(d).max(1) if norm == "linf" else np.sqrt(np.square(d).sum(1))
    pixels = points.reshape(len(images), -1)
    return (distance <= radius * (1 + 1e-5)) & (pixels.min(1) >= 0) & (pixels.max(1) <= 1)


def _save_fallen(
    found: Sequence[Found],
    chunk: Mapping[str, np.ndarray],
    curve: Curve,
    source: Source,
    path: pathlib.Path,
) -> None:
    """The first images that fell, each at the least radius that it fell at."""
    falls = {
        i: next(one for one in found if one.fell[i] != STANDS)
        for i in range(len(chunk["label"]))
        if found[0].fell[i] == STANDS != found[-1].fell[i]
    }
    first, size = list(falls)[:SHOWN], chunk["image"].shape[1]
    names = class_words(source.class_names)
    write_arrays(
        path,
        what=source.records.what,
        attack=curve.attack,
        norm=curve.norm,
        images=chunk["image"][first],
        attacked=np.array([falls[i].x_adv[i] for i in first]).reshape(-1, size, size, 3),
        label=np.array([names[int(chunk["label"][i])] for i in first], str),
        said=np.array([names[int(falls[i].predicted[i])] for i in first], str),
        fell_to=np.array([falls[i].fell[i] for i in first], str),
        radius=np.array([falls[i].radius for i in first]),
    )


def _joined(chunks: Sequence[Mapping[str, Any]], radius: float) -> Record:
    """What is kept of all chunks at one radius."""
    parts = [chunk[f"{radius:.9g}"] for chunk in chunks]
    return {
        "fell": [by for part in parts for by in part["fell"]],
        "unsure": sum(part["unsure"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
    }


def _record(
    radius: float,
    found: Mapping[str, Any],
    curve: Curve,
    source: Source,
    facts: Mapping[str, Any],
    flags: Sequence[str],
) -> Record:
    fell = found["fell"]
    stands = sum(by == STANDS for by in fell)
    fell_to = Counter(by for by in fell if by != STANDS)
    return {
        "suite": "robust",
        "kind": "row",
        "dataset": source.records.what,
        "source": source.records.what,
        "metric": "top1",
        "value": stands / len(fell),
        "n": len(fell),
        "ci95": wilson(stands, len(fell)),
        "attack": curve.described(radius) if radius else None,
        "seed": curve.seed,
        "precision": "float32",
        **facts,
        "seconds": round(found["seconds"], 2),
        "images_per_second": round(len(fell) / max(found["seconds"], 0.01), 2),
        "fell_to": dict(fell_to),
        "flags": [*_doubts(fell_to, found["unsure"], len(fell), len(source.records)), *flags],
    }


def _doubts(fell_to: Mapping[str, int], unsure: int, images: int, of: int) -> list[str]:
    flags = []
    if images < of:
        flags.append(f"a sample: {images} images, the set has {of}")
    late = fell_to.get("square", 0)
    if late > 0.01 * images:
        flags.append(
            f"Square broke {late} images that attacks by gradient left: are gradients masked?"
        )
    if unsure > 0.01 * images:
        flags.append(f"{unsure} images that fell do not in a second pass: is the model random?")
    return flags
