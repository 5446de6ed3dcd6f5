"""The twelve configurations against the method's specification, and all of them as shapes."""

import dataclasses
import functools
import importlib

import jax
import numpy as np
import pytest
from conftest import ROOT

from adv_ssl import optim, recipes, stage, train
from adv_ssl.config import Config, parse
from adv_ssl.errors import UserError
from adv_ssl.evaluation import robust

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py"))
BEYOND = ["continue_mae_l2", "simclr_l2"]  # of no method of the paper
TWELVE = [name for name in CONFIGS if not name.startswith("transfer") and name not in BEYOND]
RADII = {  # Table 1's caption
    "supervised": (6 / 255, 4.0),
    "rotnet": (4 / 255, 4.0),
    "mae": (1 / 255, 0.5),
    "byol": (2 / 255, 2.0),
}


def load(name: str, argument: str) -> Config:
    return parse(importlib.import_module(f"configs.{name}").get_config(argument).to_dict())


def pretraining(method: str) -> Config:
    return load(f"{method}_nominal", "imagenet").pretrain


def test_there_are_twelve_and_two_for_transfer_and_those_beyond_the_paper():
    methods = ("byol", "mae", "rotnet", "supervised")
    assert [f"{m}_{t}" for m in methods for t in ("l2", "linf", "nominal")] == TWELVE
    assert set(CONFIGS) - set(TWELVE) == {"transfer_adamw", "transfer_sgd", *BEYOND}
    assert set(recipes.METHODS) == set(methods)  # the paper's grid


@pytest.mark.parametrize("name", TWELVE)
def test_radii_are_those_of_table_1_and_all_else_is_the_nominal_recipe(name):
    method, threat = name.split("_")
    made, nominal = load(name, "imagenet"), load(f"{method}_nominal", "imagenet")
    attack = made.pretrain.attack
    if threat == "nominal":
        assert attack is None
    else:
        radius = RADII[method][threat == "l2"]
        assert (attack.norm, attack.epsilon) == (threat, pytest.approx(radius))
        assert (attack.steps, attack.step_size, attack.start) == (2, 0.625, "ball")
    assert made.finetune == nominal.finetune
    assert made.finetune == load("byol_nominal", "imagenet").finetune
    assert made.evaluate == nominal.evaluate
    assert vars(made.pretrain) | {"attack": None} == vars(nominal.pretrain)


def test_simclr_is_byol_but_for_its_task():
    made, byol = load("simclr_l2", "imagenet"), load("byol_l2", "imagenet")
    task = made.pretrain.task
    assert (task.temperature, task.hidden, task.output) == (0.1, 2048, 128)
    assert task.view1 == task.view2
    assert (task.view1.blur_prob, task.view1.solarize_prob) == (0.5, 0.0)
    assert made.pretrain.ema is None
    rest = {"task": None, "ema": None}
    assert vars(made.pretrain) | rest == vars(byol.pretrain) | rest
    assert made.finetune == byol.finetune
    small = load("simclr_l2", "digits").pretrain
    assert (small.task.temperature, small.task.hidden, small.attack.epsilon) == (0.5, 256, 0.125)
    with pytest.raises(UserError, match=r"scale 'digit'.*choose from imagenet, cifar10, digits"):
        load("simclr_l2", "digit")


def test_the_continuation_is_adversarial_mae_but_short():
    made, mae = load("continue_mae_l2", "imagenet"), load("mae_l2", "imagenet")
    changed = {k for k, v in vars(made.pretrain).items() if v != vars(mae.pretrain)[k]}
    assert changed == {"batch_size", "epochs", "learned_positions"}
    assert made.init_from == "WEIGHTS"
    assert dataclasses.replace(made, pretrain=mae.pretrain, init_from="") == mae
    for scale in ("cifar10", "digits"):
        small = load("continue_mae_l2", scale).pretrain
        assert small.attack == load("mae_l2", scale).pretrain.attack


# method: images, epochs, peak rate, decay, b1 or momentum, b2, share of warm-up, drop path
TRAINING = {
    "supervised": (300, 1.6e-3, 0.3, 0.9, 0.95, 20 / 300, 0.1),
    "rotnet": (300, 1.6e-3, 0.3, 0.9, 0.95, 20 / 300, 0.1),
    "mae": (800, 2.4e-3, 0.05, 0.9, 0.95, 40 / 800, 0.0),
    "byol": (300, 4.8, 1e-6, 0.9, None, 10 / 300, 0.0),
}


@pytest.mark.parametrize("method", TRAINING)
def test_the_papers_pretraining(method):
    epochs, peak, decay, first, second, warmup, drop_path = TRAINING[method]
    made = pretraining(method)
    options = made.optimizer
    assert (made.batch_size, made.epochs, made.drop_path) == (4096, epochs, drop_path)
    assert optim.peak_rate(options, 4096) == pytest.approx(peak)
    assert options.weight_decay == decay
    if second:
        assert (options.b1, options.b2) == (first, second)
    else:
        assert (options.momentum, options.trust) == (first, 1e-3)
    assert made.schedule == optim.Schedule(warmup, 0.0)
    assert made.layer_decay == 1.0
    # 312 steps an epoch, the last, short batch dropped
    assert stage.total_steps(made, 1_281_167) == 312 * epochs


@pytest.mark.parametrize("method", TRAINING)
def test_the_learning_rate_of_every_recipe(method):
    epochs, peak, *_, warmup, _ = TRAINING[method]
    steps = 312 * epochs
    ramp = round(warmup * steps)
    made = pretraining(method)
    rate = optim.learning_rate(made.schedule, optim.peak_rate(made.optimizer, 4096), steps)
    for t in (0, 1, ramp // 2, ramp - 1):
        assert float(rate(t)) == pytest.approx(peak * t / ramp, rel=1e-5, abs=peak * 1e-6)
    for t in (ramp, (ramp + steps) // 2, steps - 1):
        cosine = (1 + np.cos(np.pi * (t - ramp) / (steps - ramp))) / 2
        assert float(rate(t)) == pytest.approx(peak * cosine, rel=1e-3, abs=peak * 1e-8)


def test_the_papers_averages():
    for method in ("supervised", "rotnet"):
        ema = pretraining(method).ema
        assert (ema.decay, ema.final_decay, ema.own_seed, ema.used) == (0.9999, 0.9999, False, True)
    assert pretraining("mae").ema is None
    ema = pretraining("byol").ema
    assert (ema.decay, ema.final_decay, ema.own_seed, ema.used) == (0.99, 1.0, True, False)


def test_the_papers_augmentation():
    supervised, rotnet, mae, byol = (
        pretraining(m) for m in ("supervised", "rotnet", "mae", "byol")
    )
    for made in (supervised, rotnet):
        assert (made.augment.crop, made.augment.min_area, made.augment.flip) == (
            "torchvision", 0.08, True,
        )  # fmt: skip
        options = made.augment.randaugment
        assert (options.ops, options.prob, options.magnitude, options.magnitude_std) == (
            2, 0.5, 9.0, 0.5,
        )  # fmt: skip
        assert (made.task.label_smoothing, made.task.head_std) == (0.1, 0.02)
    mixing = supervised.task.mixing
    assert (mixing.mixup, mixing.cutmix, mixing.cutmix_prob, mixing.group) == (0.8, 1.0, 0.5, 32)
    assert supervised.task.erasing is None
    assert not hasattr(rotnet.task, "mixing")
    assert vars(mae.augment) == {
        "crop": "torchvision", "min_area": 0.2, "flip": True, "randaugment": None,
    }  # fmt: skip
    assert vars(byol.augment) == {
        "crop": "byol", "min_area": 0.08, "flip": True, "randaugment": None,
    }  # fmt: skip


def test_the_colours_of_byols_views():
    """C-BYOL photometric: the views differ in blur and solarize alone."""
    shared = {
        "jitter_prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
        "grayscale_prob": 0.2, "blur_sigma": (0.1, 2.0),
    }  # fmt: skip
    task = pretraining("byol").task
    assert vars(task.view1) == shared | {"blur_prob": 1.0, "solarize_prob": 0.0}
    assert vars(task.view2) == shared | {"blur_prob": 0.1, "solarize_prob": 0.2}


def test_the_papers_evaluation():
    """F, A24, A25: a run's own scores, and those of ``adv_ssl.evaluate``."""
    made = load("byol_l2", "imagenet").evaluate
    radii = (0.125, 0.25, 0.5, 1.0, 2.0)
    assert (made.split, made.resize) == ("validation", 256)
    assert made.attacks == tuple(("l2", radius, 40) for radius in radii)
    assert (made.attacked, made.reach) == (5000, 2.5)
    assert tuple(map(float, robust.RADII["l2"])) == radii
    assert robust.IMAGES == 5000
    assert robust.SEARCHES == {
        "pgd": ("pgd",), "apgd": ("apgd-ce", "apgd-t"),
        "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    }  # fmt: skip
    standard = {"steps": 100, "targets": 9, "queries": 5000, "pgd_steps": 40, "restarts": 1}
    assert vars(robust.STANDARD) == standard


def test_the_papers_models():
    made = load("mae_nominal", "imagenet")
    assert made.dtype == "bfloat16"
    assert vars(made.model) == {
        "image_size": 224, "patch": 16, "width": 768, "depth": 12, "heads": 12, "mlp": 3072,
    }  # fmt: skip
    assert vars(made.pretrain.task) == {
        "mask_ratio": 0.75, "width": 512, "depth": 8, "heads": 16, "mlp": 2048,
    }  # fmt: skip
    assert not made.pretrain.learned_positions
    assert made.finetune.learned_positions
    assert all(pretraining(m).learned_positions for m in ("supervised", "rotnet", "byol"))  # B8
    byol = pretraining("byol")
    assert (byol.task.hidden, byol.task.output) == (4096, 256)


def test_the_papers_fine_tuning():
    made = load("mae_l2", "imagenet").finetune
    assert (made.batch_size, made.epochs, made.drop_path, made.layer_decay) == (512, 100, 0.1, 0.65)
    assert (made.attack, made.ema) == (None, None)
    options = made.optimizer
    assert (options.weight_decay, options.b1, options.b2) == (0.05, 0.9, 0.999)
    steps = stage.total_steps(made, 1_281_167)
    assert steps == 250_200
    task = made.task
    assert (task.label_smoothing, task.head_std) == (0.1, 2e-5)
    assert task.mixing == pretraining("supervised").task.mixing
    assert made.augment == pretraining("supervised").augment
    assert (task.erasing.prob, task.erasing.area, task.erasing.ratio) == (0.25, (0.02, 1 / 3), 0.3)
    rate = optim.learning_rate(made.schedule, optim.peak_rate(options, 512), steps)
    expected = {
        0: 0.0,
        6_255: 5e-4,
        12_509: 1e-3 * 12_509 / 12_510,
        12_510: 1e-3,
        (12_510 + steps) // 2: (1e-3 + 1e-6) / 2,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, err_msg=str(step))
    np.testing.assert_allclose(rate(steps - 1), 1e-6, rtol=1e-3)


def test_the_other_reading_of_the_learning_rate_is_one_switch():
    """D3: 5e-4 for 256 images, or for the batch of 512 as it is."""
    raw = recipes.recipe("mae", "l2", "imagenet")
    assert optim.peak_rate(parse(raw.to_dict()).finetune.optimizer, 512) == pytest.approx(1e-3)
    raw.finetune.optimizer.scaled = False
    assert optim.peak_rate(parse(raw.to_dict()).finetune.optimizer, 512) == pytest.approx(5e-4)


def test_byol_with_adamw_is_one_override():
    made = load("byol_l2", "imagenet,adamw").pretrain
    options = made.optimizer
    assert (options.b1, options.b2, options.weight_decay) == (0.9, 0.999, 0.1)
    assert options.decayed == ("matrix",)
    assert optim.peak_rate(options, 4096) == pytest.approx(2.4e-3)
    assert made.schedule.warmup == 40 / 300
    same = vars(pretraining("byol")) | {
        name: getattr(made, name) for name in ("optimizer", "schedule", "attack")
    }
    assert vars(made) == same


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_papers_transfer(optimizer):
    made = load(f"transfer_{optimizer}", "cifar100")
    tuning = made.finetune
    assert made.pretrain is None
    assert made.data.name == "cifar100:3.0.2"
    assert (tuning.split, made.evaluate.split, made.evaluate.resize) == ("train", "test", 0)
    assert vars(tuning.augment) == {
        "crop": "none", "min_area": 1.0, "flip": True, "randaugment": None,
    }  # fmt: skip
    task = tuning.task
    assert (task.mixing, task.erasing, task.label_smoothing) == (None, None, 0.0)
    assert tuning.batch_size == 512
    steps = stage.total_steps(tuning, 50_000)
    rate = optim.learning_rate(tuning.schedule, optim.peak_rate(tuning.optimizer, 512), steps)
    if optimizer == "sgd":
        assert steps == 2500
        assert (tuning.optimizer.momentum, tuning.optimizer.clip) == (0.9, 1.0)
        assert (tuning.drop_path, tuning.layer_decay, task.head_std) == (0.0, 1.0, 0.0)
        expected = {0: 0.0, 250: 0.005, 500: 0.01, 1500: 0.005, 2500: 0.0}
        for t, value in expected.items():
            np.testing.assert_allclose(rate(t), value, atol=1e-8)
    else:
        assert steps == 9700
        assert (tuning.drop_path, tuning.layer_decay) == (0.1, 0.65)
        assert float(rate(485)) == pytest.approx(1e-3)
        assert (task.head_std, tuning.schedule.min_lr) == (2e-5, 1e-6)


def test_the_sets_of_transfer():
    splits = {
        name: (made.data.name, made.finetune.split, made.evaluate.split)
        for name in recipes.paper.TRANSFER_SETS
        for made in [load("transfer_sgd", name)]
    }
    assert splits == {
        "cifar10": ("cifar10:3.0.2", "train", "test"),
        "cifar100": ("cifar100:3.0.2", "train", "test"),
        "sun397": ("sun397/tfds:4.0.0", "train+validation", "test"),
        "resisc45": ("resisc45:3.0.0", "train[:80%]", "train[80%:]"),
        "dmlab": ("dmlab:2.0.1", "train+validation", "test"),
    }


TRACED = set()  # fine-tuning is alike for all of a scale


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("name", [*TWELVE, *BEYOND])
def test_a_step_of_both_stages_has_the_right_shapes(name, scale):
    """Abstract evaluation: every one traces, and gives back a state like its own.

    With fewer blocks, which have all one shape.
    """
    raw = importlib.import_module(f"configs.{name}").get_config(scale)
    raw.model.depth = 2
    if "mae" in name:
        raw.pretrain.task.depth = 1
    config = parse(raw.to_dict())
    key, step = jax.random.key(0), train.train_step.__wrapped__
    new = [
        made for made in (config.pretrain, config.finetune) if (config.model, made) not in TRACED
    ]
    TRACED.update((config.model, made) for made in new)
    for made in new:
        recipe = stage.make_recipe(made, stage.make_task(config, made, 10), 100)
        state = jax.eval_shape(functools.partial(stage.random_state, made, recipe), key)
        side, size = config.model.image_size, made.group * 2
        views = (made.task.views,) if made.task.views > 1 else ()
        batch = {
            "image": jax.ShapeDtypeStruct((size, *views, side, side, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((size,), np.int32),
        }
        after, metrics = jax.eval_shape(functools.partial(step, recipe), state, batch, key)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(state)
        ]
        assert all(value.shape == () for value in metrics.values())
        assert ("attack/gain" in metrics) == (made.attack is not None)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_says_where_it_comes_from(name):
    raw = importlib.import_module(f"configs.{name}").get_config().to_dict()
    sources = raw.pop("sources")

    def check(value, source, path):
        if isinstance(value, dict) and value:
            assert value.keys() == source.keys(), path
            for key in value:
                check(value[key], source[key], f"{path}.{key}")
            return
        flag, where, _ = source
        assert flag in ("PAPER", "REF", "OPEN", "OURS"), path
        assert where or flag == "OURS", path

    check(raw, sources, name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: recipes.recipe("byol", "l2", "imagenette"), "scale 'imagenette'"),
        (lambda: recipes.recipe("mae", "l2", "imagenet,adamw"), "variant 'adamw'.*from none"),
        (lambda: recipes.recipe("byol", "l2", "imagenet,lamb"), "variant 'lamb'.*from adamw"),
        (lambda: recipes.recipe("byol", "l2", "digits,adamw"), "variant 'adamw'.*from none"),
        (lambda: recipes.transfer("sgd", "pets"), "set 'pets'.*choose from cifar10"),
        (lambda: recipes.transfer("sgd", "cifar10,big"), "scale 'big'"),
    ],
)
def test_what_there_is_no_recipe_for(make, said):
    with pytest.raises(UserError, match=said):
        make()
