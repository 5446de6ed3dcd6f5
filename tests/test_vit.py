"""The encoder against timm's, and its tables, initial weights and drop path against their laws."""

import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from adv_ssl.errors import UserError
from adv_ssl.models import vit
from adv_ssl.models.vit import Architecture, Block, ViT, drop_path, encode
from adv_ssl.tasks import byol, supervised

GOLDEN = pathlib.Path(__file__).parent / "golden"
B16 = Architecture(image_size=224, patch=16, width=768, depth=12, heads=12, mlp=3072)
SMALL = Architecture(image_size=8, patch=4, width=16, depth=2, heads=2, mlp=32)
KEY = jax.random.key(0)


def images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 3), np.float32)


def part(golden: dict, prefix: str) -> dict:
    """The arrays under ``prefix`` as a nested dict."""
    names = [name for name in golden if name.startswith(prefix)]
    return unflatten_dict({name.removeprefix(prefix): golden[name] for name in names}, sep="/")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "vit.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def ours(golden) -> dict:
    """Features, logits and gradients of our encoder with the golden file's parameters."""
    encoder = ViT(Architecture(16, 4, 24, 3, 2, 96))
    task = supervised.make(supervised.Supervised(0.0, 0.0, None, None), encoder, 5)
    features = jax.jit(lambda p, x: encode(encoder, p, x, None))

    def weighted(params, pixels):
        logits = task.loss(params, pixels, jnp.zeros((3, 5)), None)[1]["logits"]
        return (logits * golden["weights"]).sum(), logits

    params = part(golden, "params/")
    gradient = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))
    (_, logits), (to_params, to_images) = gradient(params, golden["images"])
    return {
        "features": features(params["encoder"], golden["images"]),
        "logits": logits,
        "grad_images": to_images,
        "grads": flatten_dict(to_params, sep="/"),
    }


@pytest.mark.parametrize("name", ["features", "logits"])
def test_outputs_are_those_of_timm(ours, golden, name):
    np.testing.assert_allclose(ours[name], golden[name], rtol=1e-5, atol=1e-5)


def test_gradient_of_pixels_is_that_of_timm(ours, golden):
    expected = golden["grad_images"]
    np.testing.assert_allclose(
        ours["grad_images"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_gradients_of_parameters_are_those_of_timm(ours, golden):
    expected = flatten_dict(part(golden, "grads/"), sep="/")
    assert ours["grads"].keys() == expected.keys()
    for name, grad in expected.items():
        atol = 1e-5 * np.abs(grad).max()
        np.testing.assert_allclose(ours["grads"][name], grad, rtol=1e-4, atol=atol, err_msg=name)


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_parameter_counts_of_the_paper():
    finetuned = supervised.make(supervised.Supervised(0.1, 2e-5, None, None), ViT(B16), 1000)
    params = jax.eval_shape(finetuned.init, KEY)
    assert count(params) == 86_567_656
    assert count(params["encoder"]) == 86_567_656 - 769 * 1000

    none = byol.Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)
    # The heads' sizes depend on the encoder's width alone.
    encoder = ViT(Architecture(image_size=16, patch=16, width=768, depth=1, heads=12, mlp=8))
    pretrained = byol.make(byol.Byol(4096, 256, none, none), encoder, 0)
    params = jax.eval_shape(pretrained.init, KEY)
    assert count(params["projector"]) == 4_206_592
    assert count(params["predictor"]) == 2_109_440


@pytest.mark.parametrize(("grid", "width"), [(14, 768), (3, 8)])
def test_position_table_is_the_written_out_one(grid, width):
    expected = np.zeros((1 + grid * grid, width))
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                values = [f(at * omega) for at in (column, row) for f in (math.sin, math.cos)]
                expected[1 + row * grid + column, k::quarter] = values
    table = vit.sincos_table(grid, width)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert not table[0].any()  # cls
    same_column = table[1:].reshape(grid, grid, width)[:, 1]
    assert np.ptp(same_column[:, : width // 2], axis=0).max() == 0
    assert np.ptp(same_column[:, width // 2 :], axis=0).max() > 0.5


def test_patches_are_row_major_and_their_pixels_in_row_column_channel_order():
    height, width, patch = 4, 6, 2
    x = np.arange(2 * height * width * 3).reshape(2, height, width, 3)
    expected = [
        [
            [
                x[b, r + i, c + j, channel]
                for i in range(patch)
                for j in range(patch)
                for channel in range(3)
            ]
            for r in range(0, height, patch)
            for c in range(0, width, patch)
        ]
        for b in range(2)
    ]
    np.testing.assert_array_equal(vit.patchify(jnp.asarray(x), patch), expected)


@pytest.fixture(scope="module")
def wide() -> dict[str, np.ndarray]:
    """Initial weights of one block of the paper's width, and of a head for its 1000 classes."""
    encoder = ViT(Architecture(image_size=32, patch=16, width=768, depth=1, heads=12, mlp=3072))
    task = supervised.make(supervised.Supervised(0.1, 2e-5, None, None), encoder, 1000)
    params = jax.jit(task.init)(KEY)
    return {name: np.asarray(p) for name, p in flatten_dict(params, sep="/").items()}


def assert_uniform(x: np.ndarray, bound: float) -> None:
    assert np.abs(x).max() <= bound * (1 + 1e-6)
    # Of n draws the largest is about (1 - 1/n) of the bound.
    assert np.abs(x).max() > (1 - 20 / x.size) * bound
    error = 5 / np.sqrt(x.size)
    np.testing.assert_allclose(x.std(), bound / np.sqrt(3), rtol=error)
    assert abs(x.mean()) < error * bound


@pytest.mark.parametrize("index", range(3))
def test_query_key_and_value_have_the_bound_of_separate_matrices(wide, index):
    kernel = wide["encoder/block_0/attn/qkv/kernel"][:, 768 * index : 768 * (index + 1)]
    assert_uniform(kernel, 0.0625)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("patch_embed/kernel", (6 / (768 + 768)) ** 0.5),
        ("patch_embed/bias", 768**-0.5),
        ("block_0/attn/proj/kernel", (6 / (768 + 768)) ** 0.5),
        ("block_0/mlp/fc1/kernel", (6 / (768 + 3072)) ** 0.5),
        ("block_0/mlp/fc2/kernel", (6 / (768 + 3072)) ** 0.5),
    ],
)
def test_other_kernels_are_xavier_uniform_and_the_patch_bias_is_torchs(wide, name, bound):
    assert_uniform(wide[f"encoder/{name}"], bound)


@pytest.mark.parametrize(("name", "std"), [("encoder/cls_token", 0.02), ("head/kernel", 2e-5)])
def test_cls_token_and_head_are_normal(wide, name, std):
    x = wide[name]
    np.testing.assert_allclose(x.std(), std, rtol=5 / np.sqrt(2 * x.size))
    assert np.abs(x).max() > 2.5 * std


def test_the_rest_starts_as_identity_zero_and_table(wide):
    for name, value in wide.items():
        if name.endswith("scale"):
            assert np.all(value == 1), name
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
    np.testing.assert_array_equal(wide["encoder/pos_embed"][0], vit.sincos_table(2, 768))


def test_drop_path_rates_rise_from_zero_and_both_branches_of_a_block_have_the_same():
    rates = [0.1 * i / 11 for i in range(12)]
    np.testing.assert_allclose(vit.drop_path_rates(0.1, 12), rates, rtol=1e-12)
    assert vit.drop_path_rates(0.1, 1) == [0.0]

    seen = []

    def watch(call, arguments, keywords, context):
        if isinstance(context.module, nn.Dropout):
            seen.append((context.module.path[0], context.module.rate))
        return call(*arguments, **keywords)

    deep = Architecture(image_size=8, patch=4, width=8, depth=12, heads=1, mlp=4)
    with nn.intercept_methods(watch):
        jax.eval_shape(ViT(deep, 0.1).init, KEY, jnp.zeros((1, 4, 48)))
    expected = [(f"block_{i}", rate) for i, rate in enumerate(rates) for _ in range(2)]
    assert seen == [(name, pytest.approx(rate)) for name, rate in expected]


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    rate, count = 0.3, 4000
    x = jnp.ones((count, 3, 2))
    y = np.asarray(drop_path(rate).apply({}, x, False, rngs={"drop_path": KEY}))
    assert np.all(y == y[:, :1, :1])
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
    error = 4 * (rate / (1 - rate) / count) ** 0.5  # four standard errors
    np.testing.assert_allclose(y[:, 0, 0].mean(), 1, atol=error)
    np.testing.assert_array_equal(drop_path(rate).apply({}, x, True), x)


def test_the_branches_of_a_block_are_dropped_independently():
    count = 2000
    block = Block(heads=2, mlp=8, drop_path=0.5, dtype=jnp.float32)
    tokens = jnp.tile(jax.random.normal(KEY, (1, 3, 8)), (count, 1, 1))
    variables = jax.jit(block.init, static_argnums=2)(KEY, tokens[:1], True)
    apply = jax.jit(lambda key: block.apply(variables, tokens, False, rngs={"drop_path": key}))
    outcomes = np.asarray(apply(KEY)).reshape(count, -1).round(4)
    _, shares = np.unique(outcomes, axis=0, return_counts=True)
    np.testing.assert_allclose(shares / count, [0.25] * 4, atol=4 * (0.1875 / count) ** 0.5)


def test_drop_path_needs_a_key_and_a_rate():
    x = images(8, 8)
    dropping, plain = ViT(SMALL, drop_path=0.9), ViT(SMALL)
    params = jax.jit(lambda: vit.init_encoder(plain, KEY))()[1]
    features = jax.jit(lambda encoder, key: encode(encoder, params, x, key), static_argnums=0)
    np.testing.assert_array_equal(features(dropping, None), features(plain, None))
    assert np.any(features(dropping, KEY) != features(plain, None))
    tokens = jnp.ones((2, 3, 4))
    assert drop_path(0.0).apply({}, tokens, False) is tokens  # the first block's rate: draws no key


def test_bfloat16_is_for_the_inside_alone():
    x = images(8, 4)
    exact, rough = ViT(SMALL), ViT(SMALL, dtype=jnp.bfloat16)
    params = jax.jit(lambda: vit.init_encoder(rough, KEY))()[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    features = jax.jit(lambda encoder, p: encode(encoder, p, x, None), static_argnums=0)
    lowered = features.lower(rough, params)
    got = lowered.compile()(params)
    assert got.dtype == jnp.float32
    error = np.abs(got - features(exact, params))
    assert 1e-4 < error.max() < 0.1  # the features have variance 1
    assert error.mean() < 0.02
    # "... stablehlo.dot_general %a, %b, ... : (tensor<2x3xbf16>, tensor<3x4xbf16>) -> ..."
    products = [x for x in lowered.as_text().splitlines() if "stablehlo.dot_general" in x]
    assert len(products) == 1 + 6 * SMALL.depth
    for product in products:
        operands = product.split(" : (")[1].split(") -> ")[0]
        assert operands.count("xbf16>") == 2, product


def test_bfloat16_sums_no_gradient_over_tokens_in_bfloat16():
    """Biases and positions: a sum of many in bfloat16 stops growing."""
    x = images(8, 512)
    exact, rough = ViT(SMALL), ViT(SMALL, dtype=jnp.bfloat16)
    params = jax.jit(lambda: vit.init_encoder(exact, KEY))()[1]
    weights = np.random.default_rng(1).standard_normal((512, SMALL.width)).astype(np.float32)

    def total(params, encoder):
        return (encode(encoder, params, x, None) * weights).sum()

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    fine, coarse = (flatten_dict(gradient(params, e), sep="/") for e in (exact, rough))
    for name, grad in fine.items():
        if "bias" in name or "pos_embed" in name:
            error = np.linalg.norm(coarse[name] - grad) / np.linalg.norm(grad)
            assert error < 0.03, (name, error)


@pytest.mark.parametrize(("size", "patch"), [(4, 4), (20, 5), (32, 8), (9, 1)])
def test_any_size_and_patch(size, patch):
    encoder = ViT(Architecture(size, patch, width=8, depth=1, heads=2, mlp=4))
    out, params = jax.eval_shape(lambda: vit.init_encoder(encoder, KEY))
    assert out.shape == (1, 8)
    assert params["pos_embed"].shape == (1, 1 + (size // patch) ** 2, 8)
    assert params["patch_embed"]["kernel"].shape == (patch * patch * 3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "image_size=8 is not divisible by patch=3"),
        ({"heads": 3}, "width=16 is not divisible by heads=3"),
        ({"width": 6}, "width=6: must be a multiple of 4"),
        ({"depth": 0}, "depth=0: must be 1 or more"),
        ({"mlp": -1}, "mlp=-1: must be 1 or more"),
        ({"image_size": 0}, "image_size=0: must be 1 or more"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    shape = {"image_size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp": 32}
    Architecture(**shape)
    with pytest.raises(UserError, match=message):
        Architecture(**(shape | change))
