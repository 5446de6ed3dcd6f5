"""Writes byol.npz: one step of symmetric BYOL in PyTorch, its losses and all its gradients.

Written from the paper: each online view predicts the target's projection of the other view, the
loss of an image is the sum over both directions of 2 - 2 cos, and no gradient reaches the target.
Online and target heads both use batch statistics, one batch per view.
"""

import pathlib
from collections import OrderedDict

import numpy as np
import torch
from make_vit import encode, in_our_words, randomise, to_numpy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
HIDDEN, OUTPUT, BATCH = 32, 12, 6


def head(inputs: int) -> nn.Sequential:
    layers = {
        "fc1": nn.Linear(inputs, HIDDEN),
        "norm": nn.BatchNorm1d(HIDDEN, eps=1e-5),
        "relu": nn.ReLU(),
        "fc2": nn.Linear(HIDDEN, OUTPUT, bias=False),
    }
    return nn.Sequential(OrderedDict(layers)).train()


def network(rng: np.random.Generator) -> dict[str, nn.Module]:
    vit = VisionTransformer(**SHAPE, mlp_ratio=2, num_classes=0, global_pool="avg")
    parts = {"encoder": vit, "projector": head(SHAPE["embed_dim"]), "predictor": head(OUTPUT)}
    return {name: randomise(part, rng) for name, part in parts.items()}


def one_way(online: dict[str, nn.Module], view: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos between the prediction from ``view`` and the target: [B]."""
    projection = online["projector"](encode(online["encoder"], view))
    prediction = online["predictor"](projection)
    return 2 - 2 * functional.cosine_similarity(prediction, target, dim=1)


def make() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    online, target = network(rng), network(rng)
    images = rng.integers(0, 256, (BATCH, 2, 8, 8, 3), np.uint8)
    views = [torch.from_numpy(images[:, i] / 255.0).requires_grad_() for i in (0, 1)]
    with torch.no_grad():
        targets = [target["projector"](encode(target["encoder"], view)) for view in views]

    losses = one_way(online, views[0], targets[1]) + one_way(online, views[1], targets[0])
    losses.sum().backward()
    golden = {
        "images": images,
        "target1": to_numpy(targets[0]),
        "target2": to_numpy(targets[1]),
        "losses": to_numpy(losses),
        "grad_view1": to_numpy(views[0].grad),
        "grad_view2": to_numpy(views[1].grad),
    }
    for name, part in online.items():
        golden |= in_our_words(part, f"params/{name}/")
        summed = in_our_words(part, f"grads/{name}/", grads=True)
        golden |= {key: value / BATCH for key, value in summed.items()}  # of the mean loss
    for name, part in target.items():
        golden |= in_our_words(part, f"target/{name}/")
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("byol.npz"), **make())
