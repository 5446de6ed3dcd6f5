"""What the attacks raise: losses of logits ``[B, classes]`` and labels ``[B]``, one per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.errors import UserError

Logits = Callable[[Array], Array]  # [B, H, W, C] in [0, 1] -> [B, classes]
Loss = Callable[[Array, Array], Array]  # (logits [B, classes], labels [B]) -> [B]

DLR_CLASSES = 4  # the fewest of which it can be computed


def of_class(logits: Array, classes: Array) -> Array:
    """The logit of one class per example: [B, classes], [B] -> [B]."""
    chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    return jnp.where(chosen, logits, 0.0).sum(-1)


def wrong_logits(logits: Array, labels: Array) -> Array:
    """The logits with that of the right class at minus infinity."""
    return jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log p(label), in a form whose value and gradient do not round to 0 where p rounds to 1."""
    ahead = jax.nn.logsumexp(wrong_logits(logits, labels), axis=-1) - of_class(logits, labels)
    return jax.nn.softplus(ahead)


def margin(logits: Array, labels: Array) -> Array:
    """By how much the best wrong class is ahead of the right one."""
    return wrong_logits(logits, labels).max(-1) - of_class(logits, labels)


def targeted_dlr(targets: Array) -> Loss:
    """Difference of logits ratio towards ``targets`` [B] (A27).

    ``(z_target - z_label) / (z_1 - (z_3 + z_4) / 2)`` of the sorted logits z_1 >= z_2 >= ...: it
    does not change when all logits are moved or scaled, so it cannot be made to vanish.
    """

    def loss(logits: Array, labels: Array) -> Array:
        first, _, third, fourth = jnp.moveaxis(jax.lax.top_k(logits, DLR_CLASSES)[0], -1, 0)
        spread = first - (third + fourth) / 2
        return (of_class(logits, targets) - of_class(logits, labels)) / (spread + 1e-12)

    return loss


def check_classes(classes: int) -> None:
    """AutoAttack is not defined for fewer than four classes."""
    if classes < DLR_CLASSES:
        raise UserError(
            f"the model has {classes} classes, and the targeted DLR loss of --attack=apgd and "
            f"autoattack needs {DLR_CLASSES} or more: take --attack=pgd."
        )


def wrong_class(logits: Array, labels: Array, rank: int | Array) -> Array:
    """The wrong class of this rank: 0 is the most likely one. [B, classes], [B] -> [B]."""
    order = jnp.argsort(wrong_logits(logits, labels), axis=-1, descending=True)
    return order[:, rank]
