"""The stages of a run, and what passes from one to the next.

    pretrain -> encoder -> finetune -> evaluate -> report

The same command again goes on where the last one stopped, and when all is done only reports again.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from adv_ssl import evaluate, pictures, provenance, report, stage
from adv_ssl.checkpoint import State
from adv_ssl.config import Config, parse
from adv_ssl.data import sources
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.files import write_json
from adv_ssl.models.vit import ViT

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
        state = stage.run("pretrain", config, config.pretrain, images["pretrain"], workdir, None)
        pictures.filters(config, state, workdir / "figures")
        pictures.attacked_inputs(config, state, images["pretrain"], workdir / "figures")
    if images["finetune"].num_classes == 0:
        _log.info("%s has no labels: done after pre-training.", config.data.name)
        return report.write(workdir)
    state = stage.run("finetune", config, config.finetune, images["finetune"], workdir, pretrained)
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


def _evaluate(config: Config, state: State, source: Source, workdir: pathlib.Path) -> None:
    """Scores the classifier, clean and under each attack that results.json does not have yet."""
    path = workdir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    task = evaluate.classifier(ViT(config.model), source.num_classes)
    few = source.first(config.evaluate.attacked)
    attacks = config.evaluate.make_attacks()
    for attack in [None, *attacks][len(results) :]:
        record = {
            "suite": "main",
            "dataset": f"{config.data.name} {config.evaluate.split}",
            **evaluate.score(
                task,
                state.params,
                few if attack else source,
                config.evaluate,
                config.model.image_size,
                attack,
                config.seed,
            ),
            "stage": "finetune",
            "step": int(state.step),
            "seed": config.seed,
        }
        results.append(record)
        write_json(path, results)
        _log.info(evaluate.sentence(record))
    if attacks:
        middle = attacks[len(attacks) // 2]
        pictures.classified(config, task, state, middle, source, workdir / "figures")
