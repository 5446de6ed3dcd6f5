"""The Vision Transformer of the paper: ViT-B/16 as changed by He et al. for fine-tuning (B1-B4).

Pixels in [0, 1] go in, cut into patches; mean/std normalisation comes first. Parameters are
float32; tokens and matrix products are in ``dtype``; pixels, softmax, the statistics of layer norms
and the pooled features are float32 whatever it is.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.models.attention import attention
from adv_ssl.ranges import Count, Options

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # A13
STD = np.array([0.229, 0.224, 0.225], np.float32)
DEEPEST = 1000  # blocks: each is traced by itself, many more would take hours to compile


@dataclasses.dataclass(frozen=True)
class Architecture(Options):
    """The shape of an encoder: what a checkpoint must agree on to be handed over."""

    image_size: Count  # pixels a side
    patch: Count  # pixels a side
    width: Count
    depth: Count  # blocks
    heads: Count
    mlp: Count  # hidden width of a block's MLP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > DEEPEST:
            raise UserError(f"depth={self.depth}: must be {DEEPEST} blocks or fewer.")
        for whole, part in (("image_size", "patch"), ("width", "heads")):
            a, b = getattr(self, whole), getattr(self, part)
            if a % b:
                raise UserError(
                    f"{whole}={a} is not divisible by {part}={b}: choose a multiple of {b}."
                )
        if self.width % 4:
            raise UserError(
                f"width={self.width}: must be a multiple of 4, because the position table "
                "has a sine and a cosine part for rows and for columns."
            )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch


def patchify(images: Array, patch: int) -> Array:
    """Images [B, H, W, C] -> patches [B, N, patch*patch*C].

    Patches are row-major; the pixels of a patch are in (row, column, channel) order.
    """
    b, h, w, c = images.shape
    patches = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def unpatchify(patches: Array, patch: int) -> Array:
    """The inverse of ``patchify``: [B, N, patch*patch*C] -> [B, H, W, C], H = W."""
    b, n, d = patches.shape
    grid = math.isqrt(n)
    images = patches.reshape(b, grid, grid, patch, patch, d // patch**2)
    return images.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid * patch, grid * patch, -1)


def sincos_table(grid: int, width: int) -> np.ndarray:
    """Position table [1 + grid*grid, width] (B6): 0 for cls; the first half encodes the column."""
    quarter = width // 4
    return position_table(grid, 10000.0 ** (-np.arange(quarter) / quarter))


def is_sincos(positions: Array | np.ndarray) -> bool:
    """Whether positions [1 + N, D] are ``sincos_table``'s."""
    places, width = positions.shape
    table = sincos_table(math.isqrt(places - 1), width)
    return np.allclose(positions, table, rtol=0, atol=1e-6)


def position_table(grid: int, omega: np.ndarray) -> np.ndarray:
    """Sines and cosines of columns, then of rows, at the frequencies ``omega``: as above."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    angles = [np.outer(position, omega) for position in (column, row)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return np.pad(table, ((1, 0), (0, 0))).astype(np.float32)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """The rate of block i is rate * i / (depth - 1) (B13)."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def _patch_bias(fan_in: int) -> nn.initializers.Initializer:
    """The default of the reference's convolution: U(+-1/sqrt(fan_in)) (B9)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _separate_qkv(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """Xavier-uniform for each of q, k and v by itself, not for their concatenation (B9)."""
    bound = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """x W + b over the last axis: the product in ``dtype``, the sum in float32.

    Were the bias added in bfloat16, its gradient would be summed in bfloat16 over a million tokens,
    and such a sum stops growing.
    """

    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)  # XLA:CPU is faster at a plain product
        product = (rows @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)
        return (product.astype(jnp.float32) + bias).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention: [B, N, D] -> [B, N, D]."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        d = tokens.shape[-1]
        qkv = Dense(3 * d, self.dtype, _separate_qkv, name="qkv")(tokens)
        return Dense(d, self.dtype, name="proj")(attention(qkv, self.heads))


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        hidden = Dense(self.hidden, self.dtype, name="fc1")(tokens)
        hidden = nn.gelu(hidden, approximate=False)
        return Dense(tokens.shape[-1], self.dtype, name="fc2")(hidden)


def drop_path(rate: float, name: str | None = None) -> nn.Dropout:
    """Drops a whole residual branch [B, N, D], image by image; the kept ones times 1/keep (B13)."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), rng_collection="drop_path", name=name)


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int
    mlp: int
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, deterministic: bool) -> Array:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)  # B2

        def dropped(branch: Array, name: str) -> Array:
            kept = drop_path(self.drop_path, name)(branch.astype(jnp.float32), deterministic)
            return kept.astype(branch.dtype)

        mixed = Attention(self.heads, self.dtype, name="attn")(norm("norm1")(tokens))
        tokens = tokens + dropped(mixed, "drop_path1")
        hidden = Mlp(self.mlp, self.dtype, name="mlp")(norm("norm2")(tokens))
        return tokens + dropped(hidden, "drop_path2")


def block_of(remat: bool) -> type[Block]:
    """``Block``, or one that computes its inner values again in the backward pass."""
    return nn.remat(Block, static_argnums=2) if remat else Block


class ViT(nn.Module):
    """Patches [B, n, patch * patch * 3], pixels in [0, 1] -> features [B, width], float32.

    Patches stand at the places ``at`` [B, n] of the grid; None: all of them, in order. The mean of
    the final patch tokens, without the cls token, goes through ``fc_norm`` (B4). Not ``pooled``,
    the output is all tokens [B, 1 + n, width], cls first, each through ``norm`` (B5).
    """

    architecture: Architecture
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    learned_positions: bool = True  # False: the table is a constant (B6), not a parameter (B7, B8)
    pooled: bool = True
    remat: bool = False  # compute the inner values of blocks again in the backward pass

    @nn.compact
    def __call__(
        self, patches: Array, at: Array | None = None, deterministic: bool = True
    ) -> Array:
        a = self.architecture
        mean, std = (np.tile(value, a.patch**2) for value in (MEAN, STD))
        embed = Dense(a.width, self.dtype, bias_init=_patch_bias(len(mean)), name="patch_embed")
        tokens = embed((patches - mean) / std)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, a.width))
        positions = jnp.asarray(sincos_table(a.grid, a.width))[None]
        if self.learned_positions:
            positions = self.param("pos_embed", lambda key: positions)
        places = positions[:, 1:]
        if at is not None:
            places = jnp.take_along_axis(places, at[..., None], axis=1)
        cls = jnp.broadcast_to(cls + positions[:, :1], (tokens.shape[0], 1, a.width))
        tokens = jnp.concatenate([cls, tokens.astype(jnp.float32) + places], axis=1)
        tokens = tokens.astype(self.dtype)  # after the sum: gradients of positions are in float32
        block = block_of(self.remat)
        for i, rate in enumerate(drop_path_rates(self.drop_path, a.depth)):
            tokens = block(a.heads, a.mlp, rate, self.dtype, name=f"block_{i}")(
                tokens, deterministic
            )
        if not self.pooled:
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(tokens)
        features = tokens[:, 1:].astype(jnp.float32).mean(axis=1)
        return nn.LayerNorm(epsilon=1e-6, name="fc_norm")(features)


def apply(module: nn.Module, params: Any, *inputs: Any, rngs: Any = None) -> Array:
    """The output of ``module`` with ``params``."""
    return module.apply({"params": params}, *inputs, rngs=rngs)  # type: ignore[return-value]


def encode(encoder: ViT, params: Any, images: Array, key: Array | None) -> Array:
    """Features of ``images`` [B, H, W, 3]; ``key`` drives drop path, ``None`` turns it off."""
    return encode_patches(encoder, params, patchify(images, encoder.architecture.patch), None, key)


def encode_patches(
    encoder: ViT, params: Any, patches: Array, at: Array | None, key: Array | None
) -> Array:
    """The encoder's output for ``patches`` at the places ``at``."""
    rngs = None if key is None else {"drop_path": key}
    return apply(encoder, params, patches, at, key is None, rngs=rngs)


def init_encoder(encoder: ViT, key: Array) -> tuple[Array, Any]:
    """(the output for one black image, random parameters)."""
    a = encoder.architecture
    patches = jnp.zeros((1, a.grid**2, a.patch**2 * 3))
    output, variables = encoder.init_with_output(key, patches)
    return output, variables["params"]
