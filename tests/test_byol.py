"""BYOL's loss and gradients against PyTorch's, its heads and meters against formulas."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_batch
from flax.traverse_util import flatten_dict, unflatten_dict

from adv_ssl.data.photometric import Photometric
from adv_ssl.models.heads import BatchNorm, Projector
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.tasks import byol, views

GOLDEN = pathlib.Path(__file__).parent / "golden"
UNCHANGED = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)
KEY = jax.random.key(0)


def part(golden: dict, prefix: str) -> dict:
    """The arrays under ``prefix`` as a nested dict."""
    names = [name for name in golden if name.startswith(prefix)]
    return unflatten_dict({name.removeprefix(prefix): golden[name] for name in names}, sep="/")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "byol.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def ours(golden) -> dict:
    """What our task makes of the golden file's images and weights."""
    encoder = ViT(Architecture(image_size=8, patch=4, width=16, depth=1, heads=2, mlp=32))
    task = byol.make(byol.Byol(32, 12, UNCHANGED, UNCHANGED), encoder, 0)

    @jax.jit
    def step(params, target, batch):
        x, context, health = task.prepare(params, target, batch, KEY)
        assert health == {}

        def total(params, x):
            losses, _ = task.loss(params, x, context, None)
            return losses.sum(), losses

        gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
        (_, losses), (to_params, to_views) = gradient(params, x)
        mean = jax.tree.map(lambda g: g / len(losses), to_params)
        return context, losses, mean, to_views

    batch = {"image": golden["images"]}
    context, losses, to_params, to_views = step(
        part(golden, "params/"), part(golden, "target/"), batch
    )
    return {
        "target1": context.view1,
        "target2": context.view2,
        "losses": losses,
        "grad_view1": to_views.view1,
        "grad_view2": to_views.view2,
        "grads": flatten_dict(to_params, sep="/"),
    }


@pytest.mark.parametrize("name", ["target1", "target2", "losses"])
def test_targets_and_losses_are_those_of_torch(ours, golden, name):
    np.testing.assert_allclose(ours[name], golden[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grad_view1", "grad_view2"])
def test_what_the_attack_climbs_is_torchs_gradient(ours, golden, name):
    atol = 1e-5 * np.abs(golden[name]).max()
    np.testing.assert_allclose(ours[name], golden[name], rtol=1e-4, atol=atol)


def test_gradients_of_parameters_are_those_of_torch(ours, golden):
    expected = flatten_dict(part(golden, "grads/"), sep="/")
    assert ours["grads"].keys() == expected.keys()
    for name, grad in expected.items():
        # A bias that a BatchNorm takes away again has gradient 0, up to rounding.
        atol = 1e-5 * np.abs(grad).max() + 1e-6
        np.testing.assert_allclose(ours["grads"][name], grad, rtol=1e-4, atol=atol, err_msg=name)


def test_batch_norm_is_numpys():
    rng = np.random.default_rng(0)
    # A column that hardly varies shows epsilon, one far from 0 how the variance is computed.
    x = rng.standard_normal((16, 4)) * [1, 3, 2e-3, 1] + [0, -1, 0, 100]
    scale, bias = rng.standard_normal((2, 4))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + bias
    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    y = BatchNorm().apply({"params": params}, x.astype(np.float32))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    rough = BatchNorm().apply({"params": params}, jnp.asarray(x, jnp.bfloat16))
    assert rough.dtype == jnp.float32


def test_each_view_has_its_own_colours():
    batch = make_batch("byol")
    pixels = batch["image"] / np.float32(255)
    solarized, grey = (
        dataclasses.replace(UNCHANGED, **{f"{name}_prob": 1.0})
        for name in ("solarize", "grayscale")
    )
    one, two = views.two_views(batch, KEY, solarized, grey)
    expected = np.where(pixels[:, 0] < 0.5, pixels[:, 0], 1 - pixels[:, 0])
    np.testing.assert_allclose(one, expected, atol=1e-6)
    assert np.ptp(two, axis=-1).max() < 1e-6
    assert np.ptp(pixels[:, 1], axis=-1).max() > 0.5


def test_feature_std_is_zero_for_collapsed_and_one_for_isotropic_features():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((1000, 32)).astype(np.float32)
    collapsed = np.arange(1, 9, dtype=np.float32)[:, None] * spread[0]  # one direction
    np.testing.assert_allclose(views.feature_std(spread), 1, atol=0.02)
    np.testing.assert_allclose(views.feature_std(collapsed), 0, atol=1e-6)
    np.testing.assert_allclose(views.feature_std(7 * spread), views.feature_std(spread), rtol=1e-5)


def test_cosine_is_numpys_and_its_gradient_is_finite_at_zero():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(views.cosine(a, b), (a * b).sum(1) / lengths, atol=1e-6)
    np.testing.assert_allclose(views.cosine(a, a), 1, atol=1e-6)
    gradient = jax.grad(lambda a: views.cosine(a, b).sum())(jnp.zeros_like(a))
    assert np.all(np.isfinite(gradient))


def test_the_heads_start_xavier_uniform():
    """B10: the encoder's scheme; the second layer has no bias (B19)."""
    head = Projector(512, 64, jnp.float32)
    params = head.init(jax.random.key(0), jnp.zeros((2, 256)))["params"]
    for name, shape in (("fc1", (256, 512)), ("fc2", (512, 64))):
        kernel = params[name]["kernel"]
        bound = (6 / sum(shape)) ** 0.5
        assert kernel.shape == shape
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not params["fc1"]["bias"].any()
    assert "bias" not in params["fc2"]
