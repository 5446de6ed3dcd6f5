"""One mesh over all devices of all hosts: batches are split over it, the state is whole on
each or, with ``fsdp``, in parts.

Evaluation and pictures stay on this host's devices, so that hosts need not keep step there.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
SMALL = 2**12  # elements; smaller arrays are on every device whatever the setting


def mesh_of(devices: list[jax.Device]) -> Mesh:
    """Devices in a row, its one axis called ``data``; those of a host side by side."""
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


@functools.cache
def mesh() -> Mesh:
    """All devices of all hosts: training's."""
    return mesh_of(jax.devices())


def described() -> str:
    """All devices, for the log: ``8 x NVIDIA A100``, or ``1 x cpu`` where none was found."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


@functools.cache
def _here() -> Mesh:
    """The devices of this host."""
    return mesh_of(jax.local_devices())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...] whose first axis is split, B a multiple of the number of devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that are on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(shapes: PyTree, fsdp: bool, mesh: Mesh) -> PyTree:
    """Where the arrays of a training state are, given their shapes.

    On every device; with ``fsdp``, fully sharded data parallel, each larger one is cut along its
    longest axis that the devices divide.
    """

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = [axis for axis, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if not (fsdp and axes) or leaf.size < SMALL:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(of_leaf, shapes)


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and types with the places that arrays are to be read to."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every host has in full, to where they belong."""

    def put(leaf: Any, where: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def fetched(tree: PyTree) -> PyTree:
    """Training's arrays, wherever they are, in full on every device of this host."""
    gather = jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh()))
    return replicate(jax.device_get(gather(tree)))


def assembled(batch: PyTree) -> PyTree:
    """The global batch [B, ...] of which each host has its own rows [B / hosts, ...]."""
    over = batch_sharding(mesh())
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(over, rows), batch)


def split(batch: PyTree) -> PyTree:
    """Arrays [B, ...], B a multiple of this host's devices, over these devices."""
    return jax.device_put(batch, batch_sharding(_here()))


def replicate(tree: PyTree) -> PyTree:
    """The same arrays on every device of this host."""
    return jax.device_put(tree, replicated(_here()))


def rounded_up(batch_size: int) -> int:
    """The smallest batch that this host's devices divide and that is no smaller."""
    return -(-batch_size // jax.local_device_count()) * jax.local_device_count()
