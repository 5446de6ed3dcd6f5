"""An attack that doubts itself: signs that accuracy under attack is not robustness (P29).

More effort can only break more; a radius without bound breaks everything; a loss has a gradient.
Where that is not so, the attack fails for a reason of its own, such as masked gradients.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adv_ssl.attacks import pgd
from adv_ssl.evaluation.predict import Model, classifier
from adv_ssl.models.vit import Architecture
from adv_ssl.robustness.losses import margin

PyTree = Any
SLACK = 0.02  # by which share of images a rung may stand above the one before it: chance
ZEROS = 0.5  # share of zeros in the gradient above which it says nothing
STEPS = 10  # of the weak PGD; the strong one has four times as many


class Rung(NamedTuple):
    """One attack of the ladder."""

    name: str
    steps: int
    step_size: float  # share of the radius
    start: str
    restarts: int = 1
    unbounded: bool = False  # a radius that holds every image


LADDER = (
    Rung("noise", 1, 0.0, "ball"),
    Rung("FGSM", 1, 1.0, "zero"),
    Rung(f"PGD-{STEPS}", STEPS, 2.5 / STEPS, "ball"),
    Rung(f"PGD-{4 * STEPS}", 4 * STEPS, 2.5 / (4 * STEPS), "ball"),
    Rung(f"PGD-{4 * STEPS}, 3 restarts", 4 * STEPS, 2.5 / (4 * STEPS), "ball", 3),
    Rung("unbounded", 4 * STEPS, 2.5 / (4 * STEPS), "ball", 1, True),
)


def ladder(
    model: Model, images: np.ndarray, labels: np.ndarray, norm: str, epsilon: float, seed: int
) -> dict[str, Any]:
    """Accuracy on each rung, the share of zeros in the gradient, and what is wrong with them.

    Args:
      model: the classifier.
      images: float32 [N, H, W, 3] in [0, 1].
      labels: [N].
      norm: "linf" or "l2".
      epsilon: radius.
      seed: of the starts.

    Returns:
      {"accuracy": {rung: share}, "zero_gradient": share, "flags": [text]}.
    """
    measured = functools.partial(_stands, model.architecture, model.params, images, labels)
    key = jax.random.key(seed)
    with jax.default_matmul_precision("float32"):
        accuracy = {"clean": float(np.mean(measured(None, norm, 0.0, key)))}
        for rung in LADDER:
            radius = _whole(norm, images.shape[1:]) if rung.unbounded else epsilon
            stands = np.ones(len(images), bool)
            for restart in range(rung.restarts):
                again = rung._replace(restarts=1)
                stands &= np.asarray(
                    measured(again, norm, radius, jax.random.fold_in(key, restart))
                )
            accuracy[rung.name] = float(stands.mean())
        zeros = float(_zeros(model.architecture, model.params, images, labels))
    return {
        "accuracy": accuracy,
        "zero_gradient": zeros,
        "flags": flags(accuracy, zeros, len(images)),
    }


def _whole(norm: str, shape: tuple[int, ...]) -> float:
    """A radius that holds all of [0, 1]^shape."""
    return 1.0 if norm == "linf" else float(np.sqrt(np.prod(shape)))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _stands(
    architecture: Architecture,
    params: PyTree,
    images: Array,
    labels: Array,
    rung: Rung | None,
    norm: str,
    epsilon: Array,
    key: Array,
) -> Array:
    """Whether each image is still classified right: [N]."""
    logits = functools.partial(classifier(architecture), params)
    x = images
    if rung is not None:
        attack = pgd(norm, epsilon, rung.steps, rung.step_size, rung.start)
        x, _ = attack(lambda x: margin(logits(x), labels), images, key)
    return logits(x).argmax(-1) == labels


@functools.partial(jax.jit, static_argnums=0)
def _zeros(architecture: Architecture, params: PyTree, images: Array, labels: Array) -> Array:
    """Share of exact zeros in the gradient of the cross-entropy, which most attacks climb."""
    logits = functools.partial(classifier(architecture), params)

    def loss(x: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(x), labels).sum()

    return jnp.mean(jax.grad(loss)(images) == 0.0)


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
            f"{zeros:.0%} of the cross-entropy's gradient is zero: masked gradients; "
            "attacks by cross-entropy are blind"
        )
    return found
