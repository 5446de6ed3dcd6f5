"""Random keys by name, never by position, so that adding a draw moves no other."""

import zlib

import jax


def named(key: jax.Array, name: str) -> jax.Array:
    """The key of the draw called ``name``: nominal and adversarial runs of one seed stay paired."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
