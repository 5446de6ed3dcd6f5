"""The arrays behind the pictures of a run: figures/*.npz, which the report draws."""

import dataclasses
import io
import pathlib
from typing import Any

import jax
import numpy as np

from adv_ssl import evaluate, stage
from adv_ssl.checkpoint import State
from adv_ssl.config import AttackConfig, Config
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.figures import filter_components
from adv_ssl.files import write_atomically
from adv_ssl.keys import named
from adv_ssl.task import Task, adversarial

PICTURES = 8  # images in each gallery


def classified(
    config: Config,
    task: Task,
    state: State,
    attack: AttackConfig,
    source: Source,
    figures: pathlib.Path,
) -> None:
    """The first images, attacked, with what the classifier says of both: figures/gallery.npz."""
    path = figures / "gallery.npz"
    if path.exists():
        return
    # The evaluation's own batch size: what it compiled serves here.
    options, size = config.evaluate, config.model.image_size
    batch = next(
        eval_batches(source, image_size=size, resize=options.resize, batch_size=options.batch_size)
    )
    first = batch.pop("mask").nonzero()[0][:PICTURES]
    key = named(jax.random.key(config.seed), "evaluate")
    clean, _, said = evaluate.attacked(task, None, state.params, batch, key)
    _, x, said_attacked = evaluate.attacked(task, attack, state.params, batch, key)
    _save_arrays(
        path,
        clean=np.asarray(clean)[first],
        attacked=np.asarray(x)[first],
        label=batch["label"][first],
        clean_prediction=np.asarray(said)[first],
        attacked_prediction=np.asarray(said_attacked)[first],
        class_names=np.array(source.class_names),
        **dataclasses.asdict(attack),
    )


def filters(config: Config, state: State, figures: pathlib.Path) -> None:
    """The principal components of the patch filters (I21): figures/filters.npz."""
    path = figures / "filters.npz"
    if path.exists():
        return
    kernel = np.asarray(state.params["encoder"]["patch_embed"]["kernel"])
    components, explained = filter_components(kernel, config.model.patch)
    _save_arrays(path, components=components, explained=explained)


def attacked_inputs(config: Config, state: State, source: Source, figures: pathlib.Path) -> None:
    """What pre-training sees, clean and attacked: figures/pretrain_gallery.npz."""
    path = figures / "pretrain_gallery.npz"
    attack = config.pretrain.attack
    if attack is None or path.exists():
        return
    few = dataclasses.replace(config.pretrain, batch_size=PICTURES, attack=None)
    batch = next(stage.batches("pictures", config, few, source, 0, 1))
    key = named(jax.random.key(config.seed), "pictures")
    nominal = stage.make_task(config, few, source.num_classes)
    tasks = (nominal, adversarial(nominal, attack.make()))

    @jax.jit
    def inputs(*arguments: Any) -> list[jax.Array]:
        # Of the leaves of x the first stands for all: BYOL's first view.
        return [jax.tree.leaves(task.prepare(*arguments).x)[0] for task in tasks]

    clean, attacked = inputs(state.params, state.ema, batch, key)
    _save_arrays(path, clean=clean, attacked=attacked, **dataclasses.asdict(attack))


def _save_arrays(path: pathlib.Path, **arrays: Any) -> None:
    """Writes an .npz file that is whole or not there."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())
