"""How each variant of ImageNet turns logits into hits, and many scores into one.

Section F of docs/method.md. Images are rows: logits are [N, 1000], in the order of sorted WNIDs
(F11). Where images are counted the result is a bool for each of them, or (hits, n), from which the
interval is made.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import softmax

from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.errors import UserError

# The rows of the paper's Figure 2, in its order
VARIANTS = ("imagenet", "real", "v2", "a", "r", "sketch", "conflict", "c")
# Mean error of AlexNet over the five severities of each type (hendrycks/robustness, ImageNet-C)
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# The cue-conflict classes that are CIFAR-10's too, and as what
CONFLICT_OF_CIFAR10 = {
    "airplane": "airplane",
    "bird": "bird",
    "boat": "ship",
    "car": "automobile",
    "cat": "cat",
    "dog": "dog",
    "truck": "truck",
}
_LABELS = pathlib.Path(__file__).parents[1] / "labels"


# ---- one image ------------------------------------------------------------------------------


def restricted_decisions(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> np.ndarray:
    """The most likely of some classes only, as IN-A and IN-R are scored (F).

    Args:
      logits: [N, 1000].
      labels: [N], each one of ``classes``: 0 to 999, not a position in the list.
      classes: ``restricted_classes("a")`` or ``restricted_classes("r")``.

    Returns:
      int [N]: 0 to 999.

    Raises:
      UserError: a label is none of the classes.
    """
    strange = np.setdiff1d(labels, classes)
    if strange.size:
        raise UserError(
            f"label {strange[0]} is none of the {len(classes)} classes that are scored: labels are "
            "ImageNet's, 0 to 999; use the list of classes of this data set."
        )
    return np.asarray(classes)[logits[:, classes].argmax(-1)]


# ---- cue conflict ---------------------------------------------------------------------------


def conflict_decisions(
    logits: np.ndarray, aggregate: Callable[..., np.ndarray] = np.mean
) -> np.ndarray:
    """The one of the 16 cue-conflict classes that an image is taken for (F).

    Args:
      logits: [N, 1000].
      aggregate: of the probabilities of a class's ImageNet indices; np.sum favours classes of
        many indices (F4).

    Returns:
      int [N], in the order of ``conflict_classes()``, which is alphabetical as TFDS's.
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    groups = [probabilities[:, indices] for indices in conflict_classes().values()]
    return np.stack([aggregate(group, axis=-1) for group in groups], -1).argmax(-1)


def conflict_counts(
    decisions: np.ndarray, shapes: np.ndarray, textures: np.ndarray
) -> dict[str, tuple[int, int]]:
    """Hits and denominators of the cue-conflict images (F3).

    An image is a conflict if its shape and its texture are of two classes: 1,200 of the 1,280.

    Args:
      decisions: [N], from ``conflict_decisions``.
      shapes: [N] class of the shape, 0 to 15.
      textures: [N] class of the texture.

    Returns:
      (hits, n) of each metric:
        shape_top1: shape, of all images: the row of Figure 2.
        shape_top1_conflict: shape, of conflict images.
        shape_top1_conflict_of_all: shape of conflict images over all, as model-vs-human has it.
        texture_top1_conflict: texture, of conflict images.
        shape_bias: shape, of the conflict images taken for their shape or their texture: n may be
          0, and then there is no bias.
    """
    conflict = shapes != textures
    shape_hits, texture_hits = decisions == shapes, decisions == textures
    n, conflicts = len(decisions), int(conflict.sum())
    shape, texture = int((shape_hits & conflict).sum()), int((texture_hits & conflict).sum())
    return {
        "shape_top1": (int(shape_hits.sum()), n),
        "shape_top1_conflict": (shape, conflicts),
        "shape_top1_conflict_of_all": (shape, n),
        "texture_top1_conflict": (texture, conflicts),
        "shape_bias": (shape, shape + texture),
    }


def conflict_decisions_of_cifar10(logits: np.ndarray) -> np.ndarray:
    """The one of the seven classes of both sets that a cue-conflict image is taken for (ours).

    Args:
      logits: [N, 10], in the order of ``CIFAR10``.

    Returns:
      int [N], in the order of ``conflict_classes()``.
    """
    columns = [CIFAR10.index(name) for name in CONFLICT_OF_CIFAR10.values()]
    return np.array(classes_shared_with_cifar10())[logits[:, columns].argmax(-1)]


def conflict_counts_of_cifar10(
    decisions: np.ndarray, shapes: np.ndarray, textures: np.ndarray
) -> dict[str, tuple[int, int]]:
    """As ``conflict_counts``, each metric over the images whose cue is of one of seven classes.

    The bias is over the conflict images whose shape and texture both are.
    """
    shape_known, texture_known = (
        np.isin(cue, classes_shared_with_cifar10()) for cue in (shapes, textures)
    )
    conflict, both = shapes != textures, shape_known & texture_known

    def counts(images: np.ndarray) -> dict[str, tuple[int, int]]:
        return conflict_counts(decisions[images], shapes[images], textures[images])

    return {
        "shape_top1": counts(shape_known)["shape_top1"],
        "shape_top1_conflict": counts(shape_known & conflict)["shape_top1_conflict"],
        "texture_top1_conflict": counts(texture_known & conflict)["texture_top1_conflict"],
        "shape_bias": counts(both)["shape_bias"],
    }


@functools.cache
def classes_shared_with_cifar10() -> tuple[int, ...]:
    """The positions of ``CONFLICT_OF_CIFAR10`` among the cue-conflict classes."""
    return tuple(list(conflict_classes()).index(name) for name in CONFLICT_OF_CIFAR10)


# ---- many scores in one ---------------------------------------------------------------------


def corruption_mce(scores: Mapping[tuple[str, int], float]) -> float:
    """Mean corruption error of IN-C: each type's error over AlexNet's, averaged; 1 is AlexNet (F2).

    ``scores`` are the top-1, in [0, 1], of every type and severity.
    """
    ratios = [
        np.mean([1 - scores[name, severity] for severity in SEVERITIES]) / ALEXNET_ERRORS[name]
        for name in TYPES
    ]
    return float(np.mean(ratios))


# ---- class lists ----------------------------------------------------------------------------


@functools.cache
def wnids() -> tuple[str, ...]:
    """ImageNet's classes in their order everywhere (F11)."""
    return tuple((_LABELS / "wnids_1000.txt").read_text().split())


def class_words(names: tuple[str, ...]) -> tuple[str, ...]:
    """What people call classes: of ImageNet's WNIDs their first words, of others the names."""
    if names != wnids():
        return names
    return tuple((_LABELS / "words_1000.txt").read_text().splitlines())


@functools.cache
def restricted_classes(variant: str) -> tuple[int, ...]:
    """The 200 ImageNet indices of ImageNet-"a" or -"r", ascending (Hendrycks' eval.py; F)."""
    return tuple(int(row["imagenet_index"]) for row in _rows(f"imagenet_{variant}_indices.csv"))


@functools.cache
def conflict_classes() -> dict[str, tuple[int, ...]]:
    """The 16 cue-conflict classes and their 207 ImageNet indices (texture-vs-shape; F)."""
    classes: dict[str, tuple[int, ...]] = {}
    for row in _rows("conflict_16_classes.csv"):
        name = row["class_name"]
        classes[name] = (*classes.get(name, ()), int(row["imagenet_index"]))
    return classes


def _rows(name: str) -> list[dict[str, str]]:
    with (_LABELS / name).open(newline="") as file:
        return list(csv.DictReader(file))
