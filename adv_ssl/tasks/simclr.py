"""SimCLR: tell the other view of an image from the views of all other images (Chen et al. 2020).

Not of the paper: an addition beyond its four methods.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adv_ssl.data.photometric import Photometric
from adv_ssl.keys import named
from adv_ssl.models.heads import Projector
from adv_ssl.models.vit import ViT, apply, encode, init_encoder
from adv_ssl.ranges import Count, Options, Positive
from adv_ssl.task import Aux, Batch, Prepared, PyTree, Task
from adv_ssl.tasks.views import Views, feature_std, normalise, two_views


@dataclasses.dataclass(frozen=True)
class SimClr(Options):
    """Options of the task."""

    temperature: Positive  # similarities, in [-1, 1], are divided by it
    hidden: Count  # width inside the projector
    output: Count  # width of a projection
    view1: Photometric
    view2: Photometric
    views: ClassVar[int] = 2


def make(options: SimClr, encoder: ViT, classes: int) -> Task:
    """NT-Xent on two views, both of them attacked; there is no target network and no context."""
    del classes
    projector = Projector(options.hidden, options.output, encoder.dtype)

    def init(key: Array) -> PyTree:
        features, encoder_params = init_encoder(encoder, named(key, "encoder"))
        projector_params = projector.init(named(key, "projector"), features)
        return {"encoder": encoder_params, "projector": projector_params["params"]}

    def prepare(params: PyTree, ema: PyTree, batch: Batch, key: Array) -> Prepared:
        del params, ema
        return Prepared(two_views(batch, key, options.view1, options.view2), None)

    def loss(params: PyTree, x: Views, context: None, key: Array | None) -> tuple[Array, Aux]:
        del context

        def project(view: Array, name: str) -> tuple[Array, Array]:
            drop_path = None if key is None else named(key, name)
            features = encode(encoder, params["encoder"], view, drop_path)
            return apply(projector, params["projector"], features), features

        projection1, features = project(x.view1, "view1")
        projection2, _ = project(x.view2, "view2")
        losses = nt_xent(projection1, projection2, options.temperature)
        return losses, {"feature_std": feature_std(features)}

    return Task(init, prepare, loss)


def nt_xent(a: Array, b: Array, temperature: float) -> Array:
    """The normalised, temperature-scaled cross-entropy of each pair: [B, D], [B, D] -> [B].

    Each of the 2B projections has to find its partner among the other 2B - 1, by cosine; an image's
    loss is the mean over its two views. B is the global batch, however many devices it is split
    over.
    """
    z = normalise(jnp.concatenate([a, b]))
    similarities = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, similarities)
    partners = jnp.roll(jnp.arange(len(z)), len(a))
    losses = optax.softmax_cross_entropy_with_integer_labels(others, partners)
    return losses.reshape(2, -1).mean(axis=0)
