"""What must hold for every task under every attack: the table of laws.

Each law takes (task, ball, batch) and raises AssertionError where it is broken.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adv_ssl import attacks
from adv_ssl import task as task_module
from adv_ssl.task import Batch, Prepared, PyTree, Task

KEY = jax.random.key(7)


class Case:
    """A task, what its attack may do, and a batch. What is compiled once serves all laws."""

    def __init__(self, task: Task, norm: str, epsilon: float, batch: Batch, attack: str = "pgd"):
        self.task, self.norm, self.epsilon, self.batch = task, norm, epsilon, batch
        self.search = functools.partial(attacks.ATTACKS[attack], norm)
        self._prepare = functools.cache(lambda task: jax.jit(task.prepare))
        self._loss = jax.jit(lambda *arguments: task.loss(*arguments, None)[0])
        init = jax.jit(task.init)
        params, self.ema = (init(jax.random.key(i)) for i in (0, 1))
        # A head of zeros would send no gradient to the pixels; every parameter gets some noise.
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(0)
        noisy = [p + 0.05 * rng.standard_normal(p.shape, np.float32) for p in leaves]
        self.params = jax.tree.unflatten(tree, noisy)

    @functools.cache  # noqa: B019
    def attacked(
        self, steps: int = 2, step_size: float = 5 / 8, start: str = "ball", share: float = 1.0
    ) -> Task:
        """The adversarial task, at ``share`` of the radius."""
        attack = self.search(share * self.epsilon, steps, step_size, start)
        return task_module.adversarial(self.task, attack)

    def prepare(self, task: Task, key: jax.Array = KEY, batch: Batch | None = None) -> Prepared:
        """``task.prepare`` with the parameters of this case."""
        return self._prepare(task)(self.params, self.ema, batch or self.batch, key)

    def losses(self, x: PyTree, context: PyTree) -> np.ndarray:
        """The losses without drop path: [B]."""
        return np.asarray(self._loss(self.params, x, context))


def other_key_other_attack(case: Case) -> None:
    a, b = (case.prepare(case.attacked(), jax.random.key(i)).x for i in (1, 2))
    assert all(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def no_steps_is_the_identity(case: Case) -> None:
    chex.assert_trees_all_equal(case.prepare(case.task), case.prepare(case.attacked(steps=0)))


def loss_is_the_same_function(case: Case) -> None:
    assert case.attacked().loss is case.task.loss
    assert case.attacked().init is case.task.init


def stays_in_the_ball_and_in_range(case: Case) -> None:
    clean = case.prepare(case.task).x
    # Long steps and many: without projection or clip the point is far outside.
    for arguments in ((), (5, 2.0)):
        x = case.prepare(case.attacked(*arguments)).x
        for a, c in zip(*map(jax.tree.leaves, (x, clean)), strict=True):
            delta = np.asarray(a - c).reshape(len(a), -1).astype(np.float64)
            order = np.inf if case.norm == "linf" else 2
            radius = np.linalg.norm(delta, ord=order, axis=1) / case.epsilon
            assert np.all(radius <= 1 + 1e-5), radius
            assert np.all(radius >= 0.2), f"the budget is hardly used: {radius}"
            assert np.min(a) >= 0, np.min(a)
            assert np.max(a) <= 1, np.max(a)


def attack_does_not_lower_the_loss(case: Case) -> None:
    clean = case.prepare(case.task)
    x = case.prepare(case.attacked(4, 0.25, "zero", 0.05)).x
    before = case.losses(clean.x, clean.context).sum()
    after = case.losses(x, clean.context).sum()
    assert after > before, (before, after)


def context_is_untouched(case: Case) -> None:
    nominal, attacked = (case.prepare(task).context for task in (case.task, case.attacked()))
    chex.assert_trees_all_equal(nominal, attacked)


def no_gradient_reaches_what_is_prepared(case: Case) -> None:
    """Neither the target network nor the attacked image passes a gradient on to parameters."""
    for task in (case.task, case.attacked()):

        def total(prepared_with: tuple[PyTree, PyTree], task: Task = task) -> jax.Array:
            x, context, _ = task.prepare(*prepared_with, case.batch, KEY)
            return task.loss(case.params, x, context, None)[0].sum()

        gradient = jax.jit(jax.grad(total))((case.params, case.ema))
        chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def attack_is_in_eval_mode(case: Case) -> None:
    """Drop path is off while attacking (A16): the objective gets no key."""

    def loss(params: PyTree, x: PyTree, context: PyTree, key: jax.Array | None) -> tuple:
        assert key is None, "the attack drew a key for drop path"
        return case.task.loss(params, x, context, key)

    attack = case.search(case.epsilon, 1)
    watched = task_module.adversarial(case.task._replace(loss=loss), attack)
    jax.eval_shape(watched.prepare, case.params, case.ema, case.batch, KEY)


def images_do_not_see_each_other(case: Case) -> None:
    """Changing image j changes losses[j] alone, attacked or not. (BatchNorm has to be off.)"""
    other = {k: np.array(v) for k, v in case.batch.items()}
    other["image"][1] = 255 - other["image"][1]
    for task in (case.task, case.attacked()):
        prepared = [case.prepare(task, batch=batch) for batch in (case.batch, other)]
        before, after = (case.losses(x, context) for x, context, _ in prepared)
        assert list(np.abs(before - after) > 1e-5) == [False, True, False, False], (before, after)


def health_is_sane(case: Case) -> None:
    health = case.prepare(case.attacked()).health
    assert set(health) == {"loss_start", "gain", "radius", "zero_grad"}
    shapes = {name: value.shape for name, value in health.items()}
    assert set(shapes.values()) == {(4,)}, shapes
    assert np.all(health["radius"] <= 1 + 1e-5)
    assert np.all(health["zero_grad"] < 0.5)


LAWS: dict[str, Callable[[Case], None]] = {
    law.__name__: law
    for law in (
        other_key_other_attack,
        no_steps_is_the_identity,
        loss_is_the_same_function,
        stays_in_the_ball_and_in_range,
        attack_does_not_lower_the_loss,
        context_is_untouched,
        no_gradient_reaches_what_is_prepared,
        attack_is_in_eval_mode,
        images_do_not_see_each_other,
        health_is_sane,
    )
}
EPSILONS = {"linf": 8 / 255, "l2": 0.5}
