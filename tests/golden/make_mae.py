"""Writes mae.npz: one step of MAE in PyTorch, its loss and all its gradients.

Written from the paper (eq. 3 and 4): the encoder sees the visible patches alone, each with its
place; the decoder puts a mask token where a patch is hidden; the target is each clean patch with
its own mean and deviation taken out; only hidden patches count. The patches that are seen may be
attacked: here they differ from the clean ones that the target is made of.
"""

import pathlib
from collections import OrderedDict

import numpy as np
import torch
from make_vit import MEAN, STD, our_layout, our_name, randomise, to_numpy
from timm.models.vision_transformer import Block
from torch import Tensor, nn

SIZE, PATCH, BATCH, SEEN = 12, 4, 3, 3
GRID = SIZE // PATCH
PLACES, PIXELS = GRID**2, PATCH**2 * 3
WIDTH, DEPTH, HEADS, MLP_RATIO = 16, 2, 2, 2
DECODER = {"width": 12, "depth": 1, "heads": 3, "mlp": 24}


def table(width: int) -> Tensor:
    """Sines and cosines of the column, then of the row: [1 + PLACES, width]; cls has zeros."""
    rows = [torch.zeros(width, dtype=torch.float64)]
    frequencies = torch.tensor([10000 ** (-4 * k / width) for k in range(width // 4)])
    for row in range(GRID):
        for column in range(GRID):
            parts = [f(at * frequencies) for at in (column, row) for f in (torch.sin, torch.cos)]
            rows.append(torch.cat(parts).double())
    return torch.stack(rows)


def transformer(width: int, depth: int, heads: int, ratio: int) -> "OrderedDict[str, nn.Module]":
    blocks = [Block(width, heads, ratio, qkv_bias=True) for _ in range(depth)]
    for block in blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    return OrderedDict({"blocks": nn.ModuleList(blocks), "norm": nn.LayerNorm(width, eps=1e-6)})


def encoder() -> nn.Module:
    module = nn.ModuleDict(transformer(WIDTH, DEPTH, HEADS, MLP_RATIO))
    module["patch_embed"] = nn.Linear(PIXELS, WIDTH)
    module.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
    return module


def decoder() -> nn.Module:
    width, ratio = DECODER["width"], DECODER["mlp"] // DECODER["width"]
    module = nn.ModuleDict(transformer(width, DECODER["depth"], DECODER["heads"], ratio))
    module["embed"], module["predict"] = nn.Linear(WIDTH, width), nn.Linear(width, PIXELS)
    module.mask_token = nn.Parameter(torch.zeros(1, 1, width))
    return module


def cut(images: Tensor) -> Tensor:
    """[B, H, W, 3] -> [B, PLACES, PIXELS], patch by patch."""
    patches = []
    for row in range(0, SIZE, PATCH):
        for column in range(0, SIZE, PATCH):
            patches.append(images[:, row : row + PATCH, column : column + PATCH].flatten(1))
    return torch.stack(patches, dim=1)


def run_blocks(module: nn.Module, tokens: Tensor) -> Tensor:
    for block in module["blocks"]:
        tokens = block(tokens)
    return module["norm"](tokens)


def losses(enc: nn.Module, dec: nn.Module, x: Tensor, images: Tensor, seen: Tensor) -> Tensor:
    """The loss of each image [B]; x: pixels of the visible patches [B, SEEN, PIXELS]."""
    mean, std = MEAN.repeat(PATCH**2), STD.repeat(PATCH**2)
    tokens = enc["patch_embed"]((x - mean) / std) + table(WIDTH)[1:][seen]
    cls = (enc.cls_token + table(WIDTH)[0]).expand(BATCH, 1, WIDTH)
    tokens = dec["embed"](run_blocks(enc, torch.cat([cls, tokens], dim=1)))
    full = dec.mask_token.repeat(BATCH, PLACES, 1)
    for b in range(BATCH):
        full[b, seen[b]] = tokens[b, 1:]
    full = torch.cat([tokens[:, :1], full], dim=1) + table(DECODER["width"])
    predicted = dec["predict"](run_blocks(dec, full))[:, 1:]
    clean = (cut(images) - mean) / std
    centred = clean - clean.mean(-1, keepdim=True)
    target = centred / (clean.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = ((predicted - target) ** 2).mean(-1)
    hidden = torch.ones(BATCH, PLACES, dtype=torch.bool)
    hidden.scatter_(1, seen, False)
    return torch.stack([errors[b, hidden[b]].mean() for b in range(BATCH)])


def named(module: nn.Module, prefix: str, grads: bool) -> dict[str, np.ndarray]:
    return {
        f"{prefix}/{our_name(name, p)}".replace("token/", "token"): to_numpy(
            our_layout(p.grad if grads else p)
        )
        for name, p in module.named_parameters()
    }


def make() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    enc, dec = randomise(encoder(), rng), randomise(decoder(), rng)
    images = rng.random((BATCH, SIZE, SIZE, 3), np.float32)
    seen = np.stack([rng.permutation(PLACES)[:SEEN] for _ in range(BATCH)])
    places, clean = torch.from_numpy(seen), torch.from_numpy(images).double()
    x = cut(clean).gather(1, places[..., None].expand(-1, -1, PIXELS))
    x = (x + 0.05 * torch.from_numpy(rng.standard_normal(x.shape))).clip(0, 1)
    x = x.float().double().requires_grad_()
    each = losses(enc, dec, x, clean, places)
    each.sum().backward()
    golden = {
        "images": images,
        "seen": seen,
        "x": to_numpy(x),
        "losses": to_numpy(each),
        "grad_x": to_numpy(x.grad),
    }
    for kind, grads in (("params", False), ("grads", True)):
        for prefix, module in (("encoder", enc), ("decoder", dec)):
            for name, value in named(module, prefix, grads).items():
                golden[f"{kind}/{name}"] = value
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("mae.npz"), **make())
