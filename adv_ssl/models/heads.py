"""Heads on the encoder during pre-training."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from adv_ssl.models.vit import Dense


class BatchNorm(nn.Module):
    """Batch statistics only: the heads are thrown away, so nothing would read running ones (B20).

    [B, D] -> [B, D] in float32. The mean is over the whole array, and so over the global batch.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=0)
        return centred / jnp.sqrt(jnp.square(centred).mean(axis=0) + 1e-5) * scale + bias


class Projector(nn.Module):
    """BYOL's projector and predictor: Dense -> BatchNorm -> ReLU -> Dense without bias (B19)."""

    hidden: int
    output: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Array) -> Array:
        xavier = nn.initializers.xavier_uniform()
        x = Dense(self.hidden, self.dtype, name="fc1")(features)
        x = nn.relu(BatchNorm(name="norm")(x))
        x = nn.Dense(self.output, use_bias=False, dtype=self.dtype, kernel_init=xavier, name="fc2")(
            x
        )
        return x.astype(jnp.float32)
