"""The images that a model is scored or attacked on: opened, checked, and how they are resized."""

import functools
import pathlib
from collections.abc import Sequence

from adv_ssl.data import sources
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError, in_one_line
from adv_ssl.evaluation import rules
from adv_ssl.evaluation.predict import Model
from adv_ssl.evaluation.suites import CIFAR10, IMAGENET, SUITES, Row, builder, top1
from adv_ssl.files import read_json, user_path

SHOWN = 7  # of what was got wrong, or fell: a line of the page


def opened(row: Row, model: Model, data_dir: str) -> Source:
    """The clean images of a row. UserError: not prepared, damaged, or of other classes."""
    source = _load(row.dataset, row.split, data_dir, row.labels)
    if not source.num_classes:
        raise UserError(f"{source.records.what} has no labels: take a split that has some.")
    if row.imagenet and source.class_names != rules.wnids():
        raise UserError(
            f"{row.dataset}: its classes are not the 1000 sorted WNIDs (F11), the first that "
            f"differs is {_first_difference(source.class_names, rules.wnids())}: prepare it anew."
        )
    names = row.model_classes or source.class_names
    if model.classes != len(names):
        raise UserError(
            f"{row.dataset} is scored with {len(names)} classes and the model has {model.classes}: "
            "score a model that was fine-tuned on them."
        )
    if model.class_names and model.class_names != names:
        raise UserError(
            f"{row.dataset}: the model was trained on other classes or another order, the first "
            f"that differs is {_first_difference(model.class_names, names)}."
        )
    return source


# Of CIFAR-10's corruptions each row has the same images: they are read once.
_load = functools.lru_cache(maxsize=1)(sources.load)


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((f"class {i}, {a} and {b}" for i, (a, b) in pairs if a != b), "their number")


def to_attack(
    model: Model,
    name: str | None,
    split: str | None,
    data_dir: str,
    run: pathlib.Path,
    resize: int | None = None,
) -> tuple[Source, int]:
    """The set to attack a model on, and the short side its images are resized to (0: stretched).

    Without a name it is the one of ImageNet and CIFAR-10 that has the model's number of classes.
    Without ``resize`` images of the set of the run that the model is of, ``run``, are as that run
    scores them, others as their suite does.
    """
    row = _row(model, name, split)
    source = opened(row, model, data_dir)
    own = _own_resize(run, row.dataset) if resize is None else resize
    if own is None and row.images == 0 and source.class_names == rules.wnids():
        row = row._replace(crop=True)  # a folder of ImageNet's: as the set itself
    return source, resize_of(row, model) if own is None else own


def _row(model: Model, name: str | None, split: str | None) -> Row:
    """The suites' row of the set of that name, of any version and split, or a new one."""
    known = {1000: IMAGENET[0], 10: CIFAR10[0]}
    if name is None and model.classes not in known:
        raise UserError(
            f"--data is needed: a model of {model.classes} classes is neither ImageNet's nor "
            "CIFAR-10's; name a TFDS set, folder:/path or digits, and --split."
        )
    if name is None:
        row = known[model.classes]
    else:
        rows = (row for suite in SUITES.values() for row in suite if not row.corruption)
        same = [row for row in rows if builder(row.dataset) == builder(name)]
        row = same[0] if same else Row(name, name, "test", 0, False, top1, imagenet=False)
        row = row._replace(name=name, dataset=name)
    if row.rule is not top1:
        raise UserError(
            f"--data={name}: only sets with one label an image, scored by plain top-1, can be "
            "attacked: choose another set."
        )
    return row._replace(split=split or row.split)


def _own_resize(run: pathlib.Path, dataset: str) -> int | None:
    """The short side that a run scores its own set at; None: it was of another set, or is none."""
    path = run / "config.json"
    config = read_json(path, dict) if path.is_file() else {}
    if "evaluate" not in config:  # beside a file of timm's hub it is the hub's
        return None
    try:  # of an older run other keys may lack
        same = _place(config["data"]["name"]) == _place(dataset)
        return int(config["evaluate"]["resize"]) if same else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{path} is damaged ({reason}): move it away, or give --resize.") from None


def _place(dataset: str) -> str:
    """The name of a set of any version, or of a folder, however it is written."""
    name, _, path = dataset.partition(":")
    return str(user_path(path).resolve()) if name == "folder" else name


def resize_of(row: Row, model: Model) -> int:
    """The short side that images of a row are resized to before the crop; 0: stretched."""
    return round(model.architecture.image_size * 256 / 224) if row.crop else 0


def described(resize: int, size: int) -> str:
    """How images come to the model's size, in words."""
    if resize:
        return f"short side {resize}, central crop of {size}"
    return f"stretched to {size} x {size}"
