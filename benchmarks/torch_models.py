"""The networks of the four methods in PyTorch, named as ours, so that weights can be copied.

Plain modules, with what is fastest on a CPU: fused attention, and patches as one matrix product in
the place of a convolution.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adv_ssl.models.vit import MEAN, STD, Architecture, drop_path_rates, sincos_table
from adv_ssl.tasks.byol import Byol
from adv_ssl.tasks.mae import Mae


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, H, W, 3] -> [B, N, patch*patch*3]."""
    b, h, w, c = images.shape
    patches = images.view(b, h // patch, patch, w // patch, patch, c)
    return patches.transpose(2, 3).reshape(b, -1, patch * patch * c)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, d = tokens.shape
        q, k, v = self.qkv(tokens).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm transformer block; ``drop``: whether paths are dropped."""

    def __init__(self, width: int, heads: int, mlp: int, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, mlp)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, drop: bool) -> Tensor:
        tokens = tokens + self._dropped(self.attn(self.norm1(tokens)), drop)
        return tokens + self._dropped(self.mlp(self.norm2(tokens)), drop)

    def _dropped(self, branch: Tensor, drop: bool) -> Tensor:
        if not drop or self.drop_path == 0:
            return branch
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.drop_path)
        return branch * (kept / (1 - self.drop_path))


class Vit(nn.Module):
    """Patches [B, n, P] at the places ``at`` -> features [B, D], or tokens [B, 1 + n, D]."""

    def __init__(self, a: Architecture, drop_path: float, learned: bool, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.patch_embed = nn.Linear(a.patch**2 * 3, a.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.width))
        positions = torch.from_numpy(sincos_table(a.grid, a.width))[None]
        if learned:
            self.pos_embed = nn.Parameter(positions)
        else:
            self.register_buffer("pos_embed", positions)
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.from_numpy(np.tile(value, a.patch**2)))
        rates = drop_path_rates(drop_path, a.depth)
        self.block = nn.ModuleList(Block(a.width, a.heads, a.mlp, rate) for rate in rates)
        norm = nn.LayerNorm(a.width, eps=1e-6)
        self.add_module("fc_norm" if pooled else "norm", norm)

    def forward(self, patches: Tensor, at: Tensor | None, drop: bool) -> Tensor:
        tokens = self.patch_embed((patches - self.mean) / self.std)
        places = self.pos_embed[:, 1:]
        if at is not None:
            places = places[0][at]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls, tokens + places], dim=1)
        for block in self.block:
            tokens = block(tokens, drop)
        return self.fc_norm(tokens[:, 1:].mean(1)) if self.pooled else self.norm(tokens)


class Decoder(nn.Module):
    """MAE's: tokens of the visible patches -> a prediction for each patch."""

    def __init__(self, options: Mae, a: Architecture):
        super().__init__()
        self.embed = nn.Linear(a.width, options.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, options.width))
        self.register_buffer("places", torch.from_numpy(sincos_table(a.grid, options.width)))
        self.block = nn.ModuleList(
            Block(options.width, options.heads, options.mlp, 0.0) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.width, eps=1e-6)
        self.predict = nn.Linear(options.width, a.patch**2 * 3)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        b, n = restore.shape
        masked = self.mask_token.to(tokens.dtype).expand(b, n + 1 - tokens.shape[1], -1)
        rows = torch.cat([tokens[:, 1:], masked], dim=1)
        rows = rows.gather(1, restore[..., None].expand(-1, -1, rows.shape[2]))
        tokens = torch.cat([tokens[:, :1], rows], dim=1) + self.places
        for block in self.block:
            tokens = block(tokens, False)
        return self.predict(self.norm(tokens))[:, 1:]


class Projector(nn.Module):
    """BYOL's projector and predictor, by batch statistics alone."""

    def __init__(self, inputs: int, options: Byol):
        super().__init__()
        self.fc1 = nn.Linear(inputs, options.hidden)
        self.norm = nn.BatchNorm1d(options.hidden, track_running_stats=False)
        self.fc2 = nn.Linear(options.hidden, options.output, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.norm(self.fc1(features))))


def copy_weights(module: nn.Module, params: Any) -> None:
    """Our parameters into the module of the same names. KeyError: one has no partner."""
    theirs = dict(module.named_parameters())
    with torch.no_grad():
        for path, value in jax.tree_util.tree_leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name.replace("block_", "block.")
            name = name.replace("kernel", "weight").replace("scale", "weight")
            array = torch.from_numpy(np.array(value))
            parameter = theirs.pop(name)
            parameter.copy_(array.T if name.endswith("weight") and array.ndim == 2 else array)
    if theirs:
        raise KeyError(f"not ours: {', '.join(theirs)}")
