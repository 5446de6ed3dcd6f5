"""The stages of a run, and what passes from one to the next.

    pretrain -> encoder -> finetune -> evaluate -> report

The same command again goes on where the last one stopped, and when all is done only reports again.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from adv_ssl import checkpoint, hosts, pictures, provenance, report, stage
from adv_ssl.checkpoint import Checkpoints
from adv_ssl.config import Config, Stage, parse
from adv_ssl.data import sources
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.evaluation import scores
from adv_ssl.files import at_last, held, read_json, user_path, write_json
from adv_ssl.task import PyTree

# May change while a run lasts, such as on another machine: they do not change what is computed
FREE = {"fsdp", "remat", "data.dir", "log_every", "save_every", "evaluate.batch_size"}
_log = logging.getLogger("adv_ssl")


def run(raw: ConfigDict | dict[str, Any], workdir: str | pathlib.Path) -> pathlib.Path:
    """Runs what is not yet done of a configuration; returns the path of report.html.

    Raises:
      UserError: a mistake in the configuration, the data or the workdir, before any training.
      preemption.Preempted: after SIGTERM, with everything saved.
    """
    plain = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    config, workdir = parse(plain), user_path(str(workdir))
    stages = config.stages

    with contextlib.ExitStack() as kept:

        def prepare() -> dict[str, Source]:
            sets = _opened(config, stages)
            _check_data(stages, sets)
            if not checkpoint.begun(workdir / next(iter(stages))):  # else it has what it needs
                for key in ("weights", "init_from"):
                    _check_weights(config, key)
            if hosts.lead():
                kept.enter_context(held(workdir))
                _claim(workdir, config, plain, [*sets.values()])
            return sets

        sets = hosts.agreed(prepare)
        with at_last(lambda: hosts.lead() and report.write(workdir)):
            _train(config, stages, sets, workdir)
        return workdir / report.NAME


def _train(
    config: Config,
    stages: Mapping[str, Stage],
    sets: Mapping[str, Source],
    workdir: pathlib.Path,
) -> None:
    """The stages one after another, each with the encoder of the one before; pictures; scores."""
    start = config.weights or config.init_from
    encoder = user_path(start) if start else None
    if config.weights and config.pretrain:
        _log.info("config.pretrain is not used: fine-tuning starts from config.weights.")
    for i, (name, options) in enumerate(stages.items()):
        later = [n for n in list(stages)[i + 1 :] if checkpoint.begun(workdir / n)]
        if later and not checkpoint.begun(workdir / name):
            _log.info("%s: its checkpoints are gone; %s has its own, and goes on.", name, later[0])
            continue
        if name not in sets:
            _log.info("%s has no labels: done after pre-training.", config.data.name)
            break
        source = sets[name]
        state = stage.run(name, config, options, source, workdir, encoder)
        encoder = workdir / name
        params = stage.result(options, state)
        # It reads all of the checkpoint: not where nothing is written
        weights = checkpoint.fingerprint(encoder) if hosts.lead() else None
        if hosts.lead():
            figures = workdir / "figures"
            if i == 0:
                pictures.filters(config, params, weights, figures)
            if name == "pretrain":
                pictures.pretraining(config, options, state, weights, source, figures)
        if options.classifies:  # pre-training too may make a classifier (D14)
            facts = {"stage": name, "step": int(state.step), "weights": weights}
            _evaluate(config, params, facts, sets["evaluate"], workdir)
        del state, params  # the next stage needs the memory


def _opened(config: Config, stages: Mapping[str, Stage]) -> dict[str, Source]:
    """The images of each stage, and those that are scored, under ``evaluate``.

    A later stage whose images have no labels, or, after one without, whose split is not there, is
    left out, and all behind it.
    """
    opened = sources.opened(config.data.name, config.data.dir)
    splits = {name: options.split for name, options in stages.items()}
    sets: dict[str, Source] = {}
    for key, split in {**splits, "evaluate": config.evaluate.split}.items():
        try:
            source = opened(split)
        except sources.NoSplit as error:
            if key in stages and not all(before.num_classes for before in sets.values()):
                break
            raise UserError(f"config.{key}.{error}") from None
        if sets and key in stages and source.num_classes == 0:
            break
        sets[key] = source
    return sets


def _check_data(stages: Mapping[str, Stage], sets: Mapping[str, Source]) -> None:
    """UserError where a stage could not be trained or scored on its data: now, not after days."""
    for name, options in stages.items():
        if name not in sets:
            continue
        source, classifies = sets[name], options.classifies
        what = source.records.what
        stage.check_size(name, options, len(source.records), what, jax.device_count())
        if classifies and source.num_classes == 0:
            raise UserError(
                f"config.{name}.task.name='supervised' needs labels, {what} has "
                "none: take a split with labels, put the images into one folder for each class, or "
                "take another method."
            )
        if classifies and source.num_classes == 1:
            raise UserError(
                f"{what} has one class, {source.class_names[0]}: to tell classes apart takes two "
                "folders or more; images without classes belong into the folder itself."
            )
        if "evaluate" not in sets:
            continue
        test_set = sets["evaluate"]
        if classifies and source.num_classes != test_set.num_classes:
            raise UserError(
                f"{what} has {source.num_classes} classes and "
                f"{test_set.records.what}, of config.evaluate.split, {test_set.num_classes}: "
                "both need the same."
            )
        if shared := source.shared(test_set):
            _log.warning(
                "%s is trained on %d of the %d images that are scored: its scores say nothing "
                "about new images. Let config.%s.split and config.evaluate.split share none.",
                name, shared, len(test_set.records), name,
            )  # fmt: skip


def _check_weights(config: Config, key: str) -> None:
    """UserError where the folder of that key has no checkpoint of this architecture."""
    given = getattr(config, key)
    if not given:
        return
    folder = user_path(given)
    if not checkpoint.begun(folder):
        hint = checkpoint.stage_meant(folder, "pretrain")
        if folder.is_file():
            hint = f"python -m adv_ssl.weights import {folder} --workdir=NEW makes one of a file."
        raise UserError(f"config.{key}={given!r}: no checkpoint in it; {hint}")
    if place := checkpoint.in_part(folder):
        raise UserError(
            f"config.{key}={given!r} is only partly trained, {place}: start its own command again. "
            f"To take it as it is: python -m adv_ssl.weights export {given} FILE.npz, and import "
            "that."
        )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.check(config.model)


def _claim(
    workdir: pathlib.Path, config: Config, raw: dict[str, Any], sets: Sequence[Source]
) -> None:
    """Makes ``workdir`` this configuration's and data's, or refuses one that is another's."""
    plain = json.loads(json.dumps(raw))
    path = workdir / "config.json"
    if (workdir / "evaluation.json").exists() and not path.exists():
        raise UserError(
            f"--workdir={workdir} holds the scores of an evaluation: choose another --workdir."
        )
    if not path.exists() and any(checkpoint.begun(workdir / name) for name in config.stages):
        raise UserError(
            f"{path} is gone, and the checkpoints beside it may be of another configuration: put "
            "it back (that command with a new --workdir writes one), or choose another --workdir."
        )
    _scored(workdir)
    if path.exists():
        theirs, ours = (
            flatten_dict({**c, "sources": {}}, sep=".") for c in (read_json(path, dict), plain)
        )
        later = {k for k in ours if k not in theirs and not ours[k]}  # keys that came since, unset
        same = {k for k in theirs | ours if theirs.get(k) == ours.get(k)}
        differing = [k for k in theirs | ours if k not in same | later | FREE]
        if differing:
            key = min(differing, key=lambda k: not k.endswith(".name"))  # that says most
            rest = f" and {len(differing) - 1} more keys differ" if differing[1:] else ""
            raise UserError(
                f"{workdir} belongs to another configuration: config.{key} is "
                f"{theirs.get(key)!r} there, {ours.get(key)!r} here{rest}. Choose another "
                "--workdir."
            )
    write_json(path, plain)
    data = {source.records.what: _fingerprint(source) for source in sets}
    provenance.record(workdir / "provenance.json", config.seed, data)


def _fingerprint(source: Source) -> str:
    """What a split holds, in words: enough to notice that it is not the same any more."""
    names = "\n".join(source.class_names).encode()
    return (
        f"{len(source.records)} images of {source.num_classes} classes "
        f"(names {hashlib.sha256(names).hexdigest()[:8]})"
    )


def _scored(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of results.json. UserError: it is damaged."""
    path = workdir / "results.json"
    return read_json(path, list, stage=str) if path.exists() else []


def _evaluate(
    config: Config, params: PyTree, facts: Mapping[str, Any], source: Source, workdir: pathlib.Path
) -> None:
    """Scores a stage, clean and under each attack that results.json does not have yet.

    ``facts`` are what the records say of the stage: its name, step and weights.
    """
    name = facts["stage"]
    results: list[dict[str, Any]] = []
    if hosts.lead():  # alone: others may not see yet what it wrote
        results = [
            record
            for record in _scored(workdir)
            if record["stage"] != name or record.get("weights") == facts["weights"]  # trained again
        ]
    few = source.first(config.evaluate.attacked)
    (done,) = hosts.total((sum(record["stage"] == name for record in results),))
    for attack in [None, *config.evaluate.make_attacks()][done:]:
        images = few if attack else source
        record = {
            "suite": "main",
            "dataset": f"{config.data.name} {config.evaluate.split}",
            **scores.score(config.model, params, images, config.evaluate, attack, config.seed),
            **facts,
            "seed": config.seed,
        }
        if hosts.lead():
            results.append(record)
            write_json(workdir / "results.json", results)
            _log.info(scores.sentence(record))
    if name == "finetune" and hosts.lead():
        figures = workdir / "figures"
        pictures.classified(config, params, facts["weights"], source, figures)
