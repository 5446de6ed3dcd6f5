"""One mesh over all devices: batches are split over it, all else is on every device."""

import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any


@functools.cache
def mesh() -> Mesh:
    """All devices in a row, its one axis called ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def split(batch: PyTree) -> PyTree:
    """Arrays [B, ...], B a multiple of the number of devices, by their first axis."""
    return jax.device_put(batch, NamedSharding(mesh(), PartitionSpec("data")))


def replicate(tree: PyTree) -> PyTree:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec()))


def replicated(shapes: PyTree) -> PyTree:
    """The shapes and types of arrays, to be read onto every device."""
    everywhere = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes
    )


def rounded_up(batch_size: int) -> int:
    """The smallest batch that can be split and is no smaller."""
    return -(-batch_size // jax.device_count()) * jax.device_count()
