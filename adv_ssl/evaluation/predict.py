"""A trained classifier, and what it says of every image of a set."""

import functools
import logging
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adv_ssl import sharding
from adv_ssl.checkpoint import Checkpoints, begun, in_part, stage_meant
from adv_ssl.data.loader import eval_batches
from adv_ssl.data.sources import Source
from adv_ssl.errors import UserError
from adv_ssl.files import read_json
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.preemption import stop_if_asked
from adv_ssl.task import PyTree
from adv_ssl.tasks.classifier import classify

LOG_SECONDS = 10.0
IN_PART = "trained in part"  # how the flag begins of scores of a stage that is not at its end
_log = logging.getLogger("adv_ssl")


class Model(NamedTuple):
    """A trained classifier."""

    architecture: Architecture
    params: PyTree  # encoder and head, on every device
    class_names: tuple[str, ...]  # () where they are not known
    flags: tuple[str, ...] = ()  # what is to be known about every score of it
    stage: str | None = None  # of the run that it is of; None: foreign weights
    step: int | None = None

    @property
    def classes(self) -> int:
        """How many it tells apart."""
        return int(self.params["head"]["kernel"].shape[-1])


def load(folder: pathlib.Path) -> Model:
    """The classifier in the folder of a stage.

    Raises:
      UserError: no whole checkpoint there, or none of a classifier.
    """
    if not begun(folder):
        raise UserError(f"{folder}: no checkpoint in it; {stage_meant(folder)}")
    place = in_part(folder)  # before it is read: it may be trained meanwhile
    with Checkpoints(folder / "checkpoints") as checkpoints:
        params, architecture = checkpoints.params(), checkpoints.architecture()
        step = checkpoints.latest()
    if "head" not in params or "fc_norm" not in params["encoder"]:
        raise UserError(
            f"{folder} holds no classifier, but {', '.join(params)}: score the folder of a stage "
            "that was trained on labels."
        )
    facts = folder / "stage.json"
    flags = (f"{IN_PART}: {place}",) if place else ()
    params = sharding.replicate(params)
    if not facts.exists():
        return Model(architecture, params, (), flags)
    class_names = tuple(read_json(facts, dict, classes=list)["classes"])
    return Model(architecture, params, class_names, flags, folder.name, step)


@functools.cache
def classifier(architecture: Architecture) -> Callable[[PyTree, Array], Array]:
    """(params, x [B, H, W, 3] in [0, 1]) -> logits [B, C]; all in float32, drop path is off."""

    def logits(params: PyTree, x: Array) -> Array:
        with jax.default_matmul_precision("float32"):
            return classify(ViT(architecture), params, x, None)

    return logits


class Predictions(NamedTuple):
    """What a classifier says of N images."""

    logits: np.ndarray  # float32 [N, C]
    labels: np.ndarray  # [N, ...], as the set has them
    seconds: float
    input_wait: float  # share of the time spent waiting for images


def predict(model: Model, source: Source, what: str, resize: int, batch_size: int) -> Predictions:
    """Logits of every image of ``source``, each exactly once, whatever the batch.

    Args:
      model: the classifier.
      source: the images.
      what: their name, for the log.
      resize: short side before the central crop, pixels; 0: stretched to the model's size.
      batch_size: images at once, over all devices.
    """
    batches = eval_batches(
        source,
        image_size=model.architecture.image_size,
        resize=resize,
        batch_size=sharding.rounded_up(min(batch_size, len(source.records))),
    )
    logits, labels = [], []
    began = logged = time.perf_counter()
    waited, seen, count = 0.0, 0, len(source.records)
    while seen < count:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        stop_if_asked()
        mask = batch["mask"]
        batch_logits = _logits(model.architecture, model.params, sharding.split(batch["image"]))
        logits.append(np.asarray(batch_logits)[mask])
        labels.append(batch["label"][mask])
        seen += int(mask.sum())
        now = time.perf_counter()
        if now - logged > LOG_SECONDS:
            pace, share = seen / (now - began), waited / (now - began)
            _log.info(
                "%s: %d of %d, %.0f images/s, input %.0f%%", what, seen, count, pace, 100 * share
            )
            logged = now
    seconds = time.perf_counter() - began
    return Predictions(np.concatenate(logits), np.concatenate(labels), seconds, waited / seconds)


def decisions(model: Model, images: np.ndarray, batch_size: int) -> np.ndarray:
    """The class of each image: float32 [N, S, S, 3] in [0, 1] -> int [N]."""
    size = sharding.rounded_up(batch_size)
    predicted = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        filled = np.pad(batch, [(0, size - len(batch)), *[(0, 0)] * 3], mode="edge")
        logits = _logits(model.architecture, model.params, sharding.split(filled))
        predicted.append(np.asarray(logits).argmax(-1)[: len(batch)])
    return np.concatenate(predicted)


@functools.partial(jax.jit, static_argnums=0)
def _logits(architecture: Architecture, params: PyTree, images: Array) -> Array:
    """``images`` are uint8, or float32 in [0, 1]."""
    x = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
    return classifier(architecture)(params, x)
