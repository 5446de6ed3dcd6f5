"""Images per second of evaluation, clean and under PGD-10, ours and PyTorch's in turns."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adv_ssl.config import AttackConfig
from adv_ssl.evaluation import scores
from adv_ssl.models.vit import ViT
from benchmarks import steps, timing
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


def _ours(case: Case) -> dict[Any, Callable[[], Any]]:
    config, _ = steps.parsed(case, "nominal")
    task = scores.classifier(ViT(config.model), case.classes)
    params, key = jax.jit(task.init)(jax.random.key(0)), jax.random.key(1)
    batch = steps.batch(case) | {"index": np.arange(case.batch_size, dtype=np.int32)}
    batch = jax.tree.map(jnp.asarray, batch)

    def predict(attack: AttackConfig | None) -> Any:
        return np.asarray(scores.attacked(task, attack, params, batch, key)[2])

    return {
        ("ours", "clean"): functools.partial(predict, None),
        ("ours", "pgd10"): functools.partial(predict, PGD10),
    }
