"""One stage: a task, an attack or none, data, an optimizer, initial weights; and its training."""

import collections
import functools
import logging
import pathlib
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from adv_ssl import optim, tasks, train
from adv_ssl.checkpoint import Checkpoints, State, hand_over
from adv_ssl.config import Config, Stage
from adv_ssl.data.loader import train_batches
from adv_ssl.data.sources import Source
from adv_ssl.files import write_json
from adv_ssl.keys import named
from adv_ssl.metrics import Writer
from adv_ssl.models.vit import ViT
from adv_ssl.task import PyTree, Task, adversarial

_log = logging.getLogger("adv_ssl")


def total_steps(stage: Stage, images: int) -> int:
    """The length of a stage: its ``steps``, or its epochs with the last, short batch dropped."""
    return (
        round(stage.epochs * (images // stage.batch_size)) if stage.steps is None else stage.steps
    )


def make_task(config: Config, stage: Stage, classes: int) -> Task:
    """The stage's task, attacked or not."""
    encoder = ViT(config.model, stage.drop_path, jnp.dtype(config.dtype))
    task = tasks.make(stage.task, encoder, classes)
    return adversarial(task, stage.attack.make()) if stage.attack else task


def batches(
    name: str, config: Config, stage: Stage, source: Source, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of the steps start..stop - 1."""
    return train_batches(
        source,
        image_size=config.model.image_size,
        views=stage.task.views,
        min_area=stage.crop.min_area,
        antialias=stage.crop.antialias,
        flip=stage.crop.flip,
        batch_size=stage.batch_size,
        seed=zlib.crc32(f"{name}/{config.seed}".encode()),
        start=start,
        stop=stop,
    )


def init_params(config: Config, stage: Stage, task: Task, key: jax.Array) -> PyTree:
    """Random parameters of a stage's task."""
    views = (stage.task.views,) if stage.task.views > 1 else ()
    size = config.model.image_size
    batch = {"image": jnp.zeros((1, *views, size, size, 3), jnp.uint8)}
    return jax.jit(task.init)(key, batch)


def peak_rate(stage: Stage) -> float:
    """The highest learning rate: scaled here, once, and nowhere else."""
    return stage.optimizer.base_lr * stage.batch_size / 256


def make_recipe(config: Config, stage: Stage, task: Task, steps: int) -> train.Recipe:
    """What the stage's step needs beside its state."""
    rate = optim.learning_rate(stage.schedule, peak_rate(stage), steps)
    params = jax.eval_shape(lambda: init_params(config, stage, task, jax.random.key(0)))
    tx = optim.make(stage.optimizer, stage.layer_decay, params)
    ema = stage.ema and train.cosine_between(stage.ema.decay, stage.ema.final_decay, steps)
    return train.Recipe(task, tx, rate, ema)


def random_state(config: Config, stage: Stage, recipe: train.Recipe, key: jax.Array) -> State:
    """Step 0 of a stage from random weights."""
    params = init_params(config, stage, recipe.task, named(key, "params"))
    ema = None
    if stage.ema is not None:
        own = stage.ema.own_seed
        ema = init_params(config, stage, recipe.task, named(key, "ema" if own else "params"))
    return train.init_state(recipe, params, ema)


def _receive_encoder(
    state: State, pretrained: pathlib.Path, config: Config, folder: pathlib.Path
) -> State:
    """``state`` with the encoder of the stage in ``pretrained``; writes handoff.json."""
    with Checkpoints(pretrained / "checkpoints") as checkpoints:
        params, rows = hand_over(*checkpoints.params(), state.params, config.model)
    write_json(folder / "handoff.json", [row._asdict() for row in rows])
    counts = collections.Counter(row.status for row in rows)
    _log.info("starts from %s: %s", pretrained, dict(counts))
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

    ``pretrained`` is the folder of the stage whose encoder it starts from; None: random weights.
    """
    folder = workdir / name
    steps = total_steps(stage, len(source.records))
    recipe = make_recipe(config, stage, make_task(config, stage, source.num_classes), steps)
    key = named(jax.random.key(config.seed), name)
    random = functools.partial(random_state, config, stage, recipe, key)
    with Checkpoints(folder / "checkpoints", config.model) as checkpoints:
        fresh = checkpoints.latest() is None
        state = random() if fresh else checkpoints.restore(jax.eval_shape(random))
        if fresh and pretrained is not None:
            state = _receive_encoder(state, pretrained, config, folder)
        start = int(state.step)
        if start == steps and not fresh:
            return state
        peak = peak_rate(stage)
        _log.info(
            "%s: steps %d to %d of %d images, learning rate %.3g = %.3g * %d/256\n%s",
            name, start, steps, stage.batch_size, peak, stage.optimizer.base_lr, stage.batch_size,
            optim.table(stage.optimizer, peak, stage.layer_decay, state.params),
        )  # fmt: skip
        with Writer(folder, start) as writer:
            return train.run(
                name,
                lambda state, batch: train.train_step(recipe, state, batch, key),
                state,
                batches(name, config, stage, source, start, steps),
                steps,
                checkpoints,
                writer,
                config.log_every,
                config.save_every,
            )
