"""Images per second of evaluation, clean and under PGD-10, ours and PyTorch's in turns.

And from files to logits, as a suite is scored, with the share of the time spent waiting for images.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adv_ssl.config import AttackConfig
from adv_ssl.data import sources
from adv_ssl.evaluation import predict, scores
from benchmarks import photos, steps, timing
from benchmarks.compare import torch_steps
from benchmarks.steps import Case

PGD10 = AttackConfig("pgd", "l2", 0.5, 10, 5 / 8, "ball")


def both(case: Case, rounds: int) -> dict[str, Any]:
    """Clean and attacked, for the classifier of ``case``."""
    work = _ours(case)
    if torch_steps:
        work |= torch_steps.evaluation(case, PGD10)
    paces = {
        " ".join(name): [case.batch_size / spent.seconds for spent in taken]
        for name, taken in timing.in_turns(work, rounds).items()
    }
    return {"images_per_second": {name: timing.middle(pace) for name, pace in paces.items()}} | {
        f"ours_over_{how}": {
            name: timing.ratio(paces[f"ours {name}"], paces[f"{how} {name}"])
            for name in ("clean", "pgd10")
        }
        for how in ("eager", "compiled")
        if f"{how} clean" in paces
    }


def from_files(case: Case, rounds: int) -> dict[str, Any]:
    """Of JPEGs of 288 x 384 pixels: decoded, resized, cropped, classified."""
    config, _ = steps.parsed(case, "nominal")
    params = steps.random_classifier(config.model, case.classes)
    model = predict.Model(config.model, params, ())
    resize = round(config.model.image_size * 256 / 224)
    with tempfile.TemporaryDirectory() as folder:
        photos.write(pathlib.Path(folder), 8 * case.batch_size)
        _, *taken = [  # the first one compiles; each opens the files anew: a source keeps images
            predict.predict(
                model, sources.load(f"folder:{folder}", "train", ""), "photographs", resize,
                case.batch_size,
            )
            for _ in range(rounds + 1)
        ]  # fmt: skip
    return {
        "images_per_second": timing.middle([len(said.logits) / said.seconds for said in taken]),
        "input_wait": timing.middle([said.input_wait for said in taken]),
    }


def _ours(case: Case) -> dict[Any, Callable[[], Any]]:
    config, _ = steps.parsed(case, "nominal")
    params, key = steps.random_classifier(config.model, case.classes), jax.random.key(1)
    batch = steps.batch(case) | {"index": np.arange(case.batch_size, dtype=np.int32)}
    batch = jax.tree.map(jnp.asarray, batch)

    def predict(attack: AttackConfig | None) -> Any:
        return np.asarray(scores.attacked(config.model, attack, params, batch, key)[1])

    return {
        ("ours", "clean"): functools.partial(predict, None),
        ("ours", "pgd10"): functools.partial(predict, PGD10),
    }
