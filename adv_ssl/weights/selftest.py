"""Outputs for a seeded input that travel with the weights: whoever opens them sees the same."""

from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.models.vit import Architecture, ViT, encode

TOLERANCE = 1e-4  # of the largest value: other machines sum in another order
_IMAGES, _VALUES = 2, 16  # of each image


def outputs(architecture: Architecture, params: Mapping[str, np.ndarray]) -> list[float]:
    """The first logits, or features where there is no classifier, of two images of noise."""
    tree = unflatten_dict(dict(params), sep="/")
    encoder, head = {"cls_token": np.zeros((1, 1, architecture.width))} | tree["encoder"], None
    pooled = "fc_norm" in encoder
    if pooled:
        head = tree.get("head")
    vit = ViT(architecture, learned_positions="pos_embed" in encoder, pooled=pooled)

    @jax.jit
    def run(encoder: dict[str, Array], images: Array) -> Array:
        features = encode(vit, encoder, images, None)
        return features if pooled else features.mean(axis=1)

    size = architecture.image_size
    images = np.random.default_rng(0).random((_IMAGES, size, size, 3), np.float32)
    with jax.default_matmul_precision("float32"):
        values = np.asarray(run(encoder, images))
    if head is not None:
        values = values @ head["kernel"] + head["bias"]
    return [float(value) for value in values[:, :_VALUES].ravel()]


def check(architecture: Architecture, params: Mapping[str, np.ndarray], stored: object) -> str:
    """What the report says of the self-test. UserError: the outputs are not the ``stored`` ones."""
    made = np.array(outputs(architecture, params))
    try:
        there = np.array(stored, dtype=float)
    except (TypeError, ValueError):
        raise UserError("self-test: its outputs are damaged: export the weights again.") from None
    if there.shape != made.shape:
        raise UserError(f"self-test: {there.size} outputs are stored, there are {made.size} here.")
    difference = float(np.abs(made - there).max() / max(np.abs(there).max(), 1e-12))
    if not difference <= TOLERANCE:
        raise UserError(
            f"self-test: outputs differ from the stored ones by {difference:.1e} of the largest, "
            f"{TOLERANCE:g} is accepted: the weights were changed; export them again."
        )
    return f"passed: outputs agree with the stored ones within {difference:.0e}"
