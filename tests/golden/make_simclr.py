"""Writes simclr.npz: NT-Xent of two views in torch, with the gradients of weights and pixels.

After Chen et al. 2020, Algorithm 1: its loops over i, j and k are written out. The projector is
BYOL's, its batch statistics one batch per view.
"""

import pathlib

import numpy as np
import torch
from make_byol import HIDDEN, OUTPUT, SHAPE, head
from make_vit import encode, in_our_words, randomise, to_numpy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

BATCH = 5
TEMPERATURES = (0.1, 0.5)


def nt_xent(z: Tensor, i: int, j: int, temperature: float) -> Tensor:
    """l(i, j) of the paper's eq. 1."""

    def s(i: int, k: int) -> Tensor:
        return functional.cosine_similarity(z[i], z[k], dim=0) / temperature

    others = [s(i, k).exp() for k in range(len(z)) if k != i]
    return -torch.log(s(i, j).exp() / torch.stack(others).sum())


def losses_of(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The mean of an image's two terms: [B]."""
    z, b = torch.cat([z1, z2]), len(z1)
    pairs = [
        nt_xent(z, i, i + b, temperature) + nt_xent(z, i + b, i, temperature) for i in range(b)
    ]
    return torch.stack(pairs) / 2


def make() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    vit = VisionTransformer(**SHAPE, mlp_ratio=2, num_classes=0, global_pool="avg")
    parts = {"encoder": vit, "projector": head(SHAPE["embed_dim"])}
    parts = {name: randomise(part, rng) for name, part in parts.items()}
    images = rng.integers(0, 256, (BATCH, 2, 8, 8, 3), np.uint8)
    golden = {"images": images, "widths": np.array([HIDDEN, OUTPUT])}
    for name, part in parts.items():
        golden |= in_our_words(part, f"params/{name}/")
    for temperature in TEMPERATURES:
        views = [torch.from_numpy(images[:, i] / 255.0).requires_grad_() for i in (0, 1)]
        for part in parts.values():
            part.zero_grad()
        z1, z2 = (parts["projector"](encode(parts["encoder"], view)) for view in views)
        losses = losses_of(z1, z2, temperature)
        losses.sum().backward()
        at = f"at{temperature}/"
        golden |= {
            f"{at}losses": to_numpy(losses),
            f"{at}grad_view1": to_numpy(views[0].grad),
            f"{at}grad_view2": to_numpy(views[1].grad),
        }
        for name, part in parts.items():
            summed = in_our_words(part, f"{at}grads/{name}/", grads=True)
            golden |= {key: value / BATCH for key, value in summed.items()}  # of the mean loss
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("simclr.npz"), **make())
