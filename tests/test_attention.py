"""The attention kernel of TPUs, run by its interpreter, against plain products."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adv_ssl import sharding
from adv_ssl.models import attention
from adv_ssl.models.attention import fused


def rows(heads: int, size: int, n: int, dtype=jnp.float32):
    """(qkv, the gradient of the output) of two images."""
    keys = jax.random.split(jax.random.key(0))
    qkv = jax.random.normal(keys[0], (2, n, 3 * heads * size))
    return qkv.astype(dtype), jax.random.normal(keys[1], (2, n, heads * size)).astype(dtype)


def by_hand(qkv: np.ndarray, heads: int) -> np.ndarray:
    """In float64, head by head."""
    b, n, columns = qkv.shape
    q, k, v = np.moveaxis(np.float64(qkv).reshape(b, n, 3, heads, -1), 2, 0)
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshk->bthk", weights, v).reshape(b, n, columns // 3)


@pytest.mark.parametrize(("heads", "size", "n"), [(2, 64, 17), (8, 32, 9), (2, 128, 8)])
def test_the_kernel_is_attention(heads, size, n):
    qkv, gradient = rows(heads, size, n)
    out, back = jax.vjp(lambda qkv: fused(qkv, size, True), qkv)
    plain, plain_back = jax.vjp(lambda qkv: attention.attention(qkv, heads), qkv)
    np.testing.assert_allclose(out, by_hand(qkv, heads), atol=2e-6)
    np.testing.assert_allclose(plain, by_hand(qkv, heads), atol=2e-6)
    np.testing.assert_allclose(back(gradient)[0], plain_back(gradient)[0], atol=5e-6)


def test_the_kernel_in_bfloat16_is_as_exact_as_plain_products():
    heads, size = 2, 64
    qkv, gradient = rows(heads, size, 17, jnp.bfloat16)
    exact, exact_back = jax.vjp(
        lambda qkv: attention.attention(qkv, heads), qkv.astype(jnp.float32)
    )
    errors = []
    for attend in (lambda q: fused(q, size, True), lambda q: attention.attention(q, heads)):
        out, back = jax.vjp(attend, qkv)
        (found,), (wanted,) = back(gradient), exact_back(gradient.astype(jnp.float32))
        assert out.dtype == found.dtype == jnp.bfloat16
        errors.append([float(jnp.abs(out - exact).mean()), float(jnp.abs(found - wanted).mean())])
    (out, back), (plain_out, plain_back) = errors
    assert out < 1.2 * plain_out
    assert back < 1.2 * plain_back


def has_kernel(heads: int, size: int, n: int, images: int, mesh) -> bool:
    """Whether a TPU would be given the kernel."""
    qkv = jax.ShapeDtypeStruct((images, n, 3 * heads * size), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        made = jax.make_jaxpr(functools.partial(attention.attention, heads=heads))(qkv)
    return "pallas_call" in str(made)


def test_who_is_given_the_kernel():
    """Only a batch whose split over devices is known, and heads that fill registers."""
    mesh = sharding.mesh_of(jax.devices()[:1]).abstract_mesh
    nowhere = jax.sharding.AbstractMesh((), ())
    assert has_kernel(2, 64, 17, 2, mesh)
    assert has_kernel(4, 32, 512, 2, mesh)
    assert not has_kernel(2, 64, 17, 2, nowhere)
    assert not has_kernel(2, 64, 513, 2, mesh)
    assert has_kernel(12, 64, 257, 2, mesh)
    assert not has_kernel(12, 64, 485, 2, mesh)  # in float32: more than a core has room for
    assert not has_kernel(3, 64, 17, 2, mesh)
    assert not has_kernel(2, 48, 17, 2, mesh)
    two = jax.sharding.AbstractMesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    assert has_kernel(2, 64, 17, 4, two)
    assert not has_kernel(2, 64, 17, 3, two)


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch, caplog):
    tpu = SimpleNamespace(
        devices=np.array([SimpleNamespace(platform="tpu")]),
        abstract_mesh=sharding.mesh_of(jax.devices()[:1]).abstract_mesh,
    )
    assert attention.kernel_mesh(tpu) == tpu.abstract_mesh  # only compiled here: nothing to try
    assert attention.kernel_mesh(sharding.mesh_of(jax.devices()[:1])).empty
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def tried(kernel) -> bool:
        attention.sound.cache_clear()
        monkeypatch.setattr(attention, "fused", lambda qkv, size: kernel(qkv))
        return not attention.kernel_mesh(tpu).empty

    def fails(qkv):
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat length")

    plain = functools.partial(attention.attention, heads=12)
    assert tried(plain)
    assert not caplog.text
    assert not tried(lambda qkv: jnp.roll(plain(qkv), 1, axis=1))
    assert "a relative distance of 1" in caplog.text
    assert not tried(fails)
    assert "does not work here (INTERNAL: Mosaic failed): plain products instead." in caplog.text
    attention.sound.cache_clear()
