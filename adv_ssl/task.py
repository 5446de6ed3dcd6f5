"""A task is three pure functions; adversarial training is a function from task to task.

An adversarial example is data, not a property of a loss: so an attack changes what a task
*prepares* and nothing else, and the train step never asks whether there is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.attacks import Attack, Health
from adv_ssl.attacks import PyTree as PyTree
from adv_ssl.keys import named

Batch = dict[str, Array]
Aux = dict[str, Array]


class Prepared(NamedTuple):
    """All random choices and all constants of one step, but for drop path."""

    x: PyTree  # float32 in [0, 1], [B, ...]: exactly the part that may be attacked
    context: PyTree  # targets, masks, labels: fixed while x is attacked
    health: Health = {}  # noqa: RUF012 - what the attack says of itself, for the log


class Task(NamedTuple):
    """What is learnt, as three pure functions.

    ``init(key) -> params``: ``params["encoder"]`` is handed on to the next stage.
    ``prepare(params, ema, batch, key) -> Prepared``: mask, views, mixup, clean targets, EMA
    projections. ``loss(params, x, context, key) -> (losses [B], aux)``: deterministic given its
    arguments; ``key`` drives drop path alone, and ``None`` means none. ``aux`` holds scalars and
    ``[B]`` arrays for the log; what else a task knows of an image (``logits``) is for evaluation.
    """

    init: Callable[[Array], PyTree]
    prepare: Callable[[PyTree, PyTree, Batch, Array], Prepared]
    loss: Callable[[PyTree, PyTree, Any, Array | None], tuple[Array, Aux]]


def pixels(batch: Batch) -> Array:
    """The images of a batch, uint8 in the file and on the way, in [0, 1] (A12)."""
    return batch["image"].astype(jnp.float32) / 255


def adversarial(task: Task, attack: Attack) -> Task:
    """``task`` on attacked inputs (paper eq. 1, 4, 5, 7): replaces ``prepare`` alone.

    The attack raises the task's own loss with the parameters as they are (A15), the context fixed
    and drop path off (A16). The task's key is passed on unchanged, so that a nominal and an
    adversarial run of one seed see the same batches, masks and views.
    """

    def prepare(params: PyTree, ema: PyTree, batch: Batch, key: Array) -> Prepared:
        x, context, _ = task.prepare(params, ema, batch, key)

        def objective(x: PyTree) -> Array:
            return task.loss(params, x, context, None)[0]

        x_adv, health = attack(objective, x, named(key, "attack"))
        return Prepared(jax.lax.stop_gradient(x_adv), context, health)

    return task._replace(prepare=prepare)
