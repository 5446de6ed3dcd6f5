"""The step that training runs, as shapes alone: to be counted, compiled or timed."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from adv_ssl import sharding, train
from adv_ssl import stage as stages
from adv_ssl.config import Config, Stage
from adv_ssl.data import sources
from adv_ssl.data.catalogue import FACTS
from adv_ssl.estimate.flops import matmul_flops
from adv_ssl.evaluation.suites import builder
from adv_ssl.task import PyTree

STAGES = ("pretrain", "finetune")


class Run(NamedTuple):
    """One stage of a run, and its data."""

    config: Config
    stage: Stage
    images: int  # of its split
    classes: int

    @property
    def steps(self) -> int:
        """Its length."""
        return stages.total_steps(self.stage, self.images)


class Program(NamedTuple):
    """A step on a mesh, and the shapes and places of what it takes."""

    step: Any  # jitted: (state, batch, key) -> (state, metrics)
    arguments: tuple[PyTree, PyTree, PyTree]


def runs(config: Config) -> dict[str, Run]:
    """The stages that a configuration trains, by name.

    Raises:
      UserError: the data set is neither one of ``FACTS`` nor at hand.
    """
    made = {}
    for name, stage in config.stages.items():
        images, classes = _size(config, stage)
        if classes or not stage.classifies:
            made[name] = Run(config, stage, images, classes)
    return made


def make(run: Run, mesh: Mesh) -> Program:
    """The program of a stage's step on a mesh, whose devices need not be here."""
    made = recipe(run)
    state, batch, key = shapes(made, run)
    step, where = stages.make_step(made, state, run.config.fsdp, mesh)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    places = where, jax.tree.map(lambda _: split, batch), whole
    return Program(step, sharding.with_shardings((state, batch, key), places))


def flops(run: Run) -> int:
    """FLOPs of the matrix products of one step."""
    made = recipe(run)
    step = functools.partial(train.train_step, made)
    return matmul_flops(jax.make_jaxpr(step)(*shapes(made, run)).jaxpr)


def recipe(run: Run) -> train.Recipe:
    """What the stage's step needs beside its state."""
    task = stages.make_task(run.config, run.stage, run.classes)
    return stages.make_recipe(run.stage, task, run.steps)


def _size(config: Config, stage: Stage) -> tuple[int, int]:
    """(images, classes) of a stage's split."""
    name = builder(config.data.name)
    known = FACTS.get(name)
    if known and known.train and stage.split.startswith("train"):  # an estimate needs no image
        splits = {split: [images] for split, images in known.train.items()}
        parts = sources.select(name, stage.split, splits)
        return sum(len(part) for _, part in parts), known.classes
    source = sources.load(config.data.name, stage.split, config.data.dir)
    return len(source.records), source.num_classes


def shapes(made: train.Recipe, run: Run) -> tuple[PyTree, PyTree, PyTree]:
    """The shapes of a step's state, batch and key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(stages.random_state, run.stage, made), key)
    size, side, views = run.stage.batch_size, run.config.model.image_size, run.stage.task.views
    batch = {
        "image": jax.ShapeDtypeStruct((size, *[views] * (views > 1), side, side, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }
    return state, batch, key
