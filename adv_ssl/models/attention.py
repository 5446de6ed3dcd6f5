"""Self-attention: plain products, but in training on TPUs a kernel for as few tokens as a ViT has.

As plain products it is half of a step there: the scores of all heads go to the chip's memory and
back, and queries, keys and values are turned around between layouts. The kernel takes an image's
queries, keys and values as the dense layer leaves them and keeps scores on the chip. Its backward
pass computes them again: nothing else is kept for it. Scores, softmax and sums are float32 in both.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

LANES = 128  # columns of a TPU's registers: the kernel takes the heads of as many at once
# The most of an image that goes into a core's 16 MiB: there are up to 7/3 of its bytes, twice, so
# that the next image comes in beside it, and the scores of some heads.
TOKENS = 512
BYTES = 5 * 2**19
TOLERANCE = 0.02  # between two ways to the same sums in bfloat16: some times its 2^-8

_log = logging.getLogger("adv_ssl")


def attention(qkv: Array, heads: int) -> Array:
    """softmax(q k^T / sqrt(size)) v of each head: [B, N, 3 * heads * size] -> [B, N, heads * size].

    The columns are all of q, all of k, all of v, each by heads.
    """
    b, n, columns = qkv.shape
    width = columns // 3
    size = width // heads
    mesh = jax.sharding.get_abstract_mesh()
    known = not mesh.empty and b % mesh.size == 0  # XLA splits no kernel over devices by itself
    fits = n <= TOKENS and n * columns * qkv.dtype.itemsize <= BYTES
    if known and fits and LANES % size == 0 and width % LANES == 0:
        return fused(qkv, size)
    q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, heads, size), 2, 0)
    return jax.nn.dot_product_attention(q, k, v).reshape(b, n, width)


def kernel_mesh(mesh: Mesh) -> AbstractMesh:
    """The mesh under which a step on ``mesh`` is traced: the kernel is used under one of devices.

    It is empty unless they are TPUs, and a trial has found nothing wrong.
    """
    if mesh.devices.flat[0].platform == "tpu" and sound():
        return mesh.abstract_mesh
    return AbstractMesh((), ())


@functools.cache
def sound() -> bool:
    """Whether the kernel agrees with plain products here; tried once, on a ViT-B/16's tokens.

    Where there is no TPU, a program is only compiled for one, and nothing can be tried.
    """
    if jax.default_backend() != "tpu":
        return True
    keys = jax.random.split(jax.random.key(0))
    qkv = jax.random.normal(keys[0], (2, 197, 3 * 768), jnp.bfloat16)
    gradient = jax.random.normal(keys[1], (2, 197, 768), jnp.bfloat16)
    plain = _both(functools.partial(attention, heads=12), qkv, gradient)
    try:
        found = _both(functools.partial(fused, size=64), qkv, gradient)
        distance = max(float(_distance(a, b)) for a, b in zip(found, plain, strict=True))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
    else:
        if distance < TOLERANCE:
            return True
        reason = f"a relative distance of {distance:.2g} from plain products"
    _log.warning("The attention kernel does not work here (%s): plain products instead.", reason)
    return False


@functools.partial(jax.jit, static_argnums=0)
def _both(attend: Callable[[Array], Array], qkv: Array, gradient: Array) -> tuple[Array, Array]:
    out, back = jax.vjp(attend, qkv)
    return out, back(gradient)[0]


def _distance(found: Array, wanted: Array) -> Array:
    found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
    return jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def fused(qkv: Array, size: int, interpret: bool = False) -> Array:
    """``attention`` by the kernel; ``size``: columns of a head; ``interpret``: not on a TPU."""
    return _by_image(_forward, qkv.shape[-1] // 3, size, interpret, qkv)


def _fused_backward(size: int, interpret: bool, qkv: Array, gradient: Array) -> tuple[Array]:
    return (_by_image(_backward, qkv.shape[-1], size, interpret, qkv, gradient),)


fused.defvjp(lambda qkv, size, interpret: (fused(qkv, size, interpret), qkv), _fused_backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _by_image(kernel: Any, columns: int, size: int, interpret: bool, *arrays: Array) -> Array:
    """Runs ``kernel`` for each image, on the device that has it: [B, N, ...] -> [B, N, columns]."""

    def run(*arrays: Array) -> Array:
        b, n, _ = arrays[0].shape

        def image(columns: int) -> pallas.BlockSpec:
            return pallas.BlockSpec((1, n, columns), lambda i: (i, 0, 0))

        return pallas.pallas_call(
            functools.partial(kernel, size=size),
            grid=(b,),
            in_specs=[image(array.shape[-1]) for array in arrays],
            out_specs=image(columns),
            out_shape=jax.ShapeDtypeStruct((b, n, columns), arrays[0].dtype),
            interpret=interpret,
        )(*arrays)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arrays)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)


def _forward(qkv: Any, mixed: Any, *, size: int) -> None:
    """The kernel: an image's [1, N, 3 * width] -> [1, N, width]."""
    width = mixed.shape[-1]
    for start in range(0, width, LANES):  # unrolled: each group fills the gaps of the one before
        q, k, v = (qkv[0, :, _columns(i * width + start)] for i in range(3))
        q = q * jnp.asarray(size**-0.5, q.dtype)
        out = jnp.zeros(v.shape, jnp.float32)
        for head in _heads(size):
            weights, sums = _softmax(_product(jnp.where(head, q, 0), k, 1, 1))
            out = jnp.where(head, _product(weights.astype(v.dtype), v, 1, 0) / sums, out)
        mixed[0, :, _columns(start)] = out.astype(mixed.dtype)


def _backward(qkv: Any, gradient: Any, gradients: Any, *, size: int) -> None:
    """Its backward pass: [1, N, 3 * width] and the gradient of its output -> that of its input."""
    width = gradient.shape[-1]
    for start in range(0, width, LANES):  # as there
        q, k, v = (qkv[0, :, _columns(i * width + start)] for i in range(3))
        q = q * jnp.asarray(size**-0.5, q.dtype)
        out = gradient[0, :, _columns(start)]
        dq, dk, dv = (jnp.zeros(v.shape, jnp.float32) for _ in range(3))
        for head in _heads(size):
            q_head, k_head, out_head = (jnp.where(head, a, 0) for a in (q, k, out))
            weights, sums = _softmax(_product(q_head, k, 1, 1))
            weights = weights / sums
            d_weights = _product(out_head, v, 1, 1)
            d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
            dq += _product(d_scores, k_head, 1, 0)
            dk += _product(d_scores, q_head, 0, 0)
            dv += _product(weights, out_head, 0, 0)
        for i, part in enumerate((dq * size**-0.5, dk, dv)):
            gradients[0, :, _columns(i * width + start)] = part.astype(gradients.dtype)


def _columns(start: int) -> slice:
    return slice(start, start + LANES)


def _heads(size: int) -> list[Array]:
    """The columns of each head of a group, as masks [1, LANES].

    Zeros in the other heads' columns cost nothing: the matrix unit has as many columns.
    """
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return [(lane >= first) & (lane < first + size) for first in range(0, LANES, size)]


def _softmax(scores: Array) -> tuple[Array, Array]:
    """Its numerators and denominators, over the last axis."""
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def _product(left: Array, right: Array, *axes: int) -> Array:
    """Matrix product over an axis of each, in float32."""
    contracted = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(left, right, contracted, preferred_element_type=jnp.float32)
