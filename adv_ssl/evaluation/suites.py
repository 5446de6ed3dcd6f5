"""What is scored: every data set of every suite, one row each (docs/method.md, E and F).

A row says where the images are, how they are prepared, what their label is and by which rule they
are scored. Preparation, class lists and rules are nowhere else.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.data.sources import LABEL, Labels
from adv_ssl.evaluation import rules


class Scored(NamedTuple):
    """What a rule makes of logits [N, C] and labels [N, ...]."""

    counts: dict[str, tuple[int, int]]  # of each metric (hits, n); the first one is the row's own
    predicted: np.ndarray  # int [N]: the class decided on
    right: np.ndarray  # bool [N]: nothing is wrong with that


class Row(NamedTuple):
    """One data set of a suite."""

    name: str  # short: what the tables say
    dataset: str  # of TFDS
    split: str
    images: int  # in the whole split
    crop: bool  # short side to 256/224 of the size, central crop; False: stretched to the size
    rule: Callable[[np.ndarray, np.ndarray], Scored]  # of logits and labels
    labels: Labels = LABEL
    corruption: tuple[str, int] | None = None  # made on the fly: type, severity
    model_classes: tuple[str, ...] = ()  # names, in order, if they are not those of the set
    among: int = 0  # classes that the rule decides between; 0: the model's
    labelled: int = 0  # images that have a label, and count; 0: all
    imagenet: bool = True  # its classes are the 1000 sorted WNIDs


def builder(dataset: str) -> str:
    """A set's name without its configuration and version."""
    return dataset.split(":")[0].split("/")[0]


def top1(logits: np.ndarray, labels: np.ndarray) -> Scored:
    """The class of the largest logit: the rule of most sets (F: IN, V2, Sketch, C)."""
    predicted = logits.argmax(-1)
    return Scored({"top1": _counted(predicted == labels)}, predicted, predicted == labels)


def _restricted(classes: Sequence[int], logits: np.ndarray, labels: np.ndarray) -> Scored:
    """200-way, as the paper's; 1000-way beside it."""
    predicted = rules.restricted_decisions(logits, labels, classes)
    counts = {
        "top1": _counted(predicted == labels),
        "top1_1000way": _counted(logits.argmax(-1) == labels),
    }
    return Scored(counts, predicted, predicted == labels)


def _real(logits: np.ndarray, labels: np.ndarray) -> Scored:
    """Images without a label are not counted, and not wrong."""
    predicted, labelled = logits.argmax(-1), labels.any(axis=1)
    hits = labels[np.arange(len(predicted)), predicted].astype(bool)
    return Scored({"top1": _counted(hits[labelled])}, predicted, hits | ~labelled)


def _conflict(logits: np.ndarray, labels: np.ndarray) -> Scored:
    """By the mean probability of a class, as the paper's; by the sum beside it (F3, F4)."""
    shapes, textures = labels.T
    mean, total = (rules.conflict_decisions(logits, how) for how in (np.mean, np.sum))
    counts = rules.conflict_counts(mean, shapes, textures)
    by_sum = rules.conflict_counts(total, shapes, textures)
    counts |= {f"{metric}_by_sum": count for metric, count in by_sum.items()}
    return Scored(counts, mean, mean == shapes)


def _conflict_of_cifar10(logits: np.ndarray, labels: np.ndarray) -> Scored:
    """Images whose shape is no class of CIFAR-10 are not counted for it, and not wrong."""
    shapes, textures = labels.T
    predicted = rules.conflict_decisions_of_cifar10(logits)
    counts = rules.conflict_counts_of_cifar10(predicted, shapes, textures)
    known = np.isin(shapes, rules.classes_shared_with_cifar10())
    return Scored(counts, predicted, (predicted == shapes) | ~known)


def _counted(hits: np.ndarray) -> tuple[int, int]:
    return int(hits.sum()), len(hits)


def _multi_hot(example: Mapping[str, Any]) -> np.ndarray:
    right = np.zeros(1000, np.int32)
    right[example["real_label"]] = 1
    return right


REAL = Labels("real_label", _multi_hot)
SHAPE_AND_TEXTURE = Labels(
    "shape_imagenet_labels",
    lambda example: np.array([example["shape_label"], example["texture_label"]], np.int32),
)
_STIMULI = ("conflict", "geirhos_conflict_stimuli:1.0.0", "test", 1_280, False)

IMAGENET = (
    Row("imagenet", "imagenet2012:5.*", "validation", 50_000, True, top1),
    Row("real", "imagenet2012_real:1.0.0", "validation", 50_000, True, _real, labels=REAL,
        labelled=46_837),
    Row("v2", "imagenet_v2/matched-frequency:3.0.0", "test", 10_000, True, top1),
    Row("a", "imagenet_a:0.1.0", "test", 7_500, True,
        functools.partial(_restricted, rules.restricted_classes("a")), among=200),
    Row("r", "imagenet_r:0.2.0", "test", 30_000, True,
        functools.partial(_restricted, rules.restricted_classes("r")), among=200),
    Row("sketch", "imagenet_sketch:1.0.0", "test", 50_889, True, top1),
    # These are 224 pixels already: never a second crop (F, F2).
    Row(*_STIMULI, _conflict, labels=SHAPE_AND_TEXTURE),
    *(Row(f"c/{name}_{severity}", f"imagenet2012_corrupted/{name}_{severity}:3.1.0", "validation",
          50_000, False, top1)
      for name in TYPES for severity in SEVERITIES),
)  # fmt: skip
TRANSFER = (
    Row("cifar10", "cifar10:3.0.2", "test", 10_000, False, top1, imagenet=False),
    Row("cifar100", "cifar100:3.0.2", "test", 10_000, False, top1, imagenet=False),
    Row("sun397", "sun397/tfds:4.0.0", "test", 21_750, False, top1, imagenet=False),
    Row("resisc45", "resisc45:3.0.0", "train[80%:]", 6_300, False, top1, imagenet=False),
    Row("dmlab", "dmlab:2.0.1", "test", 22_735, False, top1, imagenet=False),
)
CIFAR10 = (
    Row("cifar10", "cifar10:3.0.2", "test", 10_000, False, top1, imagenet=False),
    Row(*_STIMULI, _conflict_of_cifar10, SHAPE_AND_TEXTURE, model_classes=rules.CIFAR10,
        imagenet=False),
    *(Row(f"c/{name}_{severity}", "cifar10:3.0.2", "test", 10_000, False, top1,
          corruption=(name, severity), imagenet=False)
      for name in TYPES for severity in SEVERITIES),
)  # fmt: skip
SUITES = {"imagenet": IMAGENET, "transfer": TRANSFER, "cifar10": CIFAR10}
