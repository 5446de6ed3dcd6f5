"""One stage: a task, an attack or none, data, an optimizer, initial weights; and its training."""

import collections
import contextlib
import functools
import logging
import pathlib
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from adv_ssl import hosts, optim, sharding, tasks, train
from adv_ssl.checkpoint import Checkpoints, State, hand_over
from adv_ssl.config import Config, Stage
from adv_ssl.data.loader import train_batches
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.files import write_json
from adv_ssl.keys import named
from adv_ssl.metrics import Writer
from adv_ssl.models.attention import kernel_mesh
from adv_ssl.models.vit import ViT
from adv_ssl.task import Aux, Batch, PyTree, Task, adversarial

MAX_STEPS = 2**31 - 1  # steps are counted in int32
_log = logging.getLogger("adv_ssl")


def total_steps(stage: Stage, images: int) -> int:
    """The length of a stage: its ``steps``, or its epochs with the last, short batch dropped."""
    return (
        round(stage.epochs * (images // stage.batch_size)) if stage.steps is None else stage.steps
    )


def check_size(
    name: str, stage: Stage, images: int, of: str, devices: int, what: str = "devices"
) -> None:
    """UserError where a stage cannot be trained on so many images, which are ``of`` a split."""
    batch = f"config.{name}.batch_size={stage.batch_size}"
    if stage.batch_size > images:
        raise UserError(
            f"{batch} is more than the {images} images of {of}: lower it, or take a larger split."
        )
    if stage.batch_size % stage.unit(devices):
        parts = f" times accumulation={stage.accumulation}" * (stage.accumulation > 1)
        raise UserError(f"{batch}: must be divisible by the {devices} {what}{parts}.")
    steps = total_steps(stage, images)
    if steps > MAX_STEPS:
        raise UserError(
            f"config.{name}: epochs={stage.epochs:g} or steps={stage.steps} of {of} are "
            f"{steps:.3g} steps: {MAX_STEPS} is the most."
        )


def make_task(config: Config, stage: Stage, classes: int) -> Task:
    """The stage's task, attacked or not."""
    encoder = ViT(
        config.model,
        stage.drop_path,
        jnp.dtype(config.dtype),
        stage.learned_positions,
        remat=config.remat,
    )
    task = tasks.make(stage.task, encoder, classes)
    return adversarial(task, stage.attack.make()) if stage.attack else task


def batches(
    name: str,
    config: Config,
    stage: Stage,
    source: Source,
    start: int,
    stop: int,
    few: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of the steps start..stop - 1: of each this host's part.

    ``few``: batches of so many images instead, which no other host has a part of.
    """
    return train_batches(
        source,
        image_size=config.model.image_size,
        views=stage.task.views,
        augment=stage.augment,
        batch_size=stage.batch_size if few is None else few,
        seed=zlib.crc32(f"{name}/{config.seed}".encode()),
        start=start,
        stop=stop,
        host=jax.process_index() if few is None else 0,
        hosts=jax.process_count() if few is None else 1,
    )


def make_recipe(stage: Stage, task: Task, steps: int) -> train.Recipe:
    """What the stage's step needs beside its state."""
    peak = optim.peak_rate(stage.optimizer, stage.batch_size)
    rate = optim.learning_rate(stage.schedule, peak, steps)
    params = jax.eval_shape(task.init, jax.random.key(0))
    tx = optim.make(stage.optimizer, stage.layer_decay, params)
    ema = stage.ema and optim.cosine(stage.ema.decay, stage.ema.final_decay, steps)
    return train.Recipe(task, tx, rate, ema, stage.accumulation)


def random_state(stage: Stage, recipe: train.Recipe, key: jax.Array) -> State:
    """Step 0 of a stage from random weights."""
    init = jax.jit(recipe.task.init)
    params, ema = init(named(key, "params")), None
    if stage.ema is not None:
        ema = init(named(key, "ema" if stage.ema.own_seed else "params"))
    return train.init_state(recipe, params, ema)


Step = Callable[[State, Batch, jax.Array], tuple[State, Aux]]


def make_step(recipe: train.Recipe, shapes: State, fsdp: bool, mesh: Mesh) -> tuple[Step, State]:
    """(``train_step`` on a mesh, where its state is), given the shapes of the state."""
    shardings = sharding.state_shardings(shapes, fsdp, mesh)
    traced_on = kernel_mesh(mesh)

    def on_mesh(state: State, batch: Batch, key: jax.Array) -> tuple[State, Aux]:
        with jax.sharding.use_abstract_mesh(traced_on):
            return train.train_step(recipe, state, batch, key)

    step = jax.jit(
        on_mesh,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    return step, shardings


def result(stage: Stage, state: State) -> PyTree:
    """The parameters that are scored and handed on."""
    return state.ema if stage.averaged else state.params


def _receive_encoder(state: State, pretrained: pathlib.Path, folder: pathlib.Path) -> State:
    """``state`` with the encoder of the stage in ``pretrained``; writes handoff.json."""
    with Checkpoints(pretrained / "checkpoints") as checkpoints:
        given = checkpoints.params()
    params, rows = hand_over(given, state.params)
    if hosts.lead():
        write_json(folder / "handoff.json", [row._asdict() for row in rows])
    counts = collections.Counter(row.status for row in rows)
    _log.info("starts from %s: %s", pretrained, dict(counts))
    if state.ema is not None:  # its encoder too; copies of its own
        state = state._replace(ema=jax.tree.map(jnp.array, hand_over(given, state.ema)[0]))
    return state._replace(params=jax.tree.map(jnp.asarray, params))


def run(
    name: str,
    config: Config,
    stage: Stage,
    source: Source,
    workdir: pathlib.Path,
    pretrained: pathlib.Path | None,
) -> State:
    """The trained state of a stage: restored as far as it was trained, then trained to the end.

    It is without what the optimizer keeps, and in full on every host.
    ``pretrained`` is the folder of the stage whose encoder it starts from; None: random weights.
    """
    folder = workdir / name
    steps = total_steps(stage, len(source.records))
    recipe = make_recipe(stage, make_task(config, stage, source.num_classes), steps)
    key = named(jax.random.key(config.seed), name)
    random = functools.partial(random_state, stage, recipe, key)
    if hosts.lead():
        write_json(folder / "stage.json", {"steps": steps, "classes": source.class_names})
    with Checkpoints(folder / "checkpoints", config.model, stage.averaged) as checkpoints:
        shapes = jax.eval_shape(random)
        step, shardings = make_step(recipe, shapes, config.fsdp, sharding.mesh())
        fresh = checkpoints.latest() is None
        if fresh:
            state = random()
            if pretrained is not None:
                state = _receive_encoder(state, pretrained, folder)
            state = sharding.place(state, shardings)
        else:
            state = checkpoints.restore(sharding.with_shardings(shapes, shardings))
        start = int(state.step)
        if start == steps and not fresh:
            _log.info("%s: its %d steps are done.", name, steps)
            return _fetched(state)
        peak = optim.peak_rate(stage.optimizer, stage.batch_size)
        _log.info(
            "%s: steps %d to %d of %d images on %s, peak learning rate %.3g%s\n%s",
            name, start, steps, stage.batch_size, sharding.described(), peak,
            f" = {stage.optimizer.lr:.3g} * {stage.batch_size}/256" * stage.optimizer.scaled,
            optim.table(stage.optimizer, peak, stage.layer_decay, state.params),
        )  # fmt: skip
        if stage.attack and stage.attack.doubt:
            _log.warning("%s.attack.%s; is that meant?", name, stage.attack.doubt)
        with Writer(folder, start) if hosts.lead() else contextlib.nullcontext() as writer:
            state = train.run(
                name,
                lambda state, batch: step(state, sharding.assembled(batch), key),
                state,
                batches(name, config, stage, source, start, steps),
                steps,
                checkpoints,
                writer,
                config.log_every,
                config.save_every,
            )
        return _fetched(state)


def _fetched(state: State) -> State:
    return sharding.fetched(state._replace(opt_state=()))
