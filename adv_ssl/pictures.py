"""The arrays behind the pictures of a run: figures/*.npz, which the report draws."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from adv_ssl import sharding, stage, tasks
from adv_ssl.checkpoint import State
from adv_ssl.config import AttackConfig, Config, Stage
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.evaluation import scores
from adv_ssl.evaluation.rules import class_words
from adv_ssl.figures import filter_components
from adv_ssl.files import write_arrays
from adv_ssl.keys import named
from adv_ssl.task import PyTree, adversarial

PICTURES = 8  # images in each gallery


def classified(
    config: Config, params: PyTree, weights: str | None, source: Source, figures: pathlib.Path
) -> None:
    """The first images, attacked, with what the classifier says of both: figures/gallery.npz."""
    path = figures / "gallery.npz"
    if _is_of(path, weights):
        return
    attacks = config.evaluate.make_attacks()
    attack = attacks[len(attacks) // 2] if attacks else None
    # The evaluation's own batch size: what it compiled serves here.
    options, size = config.evaluate, config.model.image_size
    images = sharding.rounded_up(min(options.batch_size, len(source.records)))
    batch = next(eval_batches(source, image_size=size, resize=options.resize, batch_size=images))
    first = batch.pop("mask").nonzero()[0][:PICTURES]
    key = named(jax.random.key(config.seed), "evaluate")
    shown: dict[str, Any] = {}
    for kind, search in _kinds(attack).items():
        x, said = scores.attacked(config.model, search, params, sharding.split(batch), key)
        shown[f"{kind}_input"] = np.asarray(x)[first]
        shown[f"{kind}_prediction"] = np.asarray(said)[first]
    write_arrays(
        path,
        **shown,
        weights=str(weights),
        label=batch["label"][first],
        class_names=np.array(class_words(source.class_names)),
        **_options(attack),
    )


def _kinds(attack: AttackConfig | None) -> dict[str, AttackConfig | None]:
    """What is shown of each image."""
    return {"clean": None, "attacked": attack} if attack else {"clean": None}


def _options(attack: AttackConfig | None) -> dict[str, Any]:
    return dataclasses.asdict(attack) if attack else {}


def _is_of(path: pathlib.Path, weights: str | None) -> bool:
    """Whether a picture is there, and of these weights: a stage may have been trained again."""
    try:
        with np.load(path) as picture:  # this entry alone, not the images
            return str(picture["weights"]) == str(weights)
    except Exception:  # not there, or damaged: numpy raises almost anything
        return False


def filters(config: Config, params: PyTree, weights: str | None, figures: pathlib.Path) -> None:
    """The principal components of a stage's patch filters (I21): figures/filters.npz."""
    path = figures / "filters.npz"
    if _is_of(path, weights):
        return
    kernel = np.asarray(params["encoder"]["patch_embed"]["kernel"])
    components, explained = filter_components(kernel, config.model.patch)
    write_arrays(path, components=components, explained=explained, weights=str(weights))


def pretraining(
    config: Config,
    options: Stage,
    state: State,
    weights: str | None,
    source: Source,
    figures: pathlib.Path,
) -> None:
    """What pre-training sees and makes of it, clean and attacked: figures/pretrain_gallery.npz."""
    path = figures / "pretrain_gallery.npz"
    if _is_of(path, weights):
        return
    few = -(-min(PICTURES, options.batch_size) // options.group) * options.group
    batch = next(stage.batches("pictures", config, options, source, 0, 1, few))
    key = named(jax.random.key(config.seed), "pictures")
    nominal = stage.make_task(config, dataclasses.replace(options, attack=None), source.num_classes)
    attack, shown_of = options.attack, tasks.row(options.task)

    @jax.jit
    def draw(*arguments: Any) -> dict[str, jax.Array]:
        drawn: dict[str, jax.Array] = {}
        for kind, search in _kinds(attack).items():
            task = adversarial(nominal, search.make()) if search else nominal
            x, context, _ = task.prepare(*arguments)
            losses, aux = task.loss(arguments[0], x, context, None)
            seen = {"loss": losses} | shown_of.pictures(x, context, aux)
            drawn |= {f"{kind}_{name}": values[:PICTURES] for name, values in seen.items()}
        return drawn

    drawn: dict[str, Any] = draw(state.params, state.ema, batch, key)
    if shown_of.class_names:
        drawn |= {"label": drawn["clean_label"], "class_names": np.array(shown_of.class_names)}
    write_arrays(path, **drawn, **_options(attack), weights=str(weights))
