"""SimCLR's loss and gradients against PyTorch's and closed forms; it is over the whole batch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_batch, make_task
from flax.traverse_util import flatten_dict, unflatten_dict

from adv_ssl.data.photometric import Photometric
from adv_ssl.errors import UserError
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.tasks import simclr

GOLDEN = pathlib.Path(__file__).parent / "golden" / "simclr.npz"
UNCHANGED = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)
KEY = jax.random.key(0)
TEMPERATURES = (0.1, 0.5)
SIZE = (5, 9)  # the same in most tests: one program
nt_xent = jax.jit(simclr.nt_xent)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module", params=TEMPERATURES)
def both(request, golden) -> tuple[dict, dict]:
    """(what our task makes of the golden file's images and weights, what torch makes)."""
    encoder = ViT(Architecture(image_size=8, patch=4, width=16, depth=1, heads=2, mlp=32))
    hidden, output = map(int, golden["widths"])
    options = simclr.SimClr(request.param, hidden, output, UNCHANGED, UNCHANGED)
    task = simclr.make(options, encoder, 0)

    @jax.jit
    def step(params, batch):
        x, context, health = task.prepare(params, None, batch, KEY)
        assert health == {}

        def total(params, x):
            losses, _ = task.loss(params, x, context, None)
            return losses.sum(), losses

        gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
        (_, losses), (to_params, to_views) = gradient(params, x)
        return losses, jax.tree.map(lambda g: g / len(losses), to_params), to_views

    names = [name for name in golden if name.startswith("params/")]
    params = unflatten_dict({n.removeprefix("params/"): golden[n] for n in names}, sep="/")
    losses, to_params, to_views = step(params, {"image": golden["images"]})
    ours = {"losses": losses, "grad_view1": to_views.view1, "grad_view2": to_views.view2}
    ours |= flatten_dict({"grads": to_params}, sep="/")
    at = f"at{request.param}/"
    return ours, {n.removeprefix(at): golden[n] for n in golden if n.startswith(at)}


def test_losses_are_those_of_torch(both):
    ours, theirs = both
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-5, atol=1e-5)


def test_gradients_of_views_and_parameters_are_those_of_torch(both):
    ours, theirs = both
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # A bias that a BatchNorm takes away again has gradient 0, up to rounding.
        atol = 1e-5 * np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-4, atol=atol, err_msg=name)


def pair() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(0).standard_normal((2, *SIZE)).astype(np.float32))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("length", [0.01, 1.0, 300.0])
def test_equal_views_of_orthogonal_images(temperature, length):
    """One partner at cosine 1 and 2B - 2 others at cosine 0, whatever the rows' lengths."""
    z = length * np.eye(*SIZE, dtype=np.float32)
    expected = np.log(np.exp(1 / temperature) + 2 * len(z) - 2) - 1 / temperature
    np.testing.assert_allclose(nt_xent(z, z, temperature), expected, rtol=1e-5, atol=1e-6)


def test_collapsed_projections_are_told_apart_by_chance():
    z = np.ones(SIZE, np.float32)
    np.testing.assert_allclose(nt_xent(z, z, 0.1), np.log(2 * len(z) - 1), rtol=1e-5)


def test_the_order_of_views_and_of_images_changes_nothing():
    a, b = pair()
    losses, order = np.asarray(nt_xent(a, b, 0.5)), np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(losses, nt_xent(b, a, 0.5), rtol=1e-5)
    np.testing.assert_allclose(losses[order], nt_xent(a[order], b[order], 0.5), rtol=1e-5)


@pytest.mark.parametrize("size", [SIZE, (1, 9)])
def test_gradient_is_finite_for_rows_of_zeros_and_a_batch_of_one(size):
    gradient = jax.jit(jax.grad(lambda a: simclr.nt_xent(a, a, 0.1).sum()))
    assert np.all(np.isfinite(gradient(jnp.zeros(size))))


def test_every_loss_hangs_on_every_image():
    """By nature, and without BatchNorm too: the law that images are apart cannot be asked."""
    a, b = pair()
    before = np.asarray(nt_xent(a, b, 0.5))
    a[2] = -a[2]
    assert np.all(np.abs(nt_xent(a, b, 0.5) - before) > 1e-4)


def test_the_two_views_are_drawn_apart():
    batch = make_batch("simclr")
    batch["image"][:, 1] = batch["image"][:, 0]
    view1, view2 = make_task("simclr").prepare(None, None, batch, KEY).x
    assert np.any(np.abs(view1 - view2) > 1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"hidden": 0}, "hidden=0: must be 1 or more"),
        ({"output": -1}, "output=-1: must be 1 or more"),
    ],
)
def test_options_without_sense_are_refused(change, said):
    options = {"temperature": 0.1, "hidden": 4, "output": 4, "view1": UNCHANGED, "view2": UNCHANGED}
    with pytest.raises(UserError, match=said):
        simclr.SimClr(**(options | change))
