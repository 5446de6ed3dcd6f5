"""Writes vit.npz: a small timm Vision Transformer, its outputs and all its gradients.

Parameters and their gradients are stored under the names and in the layouts of adv_ssl. All is
computed in float64 and stored in float32, so the file is exact to float32's last digits.
"""

import pathlib
import re

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
CLASSES = 5
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def randomise(module: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Gives every parameter, biases and norms too, a random float32 value, held in float64."""
    module = module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = rng.standard_normal(tuple(p.shape))
            if p.ndim > 1 and name.endswith("weight"):
                value = 1.5 * noise / np.sqrt(p[0].numel())
            elif name.endswith("weight"):
                value = 1 + 0.3 * noise
            else:
                value = 0.4 * noise
            p.copy_(torch.from_numpy(value.astype(np.float32)))
    return module


def encode(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Pixels [B, H, W, 3] in [0, 1] -> pooled and normed features [B, D]."""
    normalised = ((pixels - MEAN) / STD).permute(0, 3, 1, 2)
    return vit.forward_head(vit.forward_features(normalised), pre_logits=True)


def our_name(name: str, p: Tensor) -> str:
    """blocks.0.attn.qkv.weight -> block_0/attn/qkv/kernel"""
    name = re.sub(r"\bblocks\.", "block_", name).replace("patch_embed.proj", "patch_embed")
    weight = "kernel" if p.ndim > 1 else "scale"
    return re.sub(r"weight$", weight, name).replace(".", "/")


def our_layout(p: Tensor) -> Tensor:
    """Dense: transposed; convolution: [out, channel, row, column] -> [row*column*channel, out]."""
    if p.ndim == 4:
        return p.permute(2, 3, 1, 0).reshape(-1, len(p))
    return p.T if p.ndim == 2 else p


def in_our_words(module: nn.Module, prefix: str, grads: bool = False) -> dict[str, np.ndarray]:
    """The module's parameters, or their gradients, by our names."""
    return {
        prefix + our_name(name, p): to_numpy(our_layout(p.grad if grads else p))
        for name, p in module.named_parameters()
    }


def to_numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy().astype(np.float32))


def make() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    vit = VisionTransformer(**SHAPE, num_classes=CLASSES, global_pool="avg")
    randomise(vit, rng)
    images = rng.random((3, 16, 16, 3), np.float32)
    weights = rng.standard_normal((3, CLASSES)).astype(np.float32)

    pixels = torch.from_numpy(images).double().requires_grad_()
    features = encode(vit, pixels)
    logits = vit.head(features)
    (logits * torch.from_numpy(weights)).sum().backward()

    golden = {
        "images": images,
        "weights": weights,
        "features": to_numpy(features),
        "logits": to_numpy(logits),
        "grad_images": to_numpy(pixels.grad),
    }
    for kind, grads in (("params", False), ("grads", True)):
        for name, value in in_our_words(vit, "", grads).items():
            place = "" if name.startswith("head/") else "encoder/"
            golden[f"{kind}/{place}{name}"] = value
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("vit.npz"), **make())
