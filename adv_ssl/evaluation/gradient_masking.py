"""Signs of masked gradients: that accuracy under attack is not robustness.

More effort can only break more; a radius without bound breaks everything; a loss has a gradient.
Where that is not so, the attack fails for a reason of its own, such as masked gradients.
"""

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adv_ssl import sharding
from adv_ssl.attacks import BALLS
from adv_ssl.evaluation.predict import Model, classifier
from adv_ssl.models.vit import Architecture
from adv_ssl.robustness.margin_pgd import margin_pgd, per_image
from adv_ssl.task import PyTree

SLACK = 0.02  # by which share of images a rung may stand above the one before it: chance
ZEROS = 0.5  # share of zeros in the gradient above which it says nothing
STEPS = 10  # of the weak PGD; the strong one has four times as many


Search = tuple[int, float, str]  # steps, step size and start: the last arguments of ``pgd``


class Rung(NamedTuple):
    """One attack of the ladder."""

    name: str
    search: Search
    restarts: int = 1
    unbounded: bool = False  # a radius that holds every image


_STRONG = (4 * STEPS, 2.5 / (4 * STEPS), "ball")
LADDER = (
    Rung("clean", (0, 0.0, "zero")),
    Rung("noise", (1, 0.0, "ball")),
    Rung("FGSM", (1, 1.0, "zero")),
    Rung(f"PGD-{STEPS}", (STEPS, 2.5 / STEPS, "ball")),
    Rung(f"PGD-{4 * STEPS}", _STRONG),
    Rung(f"PGD-{4 * STEPS}, 3 restarts", _STRONG, restarts=3),
    Rung("unbounded", _STRONG, unbounded=True),
)


def ladder(
    model: Model,
    images: np.ndarray,
    labels: np.ndarray,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Accuracy on each rung, the share of zeros in the gradient, and what is wrong with them.

    The gradient is that of the images that are right: others have one, however masked it is.

    Args:
      model: the classifier.
      images: float32 [N, H, W, 3] in [0, 1].
      labels: [N].
      norm: "linf" or "l2".
      epsilon: radius.
      seed: of the starts.
      batch_size: images attacked at once, over all devices.

    Returns:
      {"accuracy": {rung: share}, "zero_gradient": share, "flags": [text]}.
    """
    counts: collections.Counter[str] = collections.Counter()
    zeros, count = 0.0, len(images)
    size = sharding.rounded_up(min(batch_size, count))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # the last one fills up
        mask = start + np.arange(size) < count
        x, its_labels = sharding.split((images[rows], labels[rows]))
        for name, stands in _climbed(model, x, its_labels, rows, norm, epsilon, seed):
            counts[name] += int(stands[mask].sum())
            if name == "clean":
                right = stands & mask
        found = _zeros(model.architecture, model.params, x, its_labels)
        zeros += float(np.asarray(found)[right].sum())
    zeros /= max(counts["clean"], 1)
    accuracy = {name: hits / count for name, hits in counts.items()}
    return {
        "accuracy": accuracy,
        "zero_gradient": zeros,
        "flags": flags(accuracy, zeros, count),
    }


def _climbed(
    model: Model, x: Array, labels: Array, indices: np.ndarray, norm: str, epsilon: float, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(rung, which images stand [B])."""
    key = jax.random.key(seed)

    @functools.cache  # the first of the restarts was made before
    def stand(search: Search, radius: float, restart: int) -> np.ndarray:
        images = x, labels, indices
        what = norm, radius, search, jax.random.fold_in(key, restart)
        return np.asarray(_stands(model.architecture, model.params, *images, *what))

    for rung in LADDER:
        # The norm of the farthest difference of two images: it holds every one
        radius = float(BALLS[norm].norm(jnp.ones(x.shape[1:]))) if rung.unbounded else epsilon
        starts = [stand(rung.search, radius, restart) for restart in range(rung.restarts)]
        yield rung.name, np.all(starts, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 5, 7))
def _stands(
    architecture: Architecture,
    params: PyTree,
    images: Array,
    labels: Array,
    indices: Array,
    norm: str,
    epsilon: Array,
    search: Search,
    key: Array,
) -> Array:
    """Whether each image is still classified right: [N]."""
    logits = functools.partial(classifier(architecture), params)
    keys = per_image(key, indices)
    x = margin_pgd(logits, images, labels, keys, norm, epsilon, *search)
    return logits(x).argmax(-1) == labels


@functools.partial(jax.jit, static_argnums=0)
def _zeros(architecture: Architecture, params: PyTree, images: Array, labels: Array) -> Array:
    """[B]: exact zeros in the gradient of the cross-entropy, which most attacks climb; a share."""
    logits = functools.partial(classifier(architecture), params)

    def loss(x: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(x), labels).sum()

    return jnp.mean(jax.grad(loss)(images) == 0.0, axis=(1, 2, 3))


def flags(accuracy: dict[str, float], zeros: float, images: int) -> list[str]:
    """What is wrong, in words; nothing if all is as it must be."""
    found, slack = [], max(SLACK, 3.5 / images)
    for weaker, stronger in itertools.pairwise(accuracy):
        if accuracy[stronger] > accuracy[weaker] + slack:
            found.append(
                f"{stronger} breaks less than {weaker} ({accuracy[stronger]:.1%} and "
                f"{accuracy[weaker]:.1%} stand): the search does not work"
            )
    if accuracy["unbounded"] > 0:
        found.append(
            f"{accuracy['unbounded']:.1%} stand at a radius that holds every image: "
            "masked gradients"
        )
    if zeros > ZEROS:
        found.append(
            f"{zeros:.0%} of the cross-entropy's gradient is zero: masked gradients, "
            "to which attacks by cross-entropy are blind"
        )
    return found
