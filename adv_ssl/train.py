"""The one training loop, and the one step that every task, attack and stage share."""

import contextlib
import dataclasses
import datetime
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adv_ssl import hosts, preemption
from adv_ssl.checkpoint import Checkpoints, State
from adv_ssl.files import write_arrays
from adv_ssl.keys import named
from adv_ssl.metrics import Writer
from adv_ssl.task import Aux, Batch, PyTree, Task

MAX_BAD_STEPS = 10  # in a row; then the run ends
COLLAPSED = 0.01  # of feature_std: all images have nearly one feature
KEPT_BATCHES = 3  # of skipped steps, of each host, in the folder of the stage
_log = logging.getLogger("adv_ssl")


class TrainingError(Exception):
    """The run cannot go on; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the step needs beside its state."""

    task: Task
    tx: optax.GradientTransformation  # gradients -> direction, before the learning rate
    learning_rate: optax.Schedule
    ema_decay: optax.Schedule | None  # None: no moving average
    accumulation: int = 1  # parts of a batch, one after another


def init_state(recipe: Recipe, params: PyTree, ema: PyTree) -> State:
    """Step 0."""

    def zero() -> jax.Array:  # two arrays: the step gives up the memory of both
        return jnp.zeros((), jnp.int32)

    return State(zero(), params, ema, recipe.tx.init(params), zero())


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(recipe: Recipe, state: State, batch: Batch, key: jax.Array) -> tuple[State, Aux]:
    """One update. ``key`` is the run's; the step's keys are folded from it by step and name.

    A step whose loss, gradient or new parameters are not finite changes nothing but the counters.
    """
    key = jax.random.fold_in(key, state.step)
    differentiate = _whole if recipe.accumulation == 1 else _in_parts
    gradient, metrics = differentiate(recipe, state, batch, key)
    direction, opt_state = recipe.tx.update(gradient, state.opt_state, state.params)
    # By the run's own step, which a skipped step moves on too, so that the schedule ends on time.
    rate = recipe.learning_rate(state.step)
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
    ema = state.ema
    if recipe.ema_decay is not None:
        ema = optax.incremental_update(params, ema, 1 - recipe.ema_decay(state.step))

    grad_norm = optax.tree.norm(gradient)
    numbers = jnp.stack([metrics["loss"], grad_norm, optax.tree.norm(params)])
    good = jnp.isfinite(numbers).all()
    new = (params, ema, opt_state)
    old = (state.params, state.ema, state.opt_state)
    params, ema, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    bad_steps = jnp.where(good, 0, state.bad_steps + 1)

    metrics |= {
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "skipped": 1.0 - good,
        "bad_steps": bad_steps,
    }
    return State(state.step + 1, params, ema, opt_state, bad_steps), metrics


def _whole(recipe: Recipe, state: State, batch: Batch, key: jax.Array) -> tuple[PyTree, Aux]:
    """(the gradient of the mean loss, the means of what is logged)."""
    x, context, health = recipe.task.prepare(state.params, state.ema, batch, named(key, "prepare"))

    def objective(params: PyTree) -> tuple[jax.Array, Aux]:
        losses, aux = recipe.task.loss(params, x, context, named(key, "loss"))
        return losses.mean(), aux

    (loss, aux), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    metrics = {name: value.mean() for name, value in aux.items() if value.ndim <= 1}
    metrics |= {f"attack/{name}": value.mean() for name, value in health.items()}
    return gradient, metrics | {"loss": loss}


def _in_parts(recipe: Recipe, state: State, batch: Batch, key: jax.Array) -> tuple[PyTree, Aux]:
    """The same as means over equal parts of the batch, each prepared with a key of its own.

    Neighbours go to different parts, so that every device has rows of each.
    """
    parts = recipe.accumulation
    dealt = jax.tree.map(
        lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0), batch
    )

    def add(total: PyTree, part: tuple[jax.Array, Batch]) -> tuple[PyTree, None]:
        made = _whole(recipe, state, part[1], jax.random.fold_in(key, part[0]))
        return jax.tree.map(jnp.add, total, made), None

    one = jax.tree.map(lambda rows: rows[0], dealt)
    shapes = jax.eval_shape(lambda: _whole(recipe, state, one, key))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), dealt))
    return jax.tree.map(lambda sums: sums / parts, total)


def run(
    name: str,
    step_fn: Callable[[State, Batch], tuple[State, Aux]],
    state: State,
    batches: Iterator[Any],
    steps: int,
    checkpoints: Checkpoints,
    writer: Writer | None,
    log_every: int,
    save_every: int,
) -> State:
    """Trains from ``state`` to ``steps``; saves on the way, at the end and on SIGTERM.

    ``writer``: None on hosts that do not lead.

    Raises:
      Preempted: after SIGTERM, with the state saved.
      TrainingError: too many steps in a row were not finite.
    """
    start = int(state.step)
    window: list[Aux] = []
    before: tuple[Aux, Batch] | None = None
    clock, leave = _Clock(), hosts.Vote()
    for done in range(start + 1, steps + 1):
        try:
            with clock.waiting():
                batch = next(batches)
        except Exception:  # whatever cannot be read, the steps up to here are kept
            if jax.process_count() == 1:  # of several the others are in a step, and save none
                checkpoints.save(state, wait=True)
            raise
        state, metrics = step_fn(state, batch)
        if before:  # one step is in flight, not more: queued batches would pile up in memory
            _keep_if_skipped(checkpoints.folder.parent, done - 1, *before)
        before = metrics, batch
        window.append(metrics)
        if done % log_every == 0 or done in (start + 1, steps):
            images = len(batch["label"]) * jax.process_count()
            values = _summary(window) | clock.lap(len(window) * images)
            window.clear()
            if writer:
                writer.write(done, values)
            _log.info(_progress(name, done, steps, values, clock.left(done - start, steps - done)))
            if values["bad_steps"] >= MAX_BAD_STEPS:
                raise _hopeless(name, done, float(metrics["loss"]), checkpoints)
        if done % save_every == 0:
            checkpoints.save(state)
        if leave(preemption.asked()):
            checkpoints.save(state, wait=True)
            raise preemption.Preempted
    if before:
        _keep_if_skipped(checkpoints.folder.parent, steps, *before)
    checkpoints.save(state, wait=True)
    return state


def _hopeless(name: str, done: int, loss: float, checkpoints: Checkpoints) -> TrainingError:
    folder, kept = checkpoints.folder, checkpoints.latest()
    saved = "nothing was saved" if kept is None else f"in {folder} is step {kept}"
    return TrainingError(
        f"{name}: the last {MAX_BAD_STEPS} steps or more up to step {done} were not finite (loss "
        f"{loss}); {saved}. The batches are in {folder.parent}/skipped_*.npz. Begin another "
        f"--workdir with a lower config.{name}.optimizer.lr, or go on as docs/scale.md says."
    )


def _keep_if_skipped(folder: pathlib.Path, step: int, metrics: Aux, batch: Batch) -> None:
    """Writes the batch of a step that was not finite, for whoever looks for the reason."""
    host = f"_host{jax.process_index()}" * (jax.process_count() > 1)
    if metrics["skipped"] and len(list(folder.glob(f"skipped_*{host}.npz"))) < KEPT_BATCHES:
        write_arrays(folder / f"skipped_{step}{host}.npz", **batch)


class _Clock:
    """Throughput and the share of time spent waiting for input, since the last lap."""

    def __init__(self) -> None:
        self._first = self._lap = time.perf_counter()
        self._warm: tuple[float, int] | None = None  # when, and steps done, after compiling
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def lap(self, images: int) -> dict[str, float]:
        """images/s and the share of waiting since the last lap."""
        now = time.perf_counter()
        seconds = now - self._lap
        values = {"images_per_second": images / seconds, "input_wait": self._waited / seconds}
        self._lap, self._waited = now, 0.0
        return values

    def left(self, done: int, remaining: int) -> float:
        """Seconds left, from the pace since the first lap, which holds the compilation."""
        if self._warm is None:
            self._warm = (self._lap, done)
        since, at = self._warm
        return math.nan if done == at else (self._lap - since) / (done - at) * remaining


def _summary(window: list[Aux]) -> dict[str, float]:
    """Means over the window's finite steps, the last learning rate, and how many were skipped."""
    records = jax.device_get(window)
    finite = [r for r in records if not r["skipped"]] or records
    values = {name: float(np.mean([r[name] for r in finite])) for name in records[0]}
    values |= {name: float(records[-1][name]) for name in ("learning_rate", "bad_steps")}
    values["skipped"] = float(sum(r["skipped"] for r in records))
    return values


def _progress(name: str, done: int, steps: int, values: dict[str, float], left: float) -> str:
    line = f"{name} {done}/{steps}  loss {values['loss']:.4f}"
    for key, label in (("accuracy", "acc"), ("feature_std", "std"), ("attack/gain", "attack gain")):
        if key in values:
            line += f"  {label} {values[key]:.3f}"
    if values.get("feature_std", 1.0) < COLLAPSED:
        line += ": the features have collapsed"
    pace = values["images_per_second"]
    line += f"  {pace:,.{0 if pace >= 10 else 2}f} img/s  input {values['input_wait']:.0%}"
    if values["skipped"]:
        line += f"  skipped {values['skipped']:.0f}"
    return line + ("" if math.isnan(left) else f"  left {datetime.timedelta(seconds=round(left))}")
