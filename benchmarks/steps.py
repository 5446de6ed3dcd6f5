"""Our training steps, ready to be timed: what `adv_ssl.main` runs, on a batch that is there."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adv_ssl import recipes, stage, train
from adv_ssl.config import Config, Stage, parse
from adv_ssl.data.photometric import Photometric
from adv_ssl.estimate import program
from adv_ssl.estimate.program import Run
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.task import PyTree
from adv_ssl.tasks import supervised
from adv_ssl.tasks.byol import Byol

THREATS = ("nominal", "l2")
STEPS = 1000  # of the run that the step is taken of: for its schedules


@dataclasses.dataclass(frozen=True)
class Case:
    """A method at a scale."""

    method: str
    scale: str  # cifar10: a ViT of width 128 and 4 blocks; imagenet: ViT-B/16
    dtype: str = "float32"

    @property
    def batch_size(self) -> int:
        """Images."""
        return 8 if self.scale == "imagenet" else 64

    @property
    def classes(self) -> int:
        """Of the labels."""
        return 1000 if self.scale == "imagenet" else 10


def random_classifier(architecture: Architecture, classes: int) -> PyTree:
    """Parameters of an encoder and a head."""
    options = supervised.Supervised(0.0, 0.0, None, None)
    task = supervised.make(options, ViT(architecture), classes)
    return jax.jit(task.init)(jax.random.key(0))


def parsed(case: Case, threat: str) -> tuple[Config, Stage]:
    """Its recipe, for the batch of the benchmark.

    BYOL's colours, which are not of the network, are left out: here and in PyTorch.
    """
    raw = recipes.recipe(case.method, threat, case.scale)
    raw.dtype = case.dtype
    raw.pretrain.batch_size = case.batch_size
    raw.pretrain.steps = STEPS
    if case.method == "supervised":
        raw.pretrain.task.mixing.group = case.batch_size
    config = parse(raw.to_dict())
    assert config.pretrain
    if not isinstance(config.pretrain.task, Byol):
        return config, config.pretrain
    pale = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)
    task = dataclasses.replace(config.pretrain.task, view1=pale, view2=pale)
    return config, dataclasses.replace(config.pretrain, task=task)


def batch(case: Case) -> dict[str, np.ndarray]:
    """Noise, in the shapes of the loader."""
    config, options = parsed(case, "nominal")
    rng, side, views = np.random.default_rng(0), config.model.image_size, options.task.views
    shape = (case.batch_size, *([views] if views > 1 else []), side, side, 3)
    labels = rng.integers(0, case.classes, case.batch_size, np.int32)
    return {"image": rng.integers(0, 256, shape, np.uint8), "label": labels}


def _on_device(case: Case) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, batch(case))


def run(case: Case, threat: str) -> Run:
    """The stage whose step is timed."""
    return Run(*parsed(case, threat), images=0, classes=case.classes)


def _random_state(case: Case) -> PyTree:
    made = run(case, "nominal")
    return stage.random_state(made.stage, program.recipe(made), jax.random.key(0))


def prepared(case: Case) -> dict[str, Callable[[], float]]:
    """By threat, a function that runs a step and returns its loss; both train the same weights."""
    key, images = jax.random.key(0), _on_device(case)
    state = [_random_state(case)]

    def step(recipe: train.Recipe) -> float:
        state[0], metrics = train.train_step(recipe, state[0], images, key)
        jax.block_until_ready(state[0])
        return float(metrics["loss"])

    recipes = {threat: program.recipe(run(case, threat)) for threat in THREATS}
    return {threat: functools.partial(step, recipe) for threat, recipe in recipes.items()}


def once(case: Case) -> tuple[PyTree, PyTree, Any, np.ndarray]:
    """(parameters, x, context, losses [B]) of one nominal batch, without drop path."""
    made = program.recipe(run(case, "nominal")).task
    state = _random_state(case)
    x, context, _ = made.prepare(state.params, state.ema, _on_device(case), jax.random.key(1))
    losses, _ = jax.jit(made.loss)(state.params, x, context, None)
    return state.params, x, context, np.asarray(losses)
