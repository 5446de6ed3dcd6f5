"""The arrays behind the pictures of a run: figures/*.npz, which the report draws."""

import dataclasses
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
    batch = next(
        eval_batches(
            source,
            image_size=config.model.image_size,
            resize=config.evaluate.resize,
            batch_size=PICTURES,
        )
    )
    mask = batch.pop("mask")
    key = named(jax.random.key(config.seed), "evaluate")
    clean, _, said = evaluate.attacked(task, None, state.params, batch, key)
    _, x, said_attacked = evaluate.attacked(task, attack, state.params, batch, key)
    _save_arrays(
        figures / "gallery.npz",
        clean=np.asarray(clean)[mask],
        attacked=np.asarray(x)[mask],
        label=batch["label"][mask],
        clean_prediction=np.asarray(said)[mask],
        attacked_prediction=np.asarray(said_attacked)[mask],
        class_names=np.array(source.class_names),
        **dataclasses.asdict(attack),
    )


def pretraining(config: Config, state: State, source: Source, figures: pathlib.Path) -> None:
    """The patch filters and some attacked views: figures/filters.npz and pretrain_gallery.npz."""
    kernel = np.asarray(state.params["encoder"]["patch_embed"]["kernel"])
    components, explained = filter_components(kernel, config.model.patch)
    _save_arrays(figures / "filters.npz", components=components, explained=explained)
    few = dataclasses.replace(config.pretrain, batch_size=PICTURES)
    attack = few.attack
    if attack is None:
        return
    batch = next(stage.batches("pictures", config, few, source, 0, 1))
    key = named(jax.random.key(config.seed), "pictures")
    nominal = stage.make_task(config, dataclasses.replace(few, attack=None), source.num_classes)
    attacked = adversarial(nominal, attack.make())

    @jax.jit
    def views(*arguments: Any) -> list[jax.Array]:
        inputs = [task.prepare(*arguments).x for task in (nominal, attacked)]
        return [jax.tree.leaves(x)[0] for x in inputs]  # the first view stands for both

    clean, perturbed = views(state.params, state.ema, batch, key)
    _save_arrays(
        figures / "pretrain_gallery.npz",
        clean=clean,
        attacked=perturbed,
        **dataclasses.asdict(attack),
    )


def _save_arrays(path: pathlib.Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
