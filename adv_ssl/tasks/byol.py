"""BYOL: predict what an average of one's own past says of another view of the image (paper B.2)."""

import dataclasses
from typing import ClassVar

import jax
from jax import Array

from adv_ssl.data.photometric import Photometric
from adv_ssl.keys import named
from adv_ssl.models.heads import Projector
from adv_ssl.models.vit import ViT, apply, encode, init_encoder
from adv_ssl.ranges import Count, Options
from adv_ssl.task import Aux, Batch, Prepared, PyTree, Task
from adv_ssl.tasks.views import Views, cosine, feature_std, two_views


@dataclasses.dataclass(frozen=True)
class Byol(Options):
    """Options of the task."""

    hidden: Count  # width inside projector and predictor
    output: Count  # width of a projection
    view1: Photometric
    view2: Photometric
    views: ClassVar[int] = 2


def make(options: Byol, encoder: ViT, classes: int) -> Task:
    """Symmetric BYOL: each view is attacked by itself; the targets are of clean views (A21)."""
    del classes
    projector = Projector(options.hidden, options.output, encoder.dtype)
    predictor = Projector(options.hidden, options.output, encoder.dtype)

    def init(key: Array) -> PyTree:
        features, encoder_params = init_encoder(encoder, named(key, "encoder"))
        projection, projector_params = projector.init_with_output(named(key, "projector"), features)
        predictor_params = predictor.init(named(key, "predictor"), projection)
        return {
            "encoder": encoder_params,
            "projector": projector_params["params"],
            "predictor": predictor_params["params"],
        }

    def project(params: PyTree, images: Array, key: Array | None) -> tuple[Array, Array]:
        features = encode(encoder, params["encoder"], images, key)
        return apply(projector, params["projector"], features), features

    def prepare(params: PyTree, ema: PyTree, batch: Batch, key: Array) -> Prepared:
        del params
        views = two_views(batch, key, options.view1, options.view2)
        targets = Views(*(project(ema, view, None)[0] for view in views))
        return Prepared(*jax.lax.stop_gradient((views, targets)))

    def loss(params: PyTree, x: Views, context: Views, key: Array | None) -> tuple[Array, Aux]:
        def one_way(view: Array, target: Array, name: str) -> tuple[Array, Array]:
            drop_path = None if key is None else named(key, name)
            projection, features = project(params, view, drop_path)
            prediction = apply(predictor, params["predictor"], projection)
            return 2 - 2 * cosine(prediction, target), features  # A22

        losses1, features = one_way(x.view1, context.view2, "view1")
        losses2, _ = one_way(x.view2, context.view1, "view2")
        return losses1 + losses2, {"feature_std": feature_std(features)}

    return Task(init, prepare, loss)
