"""AutoAttack, standard: four attacks, each on the images that still stand (A26).

    for verdict in autoattack(classify, params, images, labels, indices, norm=..., epsilon=...):
        save(verdict)

A ``Verdict`` is all that is known so far; given back as ``verdict`` it is where the work goes on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from adv_ssl import sharding
from adv_ssl.attacks import BALLS
from adv_ssl.errors import UserError
from adv_ssl.keys import named
from adv_ssl.robustness.apgd import apgd, inner_radius
from adv_ssl.robustness.fab import fab
from adv_ssl.robustness.losses import check_classes, cross_entropy, targeted_dlr, wrong_class
from adv_ssl.robustness.margin_pgd import margin_pgd
from adv_ssl.robustness.square import square
from adv_ssl.task import PyTree

Classify = Callable[[PyTree, Array], Array]  # (params, [B, H, W, C]) -> logits [B, classes]

CLEAN = "clean"
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")  # the standard, in this order
PGD = "pgd"  # A25: fixed steps, the margin loss
TARGETED = ("apgd-t", "fab-t")
STANDS = ""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The effort of each attack; the defaults are the standard."""

    steps: int = 100  # of APGD and FAB
    targets: int = 9  # wrong classes, most likely ones first
    queries: int = 5000  # of Square
    pgd_steps: int = 40
    restarts: int = 1  # of PGD


class Verdict(NamedTuple):
    """What is known of each image, in the order given."""

    done: tuple[str, ...]  # CLEAN and the attacks that are through, in their order
    broken_by: np.ndarray  # [N] of str: the one of ``done`` that it fell to, or STANDS
    x_adv: np.ndarray  # [N, H, W, C]: the misclassified point; the image itself where it stands

    @property
    def robust(self) -> np.ndarray:
        """[N] of bool."""
        return self.broken_by == STANDS


def autoattack(
    classify: Classify,
    params: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    norm: str,
    epsilon: float,
    seed: int = 0,
    batch_size: int = 64,
    attacks: Sequence[str] = ATTACKS,
    budget: Budget = Budget(),
    verdict: Verdict | None = None,
) -> Iterator[Verdict]:
    """Yields the verdict without an attack, then after each one.

    Batches, split over this host's devices, have one to four quarters of ``batch_size`` images: at
    most four programs for each attack, whatever the radius and the parameters.

    Args:
      classify: (params, x float32 [B, H, W, C] in [0, 1]) -> logits [B, classes]. It should be the
        same function every time: a new one is compiled anew.
      params: of the classifier.
      images: float32 [N, H, W, C] in [0, 1].
      labels: [N], the right classes.
      indices: [N], of the images in their data set: with ``seed`` they decide all chance.
      norm: "linf" or "l2".
      epsilon: radius, in the unit of ``images``.
      seed: of all chance.
      batch_size: images attacked at once, at most; rounded up to a multiple of the devices.
      attacks: one after the other.
      budget: the effort.
      verdict: where to go on; its attacks are not made again.

    Raises:
      UserError: with the first verdict: an unknown norm, a negative radius, fewer than four
        classes, labels that are none of them.
    """
    classes = _check(classify, params, images, labels, norm, epsilon, attacks)
    params, size = sharding.replicate(params), sharding.rounded_up(batch_size)
    if verdict is None:
        verdict = Verdict((), np.full(len(images), STANDS, object), images)
    for attack in (CLEAN, *attacks):
        if attack in verdict.done:
            continue
        broken_by, x_adv = verdict.broken_by.copy(), verdict.x_adv.copy()
        key = named(jax.random.key(seed), attack)
        for rank in range(_ranks(attack, budget, classes)):
            for rows in _batches(np.flatnonzero(broken_by == STANDS), size):
                batch = sharding.split((images[rows], labels[rows], indices[rows]))
                with jax.default_matmul_precision("float32"):
                    points, broken = _run(
                        classify, attack, norm, budget, params, *batch, epsilon, key, rank
                    )
                fallen = np.asarray(broken)
                broken_by[rows[fallen]] = attack
                x_adv[rows[fallen]] = np.asarray(points)[fallen]
        verdict = Verdict((*verdict.done, attack), broken_by, x_adv)
        yield verdict


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    classify: Classify,
    attack: str,
    norm: str,
    budget: Budget,
    params: PyTree,
    x: Array,
    labels: Array,
    indices: Array,
    epsilon: Array,
    key: Array,
    rank: Array,
) -> tuple[Array, Array]:
    """(x_adv [B, H, W, C], whether it is misclassified and in the ball [B])."""
    logits = functools.partial(classify, params)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), rank))(indices)
    targets = wrong_class(logits(x), labels, rank)
    if attack == "apgd-ce":
        x_adv = apgd(norm, budget.steps, cross_entropy)(logits, x, labels, epsilon, keys)
    elif attack == "apgd-t":
        x_adv = apgd(norm, budget.steps, targeted_dlr(targets))(logits, x, labels, epsilon, keys)
    elif attack == "fab-t":
        x_adv, _ = fab(norm, budget.steps)(logits, x, labels, epsilon, targets)
    elif attack == "square":
        x_adv = square(norm, budget.queries)(logits, x, labels, epsilon, keys)
    elif attack == PGD:
        # Of the whole radius, every point at the edge of an L-inf ball would be a rounding outside.
        radius = inner_radius(norm, epsilon, x.shape[1:])
        steps = budget.pgd_steps
        x_adv = margin_pgd(logits, x, labels, keys, norm, radius, steps, 2.5 / steps)
    else:
        x_adv = x
    distance = jax.vmap(BALLS[norm].norm)(x_adv - x)  # FAB may end outside
    broken = (logits(x_adv).argmax(-1) != labels) & (distance <= epsilon * (1 + 1e-6))
    return x_adv, broken


def _ranks(attack: str, budget: Budget, classes: int) -> int:
    """How often an attack is made: once for each target, or restart."""
    if attack in TARGETED:
        return min(budget.targets, classes - 1)
    return budget.restarts if attack == PGD else 1


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The rows in as few batches as ``size`` allows, all of as few quarters of it as hold them.

    The last row is repeated to fill the last batch.
    """
    if not len(rows):
        return
    quarter = sharding.rounded_up(math.ceil(size / 4))
    share = math.ceil(len(rows) / math.ceil(len(rows) / size))
    each = min(size, quarter * math.ceil(share / quarter))
    for start in range(0, len(rows), each):
        batch = rows[start : start + each]
        # A repeated image has the same result as the first, and does not hold its batch up.
        yield np.pad(batch, (0, each - len(batch)), mode="edge")


def _check(
    classify: Classify,
    params: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    norm: str,
    epsilon: float,
    attacks: Sequence[str],
) -> int:
    """The number of classes, of a task that the attacks are defined for."""
    if norm not in BALLS:
        raise UserError(f"AutoAttack: norm={norm!r}, it must be one of {', '.join(BALLS)}")
    if not epsilon >= 0:
        raise UserError(f"AutoAttack: epsilon={epsilon}, it must be 0 or more, in pixels of [0, 1]")
    classes = jax.eval_shape(classify, params, images[:1]).shape[-1]
    if TARGETED[0] in attacks:
        check_classes(classes)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(
            f"AutoAttack: labels go from {labels.min()} to {labels.max()}, the model has {classes} "
            f"classes: they must be in [0, {classes})"
        )
    return classes
