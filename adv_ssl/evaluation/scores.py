"""Top-1 accuracy of a classifier, clean and under attack: float32, each image exactly once."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adv_ssl import hosts, sharding
from adv_ssl.config import AttackConfig, Evaluation
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.evaluation.predict import classifier
from adv_ssl.keys import named
from adv_ssl.models.vit import Architecture
from adv_ssl.names import search_name
from adv_ssl.preemption import Preempted, asked
from adv_ssl.robustness.margin_pgd import margin_pgd, per_image
from adv_ssl.task import Batch, PyTree, pixels

SEARCH = {"loss": "margin", "restarts": 1}  # of every attack here


def wilson(correct: int, n: int) -> list[float]:
    """95% interval of a proportion (Wilson's score)."""
    from scipy import stats  # here: it takes seconds to load, and training starts without

    interval = stats.binomtest(correct, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def attacked(
    architecture: Architecture,
    attack: AttackConfig | None,
    params: PyTree,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(images [B, H, W, 3] in [0, 1], attacked, predicted class [B]); drop path is off.

    An image's noise depends on ``key`` and its ``index`` in the set alone, not on the batch.
    """
    if attack is None:
        return _attacked(architecture, None, 0.0, params, batch, key)
    # The radius is an argument of the compiled function: a curve over radii compiles once.
    shape = dataclasses.replace(attack, epsilon=1.0)
    return _attacked(architecture, shape, attack.epsilon, params, batch, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attacked(
    architecture: Architecture,
    attack: AttackConfig | None,
    epsilon: jax.Array,
    params: PyTree,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    logits = functools.partial(classifier(architecture), params)
    x = pixels(batch)
    if attack is not None:
        x = margin_pgd(
            logits, x, batch["label"], per_image(key, batch["index"]),
            attack.norm, epsilon, attack.steps, attack.step_size, attack.start,
        )  # fmt: skip
    return x, logits(x).argmax(-1)


def count_correct(
    architecture: Architecture,
    attack: AttackConfig | None,
    params: PyTree,
    source: Source,
    options: Evaluation,
    key: jax.Array,
) -> tuple[int, int, int, int]:
    """(correct, all, of the commonest class, of the class said most often).

    Over every image of ``source``, each counted once, by all hosts together: each calls this, and
    attacks ``options.batch_size`` of its part at once. Labels are one class an image.

    Raises:
      Preempted: on all hosts, where one was asked to stop.
    """
    correct = total = 0
    stopped = False
    labels, said = (np.zeros(source.num_classes, int) for _ in range(2))
    size = sharding.rounded_up(min(options.batch_size, len(source.records)))
    images, host, count = len(source.records), jax.process_index(), jax.process_count()
    for batch in eval_batches(
        source,
        image_size=architecture.image_size,
        resize=options.resize,
        batch_size=size,
        start=images * host // count,
        stop=images * (host + 1) // count,
    ):
        if stopped := asked():
            break
        mask = batch.pop("mask")
        _, predicted = attacked(architecture, attack, params, sharding.split(batch), key)
        correct += int(((np.asarray(predicted) == batch["label"]) & mask).sum())
        total += int(mask.sum())
        labels += np.bincount(batch["label"][mask], minlength=len(labels))
        said += np.bincount(np.asarray(predicted)[mask], minlength=len(said))
    stops, correct, total, *counts = hosts.total((stopped, correct, total, *labels, *said))
    if stops:
        raise Preempted
    return correct, total, max(counts[: len(labels)]), max(counts[len(labels) :])


def score(
    architecture: Architecture,
    params: PyTree,
    source: Source,
    options: Evaluation,
    attack: AttackConfig | None,
    seed: int,
) -> dict[str, Any]:
    """One record of results.json: top-1 with n and a 95% interval."""
    began = time.perf_counter()
    key = named(jax.random.key(seed), "evaluate")
    correct, n, commonest, said = count_correct(architecture, attack, params, source, options, key)
    return {
        "metric": "top1",
        "value": correct / n,
        "n": n,
        "ci95": wilson(correct, n),
        "commonest": commonest / n,  # the score of whoever always says the commonest class
        "flags": ["the model predicts one class for every image"] if said == n else [],
        "attack": None if attack is None else {**dataclasses.asdict(attack), **SEARCH},
        "precision": "float32",
        "seconds": round(time.perf_counter() - began, 2),
    }


def sentence(record: Mapping[str, Any]) -> str:
    """A record for the log."""
    if record["value"] is None:
        return f"{record['dataset']}: missing: {record['missing']}"
    attack, (low, high) = record["attack"], record["ci95"]
    under = "clean"
    if attack:
        steps = f"-{attack['steps']}" if "steps" in attack else ""
        under = f"{search_name(attack)}{steps} {attack['norm']} {attack['epsilon']:g}"
    stage = f"{record['stage']}: " if record["stage"] else ""
    text = (
        f"{stage}{record['dataset']}, {under}: {record['metric']} {record['value']:.2%} "
        f"[{low:.2%}, {high:.2%}], n={record['n']}, {record['seconds']:.1f} s"
    )
    return "; ".join([text, *record.get("flags", [])])
