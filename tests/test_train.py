"""The step and the loop: averages, skipped steps, the end of a run that cannot go on."""

import dataclasses
import json
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_batch, make_task

from adv_ssl import optim, train
from adv_ssl.keys import named
from adv_ssl.metrics import Writer, read
from adv_ssl.task import Prepared, Task


def quadratic():
    """A task with one parameter w and the loss (w - x)^2 of each example."""

    def prepare(params, ema, batch, key):
        return Prepared(batch["image"], ())

    def loss(params, x, context, key):
        return jnp.square(params["w"] - x), {}

    return Task(lambda key: {"w": jnp.zeros(())}, prepare, loss)


def setup(rate=0.25, decay=None, tx=None):
    ema_decay = None if decay is None else optax.constant_schedule(decay)
    tx = tx or optax.identity()
    recipe = train.Recipe(quadratic(), tx, optax.constant_schedule(rate), ema_decay)
    ema = None if decay is None else {"w": jnp.ones(())}
    return recipe, train.init_state(recipe, {"w": jnp.zeros(())}, ema)


def batch(*values):
    return {"image": jnp.array(values), "label": np.zeros(len(values))}


def test_a_step_descends_the_mean_loss():
    recipe, state = setup()
    state, metrics = train.train_step(recipe, state, batch(1.0, 3.0), jax.random.key(0))
    assert state.params["w"] == 1.0  # 0 - 0.25 * (-2 * mean(1, 3))
    assert metrics["loss"] == 5.0
    assert metrics["grad_norm"] == 4.0
    assert state.step == 1


@pytest.mark.parametrize("first", [0.5, 0.99])
def test_target_follows_the_updated_parameters(first):
    """xi <- tau_k xi + (1 - tau_k) theta, where theta has made its step and tau_k has not."""
    steps, rate = 4, 0.5
    start, target = np.array([1.0, -2.0]), np.array([5.0, 3.0])

    def loss(params, x, context, key):
        del context, key
        return x @ params["w"], {}

    task = Task(
        init=lambda key: None,
        prepare=lambda params, ema, batch, key: Prepared(batch["x"], None),
        loss=loss,
    )
    recipe = train.Recipe(task, optax.identity(), lambda _: rate, optim.cosine(first, 1.0, steps))
    state = train.init_state(
        recipe, {"w": jnp.array(start, jnp.float32)}, {"w": jnp.array(target, jnp.float32)}
    )
    for k in range(steps):
        x = np.random.default_rng(k).standard_normal((3, 2)).astype(np.float32)
        state, _ = train.train_step(recipe, state, {"x": x}, jax.random.key(0))
        start = start - rate * x.mean(0)
        tau = 1 - (1 - first) * (1 + np.cos(np.pi * k / steps)) / 2
        target = tau * target + (1 - tau) * start
        np.testing.assert_allclose(state.params["w"], start, rtol=1e-5)
        np.testing.assert_allclose(state.ema["w"], target, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    recipe, state = setup(decay=0.9, tx=optax.scale_by_adam())
    kept = jax.tree.map(np.array, (state.params, state.ema, state.opt_state))
    state, metrics = train.train_step(recipe, state, batch(1.0, bad), jax.random.key(0))
    chex.assert_trees_all_equal(kept, (state.params, state.ema, state.opt_state))
    assert (state.step, state.bad_steps, metrics["skipped"]) == (1, 1, 1.0)
    state, metrics = train.train_step(recipe, state, batch(1.0, 1.0), jax.random.key(0))
    assert (state.step, state.bad_steps, metrics["skipped"]) == (2, 0, 0.0)
    assert state.params["w"] == pytest.approx(0.25, rel=1e-4)  # Adam's first step is the rate


def test_a_step_to_parameters_that_are_not_finite_is_none():
    """Else the last step, or one before a checkpoint, would leave a network of nothing."""
    recipe, state = setup(rate=1e38)
    state, metrics = train.train_step(recipe, state, batch(3.0, 3.0), jax.random.key(0))
    assert metrics["grad_norm"] == 6.0
    assert (state.params["w"], state.bad_steps, metrics["skipped"]) == (0.0, 1, 1.0)


class Saved:
    """In place of Checkpoints: remembers what was saved."""

    def __init__(self, folder):
        self.folder, self.steps = folder / "checkpoints", []

    def latest(self):
        return self.steps[-1] if self.steps else None

    def save(self, state, *, wait=False):
        self.steps.append(int(state.step))


def run(batches, steps, tmp_path, log_every=2, save_every=4):
    recipe, state = setup()
    saved = Saved(tmp_path)
    with Writer(tmp_path, 0) as writer:
        state = train.run(
            "pretrain",
            lambda state, batch: train.train_step(recipe, state, batch, jax.random.key(0)),
            state,
            iter(batches),
            steps,
            saved,
            writer,
            log_every,
            save_every,
        )
    return state, saved, read(tmp_path / "metrics.jsonl")


def test_the_loop_logs_saves_and_ends(tmp_path):
    state, saved, records = run([batch(1.0, 1.0)] * 10, 10, tmp_path)
    assert state.step == 10
    assert saved.steps == [4, 8, 10]
    assert [r["step"] for r in records] == [1, 2, 4, 6, 8, 10]
    assert all(0 <= r["input_wait"] <= 1 for r in records)
    losses = [r["loss"] for r in records]
    assert losses == sorted(losses, reverse=True)


def test_skipped_steps_are_counted_and_do_not_spoil_the_mean(tmp_path):
    batches = [batch(1.0, 1.0), batch(np.nan, 1.0), batch(1.0, 1.0), batch(1.0, 1.0)]
    _, _, records = run(batches, 4, tmp_path, log_every=4)
    assert records[-1]["skipped"] == 1
    assert np.isfinite(records[-1]["loss"])


def test_too_many_bad_steps_end_the_run(tmp_path):
    batches = [batch(1.0, 1.0)] * 4 + [batch(np.nan, 1.0)] * 20
    with pytest.raises(
        train.TrainingError,
        match=r"up to step 14 .*loss nan.*checkpoints is step 12\. The batches .*lower config",
    ):
        run(batches, 24, tmp_path)
    with pytest.raises(
        train.TrainingError, match=r"\); nothing was saved\. The .* lower config\.pre"
    ):
        run(batches[4:], 24, tmp_path / "new", save_every=30)
    kept = sorted(path.name for path in tmp_path.glob("skipped_*.npz"))
    assert kept == ["skipped_5.npz", "skipped_6.npz", "skipped_7.npz"]
    with np.load(tmp_path / kept[0]) as batch_of_it:
        np.testing.assert_array_equal(batch_of_it["image"], batches[4]["image"])


def test_waiting_for_input_is_measured(tmp_path, monkeypatch):
    """By a clock of its own: nine seconds to read a batch of two, one for its step."""
    now, step = [0.0], train.train_step

    def slow():
        while True:
            now[0] += 9
            yield batch(1.0, 1.0)

    def stepping(*given):
        now[0] += 1
        return step(*given)

    monkeypatch.setattr(train, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(train, "train_step", stepping)
    _, _, records = run(slow(), 6, tmp_path)
    assert [r["step"] for r in records] == [1, 2, 4, 6]
    assert {(r["input_wait"], r["images_per_second"]) for r in records} == {(0.9, 0.2)}


def test_what_is_not_finite_is_null_in_the_log(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1.0})
    record = {"step": 1, "loss": None, "grad_norm": None, "skipped": 1.0}
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(record) + "\n"


def test_the_line_of_progress():
    values = {"loss": 0.5, "accuracy": 0.25, "images_per_second": 1234.5, "input_wait": 0.07,
              "skipped": 0.0}  # fmt: skip
    line = train._progress("finetune", 20, 100, values, 75.0)
    assert line == "finetune 20/100  loss 0.5000  acc 0.250  1,234 img/s  input 7%  left 0:01:15"
    values |= {"feature_std": 0.5, "skipped": 2.0, "images_per_second": 1.25}
    line = train._progress("pretrain", 20, 100, values, math.nan)
    assert line.endswith("acc 0.250  std 0.500  1.25 img/s  input 7%  skipped 2")
    line = train._progress("pretrain", 20, 100, values | {"feature_std": 0.004}, math.nan)
    assert "std 0.004: the features have collapsed" in line


def test_the_time_that_is_left_is_by_the_pace_after_compiling(monkeypatch):
    """A first lap of 100 s, then 2 s a step."""
    now = [0.0]
    monkeypatch.setattr(train, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    clock = train._Clock()
    for step, passed, left in ((1, 100.0, math.nan), (5, 8.0, 190.0), (10, 10.0, 180.0)):
        now[0] += passed
        clock.lap(1)
        assert clock.left(step, 100 - step) == pytest.approx(left, nan_ok=True)


def test_a_resumed_log_forgets_what_was_beyond(tmp_path):
    with Writer(tmp_path, 0) as writer:
        for step in (1, 2, 4, 6):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    with Writer(tmp_path, 4) as writer:
        writer.write(6, {"loss": 60.0})
    assert [(r["step"], r["loss"]) for r in read(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (4, 4.0), (6, 60.0),
    ]  # fmt: skip


def test_a_skipped_step_does_not_hold_the_schedule_up():
    """The rate that is applied is the rate of the run's step, skipped ones included."""
    recipe = train.Recipe(quadratic(), optax.identity(), lambda step: 0.25 * step, None)
    state = train.init_state(recipe, {"w": jnp.zeros(())}, None)
    state, _ = train.train_step(recipe, state, batch(np.nan), jax.random.key(0))
    state, metrics = train.train_step(recipe, state, batch(1.0), jax.random.key(0))
    assert metrics["learning_rate"] == 0.25
    assert state.params["w"] == 0.5


def test_a_batch_in_parts_gives_the_mean_of_their_gradients():
    """Neighbours in different parts, whose keys are folded from the step's and their number."""
    parts = 2
    task, rows = make_task("rotnet", drop_path=0.9), make_batch("rotnet", 8)
    params, key = task.init(jax.random.key(1)), jax.random.key(2)
    tx = optax.trace(decay=0.0)  # keeps the gradient
    recipe = train.Recipe(task, tx, lambda _: 0.0, None, parts)
    state = train.init_state(recipe, params, None)._replace(step=jnp.int32(3))
    state, metrics = train.train_step(recipe, state, rows, key)
    step_key = jax.random.fold_in(key, 3)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params):
        losses = []
        for part in range(parts):
            inner = jax.random.fold_in(step_key, part)
            some = {name: values[part::parts] for name, values in rows.items()}
            x, context, _ = task.prepare(params, None, some, named(inner, "prepare"))
            losses.append(task.loss(params, x, context, named(inner, "loss"))[0].mean())
        return sum(losses) / parts

    loss, gradient = mean_loss(task.init(jax.random.key(1)))
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    chex.assert_trees_all_close(state.opt_state.trace, gradient, rtol=1e-4, atol=1e-7)


def test_without_chance_parts_change_nothing():
    whole, parts = (dataclasses.replace(setup()[0], accumulation=n) for n in (1, 3))
    states = [
        train.train_step(recipe, setup()[1], batch(*range(6)), jax.random.key(0))[0]
        for recipe in (whole, parts)
    ]
    chex.assert_trees_all_close(*states, rtol=1e-6)
