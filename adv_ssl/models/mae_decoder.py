"""The decoder of MAE: from the tokens of the visible patches to the pixels of all (B14)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from adv_ssl.models.vit import Dense, block_of, sincos_table


class Decoder(nn.Module):
    """Encoder tokens [B, 1 + n, D] -> one prediction a patch [B, N, outputs], float32.

    ``restore`` [B, N] says for each place of the grid which row of [visible, masked] stands there.
    The cls token goes through the decoder and is dropped after it.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    outputs: int  # numbers a patch
    dtype: Any
    remat: bool = False  # as the encoder's

    @nn.compact
    def __call__(self, tokens: Array, restore: Array) -> Array:
        b, patches = restore.shape
        tokens = Dense(self.width, self.dtype, name="embed")(tokens)
        mask = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        masked = jnp.broadcast_to(mask, (b, patches + 1 - tokens.shape[1], self.width))
        rows = jnp.concatenate([tokens[:, 1:], masked.astype(tokens.dtype)], axis=1)
        rows = jnp.take_along_axis(rows, restore[..., None], axis=1)
        positions = sincos_table(math.isqrt(patches), self.width)  # fixed (B6)
        tokens = jnp.concatenate([tokens[:, :1], rows], axis=1) + positions.astype(tokens.dtype)
        block = block_of(self.remat)
        for i in range(self.depth):
            tokens = block(self.heads, self.mlp, 0.0, self.dtype, name=f"block_{i}")(tokens, True)
        tokens = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(tokens)
        pixels = Dense(self.outputs, self.dtype, name="predict")(tokens)
        return pixels[:, 1:].astype(jnp.float32)
