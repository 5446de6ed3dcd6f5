"""The stages of a run, and what passes from one to the next.

    pretrain -> encoder -> finetune -> evaluate -> report

The same command again goes on where the last one stopped, and when all is done only reports again.
"""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from adv_ssl import evaluate, optim, provenance, report, tasks, train
from adv_ssl.checkpoint import Checkpoints, State, hand_over
from adv_ssl.config import AttackConfig, Config, Stage, parse
from adv_ssl.data import sources
from adv_ssl.data.loader import eval_batches, train_batches
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.figures import filter_components
from adv_ssl.files import write_json
from adv_ssl.keys import named
from adv_ssl.metrics import Writer
from adv_ssl.models.vit import ViT
from adv_ssl.task import PyTree, Task, adversarial

PICTURES = 8  # images in each gallery
_log = logging.getLogger("adv_ssl")


def run(raw: ConfigDict | dict[str, Any], workdir: str | pathlib.Path) -> pathlib.Path:
    """Runs what is not yet done of a configuration; returns the path of report.html.

    Raises:
      UserError: a mistake in the configuration, the data or the workdir, before any training.
      train.Preempted: after SIGTERM, with everything saved.
    """
    plain = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    config, workdir = parse(plain), pathlib.Path(workdir)

    def source(split: str) -> Source:
        return sources.load(config.data.name, split, config.data.dir)

    images = {
        "pretrain": source(config.pretrain.split),
        "finetune": source(config.finetune.split),
        "evaluate": source(config.evaluate.split),
    }
    _claim(workdir, config, plain)
    if config.weights:
        pretrained = pathlib.Path(config.weights)
    else:
        pretrained = workdir / "pretrain"
        state = _train("pretrain", config, config.pretrain, images["pretrain"], workdir, None)
        _draw_pretraining(config, state, images["pretrain"], workdir / "figures")
    if images["finetune"].num_classes == 0:
        _log.info("%s has no labels: done after pre-training.", config.data.name)
        return report.write(workdir)
    state = _train("finetune", config, config.finetune, images["finetune"], workdir, pretrained)
    _evaluate(config, state, images["evaluate"], workdir)
    return report.write(workdir)


def _claim(workdir: pathlib.Path, config: Config, raw: dict[str, Any]) -> None:
    """Makes ``workdir`` this configuration's, or refuses one that is another's."""
    plain = json.loads(json.dumps(raw))
    path = workdir / "config.json"
    if path.exists():
        theirs, ours = (
            _leaves({**c, "sources": {}}) for c in (json.loads(path.read_text()), plain)
        )
        differing = [k for k in theirs | ours if theirs.get(k) != ours.get(k)]
        if differing:
            key = differing[0]
            raise UserError(
                f"{workdir} belongs to another configuration: {key} is {theirs.get(key)!r} there, "
                f"{ours.get(key)!r} here ({len(differing)} keys differ). Choose another --workdir."
            )
    write_json(path, plain)
    provenance.record(workdir / "provenance.json", config.seed)


def _leaves(tree: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """A nested dict by dotted path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}"
        flat |= _leaves(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def total_steps(stage: Stage, images: int) -> int:
    """The length of a stage: its ``steps``, or its epochs with the last, short batch dropped."""
    return (
        round(stage.epochs * (images // stage.batch_size)) if stage.steps is None else stage.steps
    )


def _task(config: Config, stage: Stage, classes: int) -> Task:
    """The stage's task, attacked or not."""
    encoder = ViT(config.model, stage.drop_path, jnp.dtype(config.dtype))
    task = tasks.make(stage.task, encoder, classes)
    return adversarial(task, stage.attack.make()) if stage.attack else task


def _batches(
    name: str, config: Config, stage: Stage, source: Source, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
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


def _init_params(config: Config, stage: Stage, task: Task, key: jax.Array) -> PyTree:
    """Random parameters of a stage's task."""
    views = (stage.task.views,) if stage.task.views > 1 else ()
    size = config.model.image_size
    batch = {"image": jnp.zeros((1, *views, size, size, 3), jnp.uint8)}
    return jax.jit(task.init)(key, batch)


def _random_state(
    config: Config, stage: Stage, task: Task, recipe: train.Recipe, key: jax.Array
) -> State:
    """Step 0 of a stage from random weights."""
    params = _init_params(config, stage, task, named(key, "params"))
    ema = None
    if stage.ema is not None:
        own = _init_params(config, stage, task, named(key, "ema")) if stage.ema.own_seed else params
        ema = jax.tree.map(jnp.copy, own)
    return train.init_state(recipe, params, ema)


def _receive_encoder(
    name: str, state: State, pretrained: pathlib.Path, config: Config, folder: pathlib.Path
) -> State:
    """``state`` with the encoder of the stage in ``pretrained``; writes handoff.json."""
    with Checkpoints(pretrained / "checkpoints") as checkpoints:
        params, rows = hand_over(*checkpoints.params(), state.params, config.model)
    write_json(folder / "handoff.json", [row._asdict() for row in rows])
    counts = collections.Counter(row.status for row in rows)
    _log.info("%s starts from %s: %s", name, pretrained, dict(counts))
    params = jax.tree.map(jnp.asarray, params)
    ema = state.ema if state.ema is None else jax.tree.map(jnp.copy, params)
    return state._replace(params=params, ema=ema)


def _train(
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
    task = _task(config, stage, source.num_classes)
    steps = total_steps(stage, len(source.records))
    peak = stage.optimizer.base_lr * stage.batch_size / 256
    rate = optim.learning_rate(stage.schedule, peak, steps)
    abstract = jax.eval_shape(lambda: _init_params(config, stage, task, jax.random.key(0)))
    recipe = train.Recipe(
        task,
        optim.make(stage.optimizer, rate, stage.layer_decay, abstract),
        rate,
        stage.ema and train.cosine_between(stage.ema.decay, stage.ema.final_decay, steps),
    )
    key = named(jax.random.key(config.seed), name)
    random = functools.partial(_random_state, config, stage, task, recipe, key)
    with Checkpoints(folder / "checkpoints", config.model) as checkpoints:
        fresh = checkpoints.latest() is None
        state = random() if fresh else checkpoints.restore(jax.eval_shape(random))
        if fresh and pretrained is not None:
            state = _receive_encoder(name, state, pretrained, config, folder)
        start = int(state.step)
        if start == steps and not fresh:
            return state
        _log.info(
            "%s: %d steps of %d images from step %d, learning rate %.3g = %.3g * %d/256\n%s",
            name, steps, stage.batch_size, start, peak, stage.optimizer.base_lr, stage.batch_size,
            optim.table(stage.optimizer, peak, stage.layer_decay, abstract),
        )  # fmt: skip
        with Writer(folder, start) as writer:
            return train.run(
                name,
                lambda state, batch: train.train_step(recipe, state, batch, key),
                state,
                _batches(name, config, stage, source, start, steps),
                steps,
                checkpoints,
                writer,
                config.log_every,
                config.save_every,
            )


def _evaluate(config: Config, state: State, source: Source, workdir: pathlib.Path) -> None:
    """Scores the classifier, clean and under each attack that results.json does not have yet."""
    path = workdir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    task = evaluate.classifier(ViT(config.model), source.num_classes)
    score = functools.partial(
        evaluate.score, task, state.params, source, config.evaluate, config.model.image_size
    )
    attacks = config.evaluate.make_attacks()
    for attack in [None, *attacks][len(results) :]:
        record = {
            "suite": "main",
            "dataset": f"{config.data.name} {config.evaluate.split}",
            **score(attack, config.seed),
            "stage": "finetune",
            "step": int(state.step),
            "seed": config.seed,
        }
        results.append(record)
        write_json(path, results)
        _log.info(evaluate.sentence(record))
    if attacks:
        _draw_attack(config, task, state, attacks[len(attacks) // 2], source, workdir / "figures")


def _draw_attack(
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


def _draw_pretraining(config: Config, state: State, source: Source, figures: pathlib.Path) -> None:
    """The patch filters and some attacked views: figures/filters.npz and pretrain_gallery.npz."""
    kernel = np.asarray(state.params["encoder"]["patch_embed"]["kernel"])
    components, explained = filter_components(kernel, config.model.patch)
    _save_arrays(figures / "filters.npz", components=components, explained=explained)
    stage = dataclasses.replace(config.pretrain, batch_size=PICTURES)
    attack = stage.attack
    if attack is None:
        return
    batch = next(_batches("pictures", config, stage, source, 0, 1))
    key = named(jax.random.key(config.seed), "pictures")
    nominal = _task(config, dataclasses.replace(stage, attack=None), source.num_classes)
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
