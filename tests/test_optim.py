"""Optimizers against written-out references; schedules, layers and masks against the paper's."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_task
from flax.traverse_util import flatten_dict, unflatten_dict

from adv_ssl import optim, recipes
from adv_ssl.config import parse
from adv_ssl.errors import UserError
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.tasks import supervised

GOLDEN = pathlib.Path(__file__).parent / "golden"
KEY = jax.random.key(0)
ADAMW = optim.AdamW(lr=1.0, scaled=False, weight_decay=0.3, b1=0.9, b2=0.95, decayed=("matrix",))
LARS = optim.Lars(
    1.0, False, 0.1, momentum=0.9, trust=1e-3, decayed=("matrix", "token", "position")
)

# Every parameter of a one-block encoder and of what stands on it: name, kind, layer.
ENCODER = (
    ("encoder/cls_token", "token", 0),
    ("encoder/pos_embed", "position", 0),
    ("encoder/patch_embed/kernel", "matrix", 0),
    ("encoder/patch_embed/bias", "bias", 0),
    ("encoder/block_0/norm1/scale", "norm", 1),
    ("encoder/block_0/norm1/bias", "bias", 1),
    ("encoder/block_0/attn/qkv/kernel", "matrix", 1),
    ("encoder/block_0/attn/qkv/bias", "bias", 1),
    ("encoder/block_0/attn/proj/kernel", "matrix", 1),
    ("encoder/block_0/attn/proj/bias", "bias", 1),
    ("encoder/block_0/norm2/scale", "norm", 1),
    ("encoder/block_0/norm2/bias", "bias", 1),
    ("encoder/block_0/mlp/fc1/kernel", "matrix", 1),
    ("encoder/block_0/mlp/fc1/bias", "bias", 1),
    ("encoder/block_0/mlp/fc2/kernel", "matrix", 1),
    ("encoder/block_0/mlp/fc2/bias", "bias", 1),
    ("encoder/fc_norm/scale", "norm", 2),
    ("encoder/fc_norm/bias", "bias", 2),
)
_CLASSIFIER = (*ENCODER, ("head/kernel", "matrix", 2), ("head/bias", "bias", 2))
# MAE has a fixed table of positions and a norm of its own on every token.
_MAE_ENCODER = tuple(
    (name.replace("fc_norm", "norm"), kind, layer)
    for name, kind, layer in ENCODER
    if name != "encoder/pos_embed"
)


def _head(name: str) -> tuple[tuple[str, str, int], ...]:
    """A Projector's."""
    return (
        (f"{name}/fc1/kernel", "matrix", 2),
        (f"{name}/fc1/bias", "bias", 2),
        (f"{name}/norm/scale", "norm", 2),
        (f"{name}/norm/bias", "bias", 2),
        (f"{name}/fc2/kernel", "matrix", 2),
    )


PARAMETERS = {
    "supervised": _CLASSIFIER,
    "rotnet": _CLASSIFIER,
    "mae": (
        *_MAE_ENCODER,
        *(
            (name.replace("encoder", "decoder"), kind, 2)
            for name, kind, _ in _MAE_ENCODER
            if "token" not in name and "patch_embed" not in name
        ),
        ("decoder/mask_token", "token", 2),
        ("decoder/embed/kernel", "matrix", 2),
        ("decoder/embed/bias", "bias", 2),
        ("decoder/predict/kernel", "matrix", 2),
        ("decoder/predict/bias", "bias", 2),
    ),
    "byol": (*ENCODER, *_head("projector"), *_head("predictor")),
    "simclr": (*ENCODER, *_head("projector")),
}


def tree(flat: dict) -> dict:
    return unflatten_dict(flat, sep="/")


def flat(nested: dict) -> dict:
    return flatten_dict(nested, sep="/")


@functools.cache
def abstract(name: str) -> dict:
    """The shapes of a tiny task's parameters."""
    return jax.eval_shape(make_task(name).init, KEY)


@pytest.fixture(scope="module")
def b16() -> dict:
    """The shapes of the paper's fine-tuning model."""
    encoder = ViT(Architecture(image_size=224, patch=16, width=768, depth=12, heads=12, mlp=3072))
    task = supervised.make(supervised.Supervised(0.1, 2e-5, None, None), encoder, 1000)
    return jax.eval_shape(task.init, KEY)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_has_its_kind_and_its_layer(name):
    params = abstract(name)
    expected = PARAMETERS[name]
    assert flat(optim.kinds(params)) == {parameter: kind for parameter, kind, _ in expected}
    assert flat(optim.layers(params)) == {parameter: layer for parameter, _, layer in expected}


def with_rate(options, schedule, gamma, params) -> optax.GradientTransformation:
    """The whole update, as the train step makes it."""
    direction = optim.make(options, gamma, params)
    return optax.chain(direction, optax.scale_by_learning_rate(schedule))


@pytest.mark.parametrize("name", ["encoder/mask_token", "encoder/block_0/gamma", "probe/weight"])
def test_parameter_of_unknown_kind_is_refused(name):
    params = tree({"encoder/cls_token": 0.0, name: 0.0})
    for call in (
        lambda: optim.kinds(params),
        lambda: optim.make(ADAMW, 1.0, params),
    ):
        with pytest.raises(ValueError, match=f"no rule .* knows the parameter {name}"):
            call()


@pytest.mark.parametrize(
    "name", ["probe/fc1/kernel", "encoder/post_norm/scale", "encoder/block_x/b"]
)
def test_parameter_of_unknown_layer_is_refused(name):
    with pytest.raises(ValueError, match=f"no rule .* knows the parameter {name}"):
        optim.layers(tree({"encoder/cls_token": 0.0, name: 0.0}))


@pytest.mark.parametrize(
    ("gamma", "embeddings"), [(0.65, 0.0037), (0.75, 0.0238), (0.85, 0.1209), (0.95, 0.5133)]
)
def test_layer_decay_scales_the_whole_update_with_decay_and_least_rate(b16, gamma, embeddings):
    rng = np.random.default_rng(0)
    params, gradients = (
        jax.tree.map(lambda _: rng.standard_normal(2).astype(np.float32), b16) for _ in range(2)
    )
    # Steps 0, 1 and 2 have the peak, the middle and the least rate, not far below the peak.
    rate = optim.learning_rate(optim.Schedule(0.0, 0.2), 1.0, 2)
    scaled_tx, whole_tx = (with_rate(ADAMW, rate, g, b16) for g in (gamma, 1.0))
    scaled_state, whole_state = scaled_tx.init(params), whole_tx.init(params)
    for _ in range(3):
        scaled, scaled_state = scaled_tx.update(gradients, scaled_state, params)
        whole, whole_state = whole_tx.update(gradients, whole_state, params)
        scaled = flat(scaled)
        for name, update in flat(whole).items():
            place = name.split("/")[1]
            if place.startswith("block_"):
                power = 12 - int(place.removeprefix("block_"))
            else:
                power = 0 if name.startswith(("head/", "encoder/fc_norm/")) else 13
            expected = gamma**power * update
            np.testing.assert_allclose(scaled[name], expected, rtol=1e-5, err_msg=name)
    scales = optim.layer_scales(gamma, 13)
    assert len(scales) == 14
    assert scales[0] == pytest.approx(embeddings, abs=5e-5)
    assert scales[-1] == 1


def decayed_by(options, params: dict) -> set[str]:
    """The parameters that move although their gradient is 0."""
    ones = jax.tree.map(lambda _: np.ones(3, np.float32), params)
    tx = optim.make(options, 1.0, params)
    updates, _ = tx.update(jax.tree.map(np.zeros_like, ones), tx.init(ones), ones)
    return {name for name, update in flat(updates).items() if np.any(update)}


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("byol", {"matrix", "token", "position"}),
        ("mae", {"matrix", "token"}),
        ("rotnet", {"matrix"}),
        ("supervised", {"matrix"}),
    ],
)
def test_the_paper_decays_these_and_no_others(method, kinds):
    config = parse(recipes.recipe(method, "nominal", "imagenet").to_dict())
    parameters = PARAMETERS[method]
    expected = {name for name, kind, _ in parameters if kind in kinds}
    assert config.pretrain.optimizer.weight_decay > 0
    assert decayed_by(config.pretrain.optimizer, abstract(method)) == expected
    tuned = {name for name, kind, _ in PARAMETERS["supervised"] if kind == "matrix"}
    assert decayed_by(config.finetune.optimizer, abstract("supervised")) == tuned


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_schedule_without_one_of_its_halves(warmup):
    rate = optim.learning_rate(optim.Schedule(warmup, 0.1), 1.0, 10)
    expected = [k / 10 if warmup else 0.1 + 0.45 * (1 + np.cos(np.pi * k / 10)) for k in range(10)]
    np.testing.assert_allclose([rate(k) for k in range(10)], expected, rtol=1e-5)


@pytest.mark.parametrize("first", [0.99, 0.996])
@pytest.mark.parametrize("steps", [2, 93_600])
def test_decay_of_the_average_goes_from_first_to_one_as_half_a_cosine(first, steps):
    decay = optim.cosine(first, 1.0, steps)
    for k in (0, steps // 2, steps):
        expected = 1 - (1 - first) * (1 + np.cos(np.pi * k / steps)) / 2
        np.testing.assert_allclose(decay(k), expected, atol=1e-7)
    np.testing.assert_allclose(decay(steps // 2), (1 + first) / 2, atol=1e-7)


def test_lars_is_the_written_out_one():
    """Decay, trust ratio, momentum, rate: in this order, while the rate changes."""
    rng = np.random.default_rng(0)
    shapes = {
        "encoder/cls_token": (1, 1, 4),
        "encoder/pos_embed": (1, 5, 4),
        "encoder/patch_embed/kernel": (6, 4),
        "encoder/patch_embed/bias": (4,),
        "encoder/fc_norm/scale": (4,),
        "head/kernel": (4, 3),
    }
    rates = np.array([0.0, 2.0, 4.0, 1.0, 0.5], np.float32)
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    params["head/kernel"] *= 0  # its trust ratio is 1 in the first steps
    moments = {name: np.zeros(shape) for name, shape in shapes.items()}

    tx = with_rate(LARS, lambda step: jnp.asarray(rates)[step], 1.0, tree(params))
    ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), tree(params))
    state = tx.init(ours)
    for rate in rates:
        gradients = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        updates, state = tx.update(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), tree(gradients)), state, ours
        )
        ours = optax.apply_updates(ours, updates)
        for name, p in params.items():
            g = gradients[name]
            if not name.endswith(("bias", "scale")):
                g = g + 0.1 * p
                if np.linalg.norm(p) > 0:
                    g = g * 1e-3 * np.linalg.norm(p) / np.linalg.norm(g)
            moments[name] = 0.9 * moments[name] + g
            params[name] = p - rate * moments[name]
        for name, p in flat(ours).items():
            np.testing.assert_allclose(p, params[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_sgd_is_the_written_out_one():
    """E-SGD: the whole gradient is cut to norm 1, then momentum, without Nesterov or decay."""
    params = tree({"encoder/cls_token": np.ones(2, np.float32), "head/kernel": np.ones(2)})
    tx = optim.make(optim.Sgd(1.0, False, momentum=0.9, clip=1.0), 1.0, params)
    state, moment = tx.init(params), np.zeros(4)
    for g in np.float32([[3, 0, 0, 4], [0.1, 0.2, 0, 0.1], [-6, 8, 0, 0]]):  # long, short, long
        gradient = tree({"encoder/cls_token": g[:2], "head/kernel": g[2:]})
        updates, state = tx.update(gradient, state, params)
        moment = 0.9 * moment + g / max(1, np.linalg.norm(g))
        np.testing.assert_allclose(np.concatenate([*flat(updates).values()]), moment, rtol=1e-5)


def test_lars_without_gradient_and_decay_stands_still():
    options = optim.Lars(1.0, True, 0.0, 0.9, 1e-3, ("matrix",))
    assert decayed_by(options, abstract("byol")) == set()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "adamw.npz") as file:
        return dict(file)


def part(golden: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def test_adamw_is_torchs_with_the_groups_of_fine_tuning(golden):
    params = part(golden, "params/")
    gradients, expected = part(golden, "grads/"), part(golden, "steps/")
    rates = jnp.asarray(golden["rates"])
    tx = with_rate(ADAMW, lambda step: rates[step], 0.65, tree(params))
    ours, state = tree(params), tx.init(tree(params))
    for step in range(len(rates)):
        gradient = tree({name: g[step] for name, g in gradients.items()})
        updates, state = tx.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, p in flat(ours).items():
            np.testing.assert_allclose(
                p, expected[name][step], rtol=1e-5, atol=1e-6, err_msg=f"{name}, step {step}"
            )


def test_table_says_what_is_applied(b16):
    options = optim.AdamW(5e-4, True, 0.05, 0.9, 0.999, ("matrix",))
    header, *rows, total = optim.table(options, 1e-3, 0.65, b16).splitlines()
    assert header.split() == ["layer", "parameters", "decayed", "scale", "peak", "rate"]
    assert len(rows) == 14
    block = 7_087_872  # of which the four kernels are 12 * 768 * 768
    sizes = [742_656, *[block] * 12, 770_536]
    decayed = [768 * 768, *[12 * 768 * 768] * 12, 768_000]
    names = ["embeddings", *[f"block_{i}" for i in range(12)], "fc_norm, heads"]
    for i, row in enumerate(rows):
        layer, rest = row.split(maxsplit=1)
        assert int(layer) == i
        assert rest.startswith(names[i])
        size, decay, scale, rate = rest.removeprefix(names[i]).split()
        assert int(size.replace(",", "")) == sizes[i]
        assert int(decay.replace(",", "")) == decayed[i]
        assert float(scale) == pytest.approx(0.65 ** (13 - i), rel=5e-3)
        assert float(rate) == pytest.approx(1e-3 * 0.65 ** (13 - i), rel=5e-3)
    assert total.split() == ["total", "86,567,656"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.AdamW(-1.0, True, 0.0, 0.9, 0.9, ()), "lr=-1.0: must be 0 or more"),
        (
            lambda: optim.AdamW(1.0, True, -1.0, 0.9, 0.9, ()),
            "weight_decay=-1.0: must be 0 or more",
        ),
        (lambda: optim.AdamW(1.0, True, 0.0, 1.0, 0.9, ()), r"b1=1.0: must be in \[0, 1\)"),
        (lambda: optim.AdamW(1.0, True, 0.0, 0.9, -0.1, ()), r"b2=-0.1: must be in \[0, 1\)"),
        (lambda: optim.AdamW(1.0, True, 0.0, 0.9, 0.9, ("bias",)), "decayed has 'bias'"),
        (lambda: optim.Lars(1.0, True, 0.0, 1.0, 1e-3, ()), r"momentum=1.0: must be in \[0, 1\)"),
        (lambda: optim.Lars(1.0, True, 0.0, 0.9, 0.0, ()), "trust=0.0: must be above 0"),
        (lambda: optim.Sgd(1.0, True, 0.9, 0.0), "clip=0.0: must be above 0"),
        (lambda: optim.Sgd(1.0, True, -0.1, 1.0), r"momentum=-0.1: must be in \[0, 1\)"),
        (lambda: optim.Schedule(1.5, 0.0), r"warmup=1.5: must be in \[0, 1\]"),
        (lambda: optim.Schedule(0.5, -1.0), "min_lr=-1.0: must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
