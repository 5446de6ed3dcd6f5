"""MAE against a PyTorch re-implementation, and the rules of its attack."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from adv_ssl import attacks
from adv_ssl.errors import UserError
from adv_ssl.models.vit import Architecture, ViT, patchify, sincos_table, unpatchify
from adv_ssl.task import adversarial
from adv_ssl.tasks import mae

GOLDEN = pathlib.Path(__file__).parent / "golden"
KEY = jax.random.key(0)
SMALL = Architecture(image_size=12, patch=4, width=16, depth=2, heads=2, mlp=32)
OPTIONS = mae.Mae(mask_ratio=0.6, width=12, depth=1, heads=3, mlp=24)  # 3 of 9 patches are seen
TASK = mae.make(OPTIONS, ViT(SMALL, learned_positions=False), 0)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mae.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def ours(golden) -> dict:
    """Losses and gradients with the golden file's parameters, mask and attacked patches."""
    flat = {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}
    seen = golden["seen"]
    hidden = np.stack([np.setdiff1d(np.arange(9), row) for row in seen])
    restore = np.argsort(np.concatenate([seen, hidden], axis=1), axis=1)
    patches = patchify(jnp.asarray(golden["images"]), 4)
    context = mae.Masked(jnp.asarray(seen), jnp.asarray(restore), *mae.normalised(patches))

    def total(params, x):
        losses, _ = TASK.loss(params, x, context, None)
        return losses.sum(), losses

    gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, losses), (grads, grad_x) = gradient(unflatten_dict(flat, sep="/"), golden["x"])
    return {"losses": losses, "grad_x": grad_x, "grads": flatten_dict(grads, sep="/")}


def test_losses_are_those_of_torch(ours, golden):
    np.testing.assert_allclose(ours["losses"], golden["losses"], rtol=1e-5)


def test_gradient_of_the_visible_pixels_is_that_of_torch(ours, golden):
    expected = golden["grad_x"]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        ours["grad_x"], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_gradients_of_parameters_are_those_of_torch(ours, golden):
    expected = {k.removeprefix("grads/"): v for k, v in golden.items() if k.startswith("grads/")}
    assert ours["grads"].keys() == expected.keys()
    for name, grad in expected.items():
        atol = 1e-5 * np.abs(grad).max()
        np.testing.assert_allclose(ours["grads"][name], grad, rtol=1e-5, atol=atol, err_msg=name)


def batch(count: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(TASK.init)(KEY)


def whole(x: np.ndarray, context: mae.Masked) -> np.ndarray:
    """The visible patches where they stand [B, N, P], zeros elsewhere."""
    patches = np.zeros(context.target.shape, np.float32)
    for b, places in enumerate(np.asarray(context.visible)):
        patches[b, places] = x[b]
    return patches


def test_what_is_seen_are_the_patches_of_the_image_at_their_places(params):
    x, context, _ = TASK.prepare(params, None, batch(), KEY)
    clean = np.asarray(patchify(jnp.asarray(batch()["image"], jnp.float32) / 255, 4))
    shown = whole(np.asarray(x), context)
    seen = np.asarray(context.restore) < 3
    assert x.shape == (64, 3, 48)
    assert np.all(seen.sum(axis=1) == 3)
    np.testing.assert_allclose(shown[seen], clean[seen], rtol=1e-6)
    assert not shown[~seen].any()
    for row, places in zip(seen, np.asarray(context.visible), strict=True):
        assert set(np.flatnonzero(row)) == set(places)


def test_every_patch_is_seen_equally_often_and_every_image_has_its_own_mask(params):
    _, context, _ = TASK.prepare(params, None, batch(3000), KEY)
    often = (np.asarray(context.restore) < 3).mean(axis=0)
    np.testing.assert_allclose(often, 1 / 3, atol=4 * math.sqrt(2 / 9 / 3000))
    assert len(np.unique(np.sort(context.visible, axis=1), axis=0)) == 84  # all of 3 from 9


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_attack_spends_its_whole_budget_on_visible_patches_alone(params, norm, epsilon):
    """A19, A20: drawn, measured and projected there; the mask and the target stay."""
    attack = attacks.pgd(norm, epsilon, 3)
    calm, attacked = (
        jax.jit(task.prepare)(params, None, {"image": 64 + batch()["image"] // 2}, KEY)
        for task in (TASK, adversarial(TASK, attack))
    )
    for before, after in zip(calm.context, attacked.context, strict=True):
        np.testing.assert_array_equal(before, after)
    delta = whole(np.asarray(attacked.x - calm.x), calm.context)
    hidden = np.asarray(calm.context.restore) >= 3
    assert not delta[hidden].any()
    order = np.inf if norm == "linf" else 2
    radius = np.linalg.norm(delta.reshape(64, -1), ord=order, axis=1) / epsilon
    assert np.all(radius <= 1 + 1e-5)
    assert np.median(radius) > 0.99, radius
    before, after = (TASK.loss(params, p.x, calm.context, None)[0] for p in (calm, attacked))
    assert np.all(after > before)


def test_the_target_has_mean_0_and_unbiased_variance_1():
    patches = patchify(jnp.asarray(batch()["image"], jnp.float32) / 255, 4)
    target, mean, std = mae.normalised(patches)
    np.testing.assert_allclose(target.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(target, axis=-1, ddof=1), 1, rtol=1e-4)
    flat = jnp.full((1, 1, 48), 0.25)
    assert np.all(np.isfinite(mae.normalised(flat)[0]))
    pixels = (np.asarray(patches).reshape(64, 9, 16, 3) - mae.MEAN) / mae.STD
    np.testing.assert_allclose(target * std + mean, pixels.reshape(64, 9, 48), atol=1e-5)


def test_hidden_pixels_reach_the_loss_through_the_target_alone(params):
    x, context, _ = TASK.prepare(params, None, batch(4), KEY)
    target = jnp.zeros_like(context.target)
    _, aux = TASK.loss(params, x, context, None)
    removed = np.asarray(context.restore) >= 3
    expected = (np.square(aux["prediction"]).mean(-1) * removed).sum(1) / 6
    losses, _ = TASK.loss(params, x, context._replace(target=target), None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_with_remat_the_blocks_of_both_are_computed_again(params):
    """Of encoder and decoder; to the same losses and gradients."""
    again = mae.make(OPTIONS, ViT(SMALL, learned_positions=False, remat=True), 0)
    x, context, _ = TASK.prepare(params, None, batch(4), KEY)
    made = []
    for task, blocks in ((TASK, 0), (again, SMALL.depth + OPTIONS.depth)):

        def total(params, task=task):
            return task.loss(params, x, context, None)[0].sum()

        steps = jax.make_jaxpr(total)(params).eqns
        assert sum("remat" in step.primitive.name for step in steps) == blocks
        made.append(jax.value_and_grad(total)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *made)


def test_parameter_counts_of_the_paper():
    """B24 counts the fixed position tables, which are no parameters here."""
    b16 = Architecture(image_size=224, patch=16, width=768, depth=12, heads=12, mlp=3072)
    task = mae.make(mae.Mae(0.75, 512, 8, 16, 2048), ViT(b16, learned_positions=False), 0)
    params = jax.eval_shape(task.init, KEY)
    sizes = {k: sum(math.prod(p.shape) for p in jax.tree.leaves(v)) for k, v in params.items()}
    tables = {"encoder": sincos_table(14, 768).size, "decoder": sincos_table(14, 512).size}
    assert sizes["encoder"] + tables["encoder"] == 85_798_656
    assert sizes["decoder"] + tables["decoder"] == 26_109_184
    assert "pos_embed" not in params["encoder"]


def test_the_decoder_starts_as_the_encoder_does():
    """B9: kernels xavier-uniform, biases 0, norms 1, the mask token N(0, 0.02)."""
    wide = Architecture(image_size=32, patch=16, width=256, depth=1, heads=2, mlp=16)
    task = mae.make(mae.Mae(0.5, 512, 1, 16, 512), ViT(wide, learned_positions=False), 0)
    for name, value in flatten_dict(jax.jit(task.init)(KEY)["decoder"], sep="/").items():
        if name.endswith("kernel"):
            outputs = value.shape[1] // (3 if "qkv" in name else 1)  # each of the three by itself
            bound = (6 / (value.shape[0] + outputs)) ** 0.5
            assert 0.99 * bound < np.abs(value).max() <= bound, name
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.02), name
        elif name == "mask_token":
            assert value.std() == pytest.approx(0.02, rel=0.15)
        else:
            assert np.all(value == (1 if name.endswith("scale") else 0)), name


@pytest.fixture(scope="module")
def drawn(params) -> dict:
    """Pictures, as patches: of a right prediction; of brighter visible patches and what they give;
    and what the latter are made of.
    """

    @jax.jit
    def draw(params):
        x, context, _ = TASK.prepare(params, None, batch(4), KEY)
        brighter = jnp.clip(x + 0.1, 0, 1)
        predicted = TASK.loss(params, brighter, context, None)[1]["prediction"]
        made = {
            "right": mae.pictures(x, context, {"prediction": context.target}),
            "attacked": mae.pictures(brighter, context, {"prediction": predicted}),
        }
        patches = jax.tree.map(lambda image: patchify(image, 4), made)
        return patches | {"x": brighter, "context": context, "prediction": predicted}

    return jax.tree.map(np.asarray, draw(params))


CLEAN = np.asarray(patchify(jnp.asarray(batch(4)["image"] / np.float32(255)), 4))


def test_pictures_show_what_there_is(drawn):
    seen, right = drawn["context"].restore < 3, drawn["right"]
    np.testing.assert_allclose(right["original"], CLEAN, atol=1e-5)
    np.testing.assert_allclose(right["reconstruction"], CLEAN, atol=1e-5)  # it predicted right
    assert np.all(right["input"][~seen] == 0.5)
    np.testing.assert_allclose(right["input"][seen], CLEAN[seen], rtol=1e-6)


def test_pictures_under_attack_show_the_attacked_patches_and_the_clean_image(drawn):
    """And hidden patches as predicted from the attacked ones, with the clean ones' contrast."""
    seen, attacked = drawn["context"].restore < 3, drawn["attacked"]
    np.testing.assert_allclose(attacked["original"], CLEAN, atol=1e-5)
    for name in ("input", "reconstruction"):
        shown = whole(drawn["x"], drawn["context"])
        np.testing.assert_allclose(attacked[name][seen], shown[seen], rtol=1e-6)
    units = ((CLEAN.reshape(4, 9, 16, 3) - mae.MEAN) / mae.STD).reshape(4, 9, -1)
    lent = units.std(-1, ddof=1, keepdims=True), units.mean(-1, keepdims=True)
    pixels = (drawn["prediction"] * lent[0] + lent[1]).reshape(4, 9, 16, 3)
    pixels = np.clip(pixels * mae.STD + mae.MEAN, 0, 1).reshape(4, 9, -1)
    np.testing.assert_allclose(attacked["reconstruction"][~seen], pixels[~seen], atol=1e-4)


def test_unpatchify_is_the_inverse_of_patchify():
    images = jnp.asarray(batch(2)["image"])
    np.testing.assert_array_equal(unpatchify(patchify(images, 4), 4), images)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.95, "leaves 0 visible"), (1.0, "leaves 0 visible"), (0.0, "leaves 9 visible")],
)
def test_a_mask_of_all_or_nothing_is_refused(ratio, said):
    options = mae.Mae(ratio, 12, 1, 3, 24)
    with pytest.raises(UserError, match=f"mask_ratio={ratio} of 9 patches {said}: .* 1 to 8"):
        mae.make(options, ViT(SMALL), 0)


def test_an_impossible_decoder_is_refused():
    with pytest.raises(UserError, match="width=10: must be a multiple of 4 and of heads=3"):
        mae.Mae(0.75, 10, 1, 3, 24)
    with pytest.raises(UserError, match="mlp=0: must be 1 or more"):
        mae.Mae(0.75, 12, 1, 3, 0)
