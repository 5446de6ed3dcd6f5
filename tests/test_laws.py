"""The table of laws over all tasks and norms; each is seen to fail where its rule is broken."""

import functools

import jax
import jax.numpy as jnp
import pytest
from conftest import COUPLED_BY, OPTIONS, make_batch, make_task
from flax import linen as nn
from laws import EPSILONS, LAWS, Case

from adv_ssl import attacks, tasks
from adv_ssl import task as task_module
from adv_ssl.keys import named
from adv_ssl.models import heads
from adv_ssl.task import Prepared
from adv_ssl.tasks import byol, classifier


class NoNorm(nn.Module):
    """In BatchNorm's place: it couples the images of a batch by nature."""

    @nn.compact
    def __call__(self, x):
        return x


def new_case(name: str, norm: str, attack: str = "pgd") -> Case:
    return Case(make_task(name), norm, EPSILONS[norm], make_batch(name), attack)


shared_case = functools.cache(new_case)
APART = "images_do_not_see_each_other"
HELD = [(law, name) for law in LAWS for name in OPTIONS]
HELD = [(law, name) for law, name in HELD if law != APART or COUPLED_BY.get(name) != "loss"]


def test_every_task_is_held_to_the_laws():
    assert OPTIONS.keys() == tasks.TASKS.keys()


@pytest.mark.parametrize("attack", attacks.ATTACKS)
@pytest.mark.parametrize("norm", EPSILONS)
@pytest.mark.parametrize(("law", "name"), HELD)
def test_law(law, name, norm, attack, monkeypatch):
    if law == APART and name in COUPLED_BY:
        monkeypatch.setattr(heads, "BatchNorm", NoNorm)
        LAWS[law](new_case(name, norm, attack))
    else:
        LAWS[law](shared_case(name, norm, attack))


def split_keys(task, attack):
    """adversarial() that passes half of a split key on: nominal and attacked runs part."""

    def prepare(params, ema, batch, key):
        mine, theirs = jax.random.split(key)
        x, context, _ = task.prepare(params, ema, batch, theirs)
        x_adv, health = attack(lambda x: task.loss(params, x, context, None)[0], x, mine)
        return Prepared(jax.lax.stop_gradient(x_adv), context, health)

    return task._replace(prepare=prepare)


def noisy_attack(task, attack):
    """adversarial() that leaves drop path on in the attack."""

    def prepare(params, ema, batch, key):
        x, context, _ = task.prepare(params, ema, batch, key)
        x_adv, health = attack(
            lambda x: task.loss(params, x, context, key)[0], x, named(key, "attack")
        )
        return Prepared(jax.lax.stop_gradient(x_adv), context, health)

    return task._replace(prepare=prepare)


def break_projection(patch):
    for norm, ball in attacks.BALLS.items():
        patch.setitem(attacks.BALLS, norm, ball._replace(project=lambda d, radius: d))


def break_clip(patch):
    # Of a twin of jax.numpy, so that only the attack's own clip goes.
    balls = {n: b._replace(project=_project_without_clip(b, n)) for n, b in attacks.BALLS.items()}
    for norm, ball in balls.items():
        patch.setitem(attacks.BALLS, norm, ball)
    patch.setattr(attacks.jnp, "clip", lambda x, low, high: x)


def _project_without_clip(ball, norm):
    if norm == "l2":
        return ball.project
    return lambda d, radius: attacks.jnp.minimum(attacks.jnp.maximum(d, -radius), radius)


def break_ascent(patch):
    for norm, ball in attacks.BALLS.items():
        patch.setitem(attacks.BALLS, norm, ball._replace(ascend=lambda g, f=ball.ascend: -f(g)))


def break_stop_gradient(patch):
    patch.setattr(byol.jax.lax, "stop_gradient", lambda tree: tree)


def break_independence(patch):
    def coupled(logits, targets):
        return jnp.full(len(logits), -(targets * jax.nn.log_softmax(logits)).sum(-1).mean())

    patch.setattr(classifier.optax, "softmax_cross_entropy", coupled)


def break_health(patch):
    told = attacks._health
    patch.setattr(attacks, "_health", lambda losses, zeros, radius: told(losses, zeros, 2 * radius))


def break_loss(patch):
    whole = task_module.adversarial

    def other_loss(task, attack):
        return whole(task, attack)._replace(loss=lambda *given: task.loss(*given))

    patch.setattr(task_module, "adversarial", other_loss)


def break_chance(patch):
    patch.setattr(task_module, "named", lambda key, name: jax.random.key(0))


def break_keys(patch):
    patch.setattr(task_module, "adversarial", split_keys)


def break_eval_mode(patch):
    patch.setattr(task_module, "adversarial", noisy_attack)


@pytest.mark.parametrize(
    ("mutation", "name", "law", "norm"),
    [
        (break_projection, "supervised", "stays_in_the_ball_and_in_range", "linf"),
        (break_projection, "supervised", "stays_in_the_ball_and_in_range", "l2"),
        (break_projection, "byol", "stays_in_the_ball_and_in_range", "l2"),
        (break_clip, "supervised", "stays_in_the_ball_and_in_range", "linf"),
        (break_clip, "supervised", "stays_in_the_ball_and_in_range", "l2"),
        (break_clip, "byol", "stays_in_the_ball_and_in_range", "linf"),
        (break_ascent, "supervised", "attack_does_not_lower_the_loss", "linf"),
        (break_ascent, "supervised", "attack_does_not_lower_the_loss", "l2"),
        (break_ascent, "byol", "attack_does_not_lower_the_loss", "l2"),
        (break_stop_gradient, "byol", "no_gradient_reaches_what_is_prepared", "linf"),
        (break_independence, "supervised", "images_do_not_see_each_other", "l2"),
        (break_health, "supervised", "health_is_sane", "linf"),
        (break_loss, "supervised", "loss_is_the_same_function", "l2"),
        (break_chance, "supervised", "other_key_other_attack", "l2"),
        (break_keys, "byol", "no_steps_is_the_identity", "l2"),
        (break_keys, "byol", "context_is_untouched", "linf"),
        (break_eval_mode, "supervised", "attack_is_in_eval_mode", "linf"),
        (break_eval_mode, "byol", "attack_is_in_eval_mode", "l2"),
    ],
)
def test_a_broken_rule_is_noticed(mutation, name, law, norm, monkeypatch):
    LAWS[law](shared_case(name, norm))
    with monkeypatch.context() as patch:
        mutation(patch)
        with pytest.raises(AssertionError):
            LAWS[law](new_case(name, norm))
