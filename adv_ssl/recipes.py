"""The recipes: every value with its line of the method's specification and who states it.

A recipe is a tree of ``Value``s. ``config_dict`` splits it into the configuration and its
``sources``, so that the report can print, beside each value of a run, where it comes from and
whether the user changed it.
Scales: ``imagenet`` is the paper's; ``cifar10`` and ``digits`` are the same method made small.
"""

from typing import Any, NamedTuple

import ml_collections

from adv_ssl.errors import UserError

Tree = dict[str, Any]


class Value(NamedTuple):
    """A value of a recipe and where it comes from."""

    value: Any
    flag: str
    where: str


def PAPER(value: Any, where: str) -> Value:
    """Stated by the paper."""
    return Value(value, "PAPER", where)


def REF(value: Any, where: str) -> Value:
    """Stated by the reference that the paper names, or by its released code."""
    return Value(value, "REF", where)


def OPEN(value: Any, where: str) -> Value:
    """Left open by both; the best supported choice."""
    return Value(value, "OPEN", where)


def OURS(value: Any, where: str = "") -> Value:
    """Ours: a smaller scale, or a matter of running."""
    return Value(value, "OURS", where)


SCALES = ("imagenet", "cifar10", "digits")

# The best radius of each method and norm (Table 1's caption), and one suited to the small scales:
# there an L2 radius is about the same root mean square per pixel.
RADII = {
    ("byol", "linf"): {
        "imagenet": PAPER(2 / 255, "Table 1"),
        "cifar10": OURS(2 / 255),
        "digits": OURS(8 / 255),
    },
    ("byol", "l2"): {
        "imagenet": PAPER(2.0, "Table 1"),
        "cifar10": OURS(0.25),
        "digits": OURS(0.5),
    },
}


def byol(scale: str, threat: str) -> ml_collections.ConfigDict:
    """BYOL pre-training under ``threat`` (nominal, linf, l2), nominal fine-tuning, evaluation."""
    if scale not in SCALES:
        raise UserError(f"scale {scale!r} in --config=FILE:SCALE: choose from {', '.join(SCALES)}.")
    tree = _imagenet()
    if threat != "nominal":
        tree["pretrain"]["attack"] = pgd2(threat, RADII["byol", threat][scale])
    if scale != "imagenet":
        tree["pretrain"]["optimizer"] = {}  # another optimizer: none of LARS's options stay
        _merge(tree, {"cifar10": _cifar10, "digits": _digits}[scale]())
    return config_dict(tree)


def pgd2(norm: str, epsilon: Value) -> Tree:
    """The paper's attack: two steps of 5/8 epsilon from a random start."""
    return {
        "norm": PAPER(norm, "A3"),
        "epsilon": epsilon,
        "steps": PAPER(2, "A2"),
        "step_size": PAPER(5 / 8, "A2"),
        "start": OPEN("ball", "A4-A6"),
    }


def photometric(blur_prob: float, solarize_prob: float) -> Tree:
    """BYOL's colours, greys, blurs and solarizes."""
    where = "C-BYOL photometric"
    return {
        "jitter_prob": REF(0.8, where),
        "brightness": REF(0.4, where),
        "contrast": REF(0.4, where),
        "saturation": REF(0.2, where),
        "hue": REF(0.1, where),
        "grayscale_prob": REF(0.2, where),
        "blur_prob": REF(blur_prob, where),
        "blur_sigma": REF((0.1, 2.0), where),
        "solarize_prob": REF(solarize_prob, where),
    }


def _imagenet() -> Tree:
    return {
        "seed": OURS(0),
        "model": {
            "image_size": PAPER(224, "P:C"),
            "patch": PAPER(16, "B1"),
            "width": REF(768, "B1"),
            "depth": REF(12, "B1"),
            "heads": REF(12, "B1"),
            "mlp": REF(3072, "B1"),
        },
        "dtype": OURS("bfloat16", "I20"),
        "data": {"name": PAPER("imagenet2012:5.*", "C"), "dir": OURS("")},
        "pretrain": {
            "task": {
                "name": PAPER("byol", "P:B.2"),
                "hidden": PAPER(4096, "B19"),
                "output": PAPER(256, "B19"),
                "view1": photometric(blur_prob=1.0, solarize_prob=0.0),
                "view2": photometric(blur_prob=0.1, solarize_prob=0.2),
            },
            "attack": OURS(None),
            "split": PAPER("train", "C"),
            "crop": {
                "min_area": REF(0.08, "C-BYOL crops"),
                "antialias": REF(False, "C-BYOL crops"),
                "flip": REF(True, "C-BYOL photometric"),
            },
            "batch_size": OPEN(4096, "C-BYOL"),
            "epochs": OPEN(300.0, "C-BYOL"),
            "steps": OURS(None),
            "drop_path": OPEN(0.0, "B13"),
            "optimizer": {
                "name": OPEN("lars", "C-BYOL LARS"),
                "base_lr": OPEN(0.3, "C-BYOL LARS"),
                "weight_decay": OPEN(1e-6, "C-BYOL LARS"),
                "momentum": OPEN(0.9, "C-BYOL LARS"),
                "trust": OPEN(1e-3, "C-BYOL LARS"),
                "decayed": OPEN(("matrix", "token", "position"), "C"),
            },
            "schedule": {
                "warmup": OPEN(10 / 300, "C"),
                "min_lr": REF(0.0, "C"),
            },
            "layer_decay": OPEN(1.0, "C"),
            "ema": {
                "decay": OPEN(0.99, "B22"),
                "final_decay": REF(1.0, "B22"),
                "own_seed": REF(True, "B22"),
            },
        },
        "weights": OURS(""),
        "finetune": {
            "task": {
                "name": PAPER("supervised", "P:C"),
                "label_smoothing": REF(0.1, "D11"),
                "head_std": REF(2e-5, "B11"),
            },
            "attack": PAPER(None, "P:s4.1"),
            "split": PAPER("train", "D1"),
            "crop": {
                "min_area": REF(0.08, "D11"),
                "antialias": REF(True, "D11"),
                "flip": REF(True, "D11"),
            },
            "batch_size": PAPER(512, "D1"),
            "epochs": PAPER(100.0, "D1"),
            "steps": OURS(None),
            "drop_path": REF(0.1, "D12"),
            "optimizer": {
                "name": PAPER("adamw", "D2"),
                "base_lr": OPEN(5e-4, "D3"),
                "weight_decay": PAPER(0.05, "D2"),
                "b1": REF(0.9, "D2"),
                "b2": REF(0.999, "D2"),
                "decayed": REF(("matrix",), "D10"),
            },
            "schedule": {"warmup": REF(5 / 100, "D4"), "min_lr": REF(1e-6, "D4")},
            "layer_decay": PAPER(0.65, "D5"),
            "ema": REF(None, "D13"),
        },
        "evaluate": {
            "split": PAPER("validation", "F"),
            "resize": REF(256, "F"),
            "batch_size": OURS(256),
            "attacks": OPEN(tuple(("l2", r, 40) for r in (0.125, 0.25, 0.5, 1.0, 2.0)), "A24, A25"),
            "attacked": OPEN(5000, "A24"),
            "reach": REF(2.5, "A25"),
        },
        "log_every": OURS(50),
        "save_every": OURS(1000),
    }


# At the small scales AdamW replaces LARS (C-BYOL-b): LARS's presets were tuned for large batches.
_SMALL_ADAMW = {
    "name": OURS("adamw", "C-BYOL-b"),
    "base_lr": OURS(4e-3),
    "weight_decay": OURS(0.05),
    "b1": OURS(0.9, "C-BYOL-b"),
    "b2": OURS(0.999, "C-BYOL-b"),
    "decayed": OURS(("matrix",)),
}


def _cifar10() -> Tree:
    return {
        "model": {
            "image_size": OURS(32),
            "patch": OURS(8),
            "width": OURS(128),
            "depth": OURS(4),
            "heads": OURS(4),
            "mlp": OURS(512),
        },
        "dtype": OURS("float32"),
        "data": {"name": OURS("cifar10:3.0.2")},
        "pretrain": {
            "task": {"hidden": OURS(512), "output": OURS(128)},
            "crop": {"min_area": OURS(0.25)},
            "batch_size": OURS(64),
            "epochs": OURS(4.0),
            "ema": {"decay": OURS(0.97, "B22")},
            "optimizer": _SMALL_ADAMW,
            "schedule": {"warmup": OURS(0.1)},
        },
        "finetune": {
            "task": {"head_std": OURS(2e-5)},
            "split": OURS("train[:2000]"),
            "crop": {"min_area": OURS(0.6), "antialias": OURS(False)},
            "batch_size": OURS(64),
            "epochs": OURS(20.0),
            "drop_path": OURS(0.0),
            "optimizer": {"base_lr": OURS(4e-3)},
            "schedule": {"warmup": OURS(0.1)},
            "layer_decay": OURS(0.75),
        },
        "evaluate": {
            "split": OURS("test"),
            "resize": OURS(32),
            "batch_size": OURS(500),
            "attacked": OURS(1000),
            "attacks": OURS(tuple(("l2", r, 10) for r in (0.125, 0.25, 0.5, 1.0))),
        },
        "log_every": OURS(100),
        "save_every": OURS(1000),
    }


def _digits() -> Tree:
    weak = {
        "jitter_prob": OURS(0.5),
        "brightness": OURS(0.2),
        "grayscale_prob": OURS(0.0),
        "saturation": OURS(0.0),
        "hue": OURS(0.0),
        "blur_prob": OURS(0.2),
        "blur_sigma": OURS((0.1, 1.0)),
    }
    return {
        "model": {
            "image_size": OURS(16),
            "patch": OURS(4),
            "width": OURS(64),
            "depth": OURS(3),
            "heads": OURS(4),
            "mlp": OURS(256),
        },
        "dtype": OURS("float32"),
        "data": {"name": OURS("digits")},
        "pretrain": {
            "task": {"hidden": OURS(256), "output": OURS(64), "view1": weak, "view2": weak},
            "crop": {"min_area": OURS(0.5), "flip": OURS(False)},
            "batch_size": OURS(128),
            "epochs": OURS(16.0),
            "optimizer": _SMALL_ADAMW | {"base_lr": OURS(2e-3)},
            "schedule": {"warmup": OURS(0.1)},
        },
        "finetune": {
            "task": {"head_std": OURS(2e-5)},
            "crop": {"min_area": OURS(0.7), "antialias": OURS(False), "flip": OURS(False)},
            "batch_size": OURS(64),
            "epochs": OURS(30.0),
            "drop_path": OURS(0.0),
            "optimizer": {"base_lr": OURS(8e-3)},
            "schedule": {"warmup": OURS(0.1)},
            "layer_decay": OURS(0.75),
        },
        "evaluate": {
            "split": OURS("test"),
            "resize": OURS(16),
            "batch_size": OURS(360),
            "attacks": OURS(tuple(("l2", r, 20) for r in (0.125, 0.25, 0.375, 0.5))),
        },
        "log_every": OURS(40),
        "save_every": OURS(200),
    }


def _merge(tree: Tree, changes: Tree) -> None:
    """Writes the leaves of ``changes`` over those of ``tree``, in place."""
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], change)
        else:
            tree[key] = change


def config_dict(tree: Tree) -> ml_collections.ConfigDict:
    """The configuration of a recipe, with its ``sources``: (flag, where, recipe's value)."""

    def pick(node: Any, leaf: Any) -> Any:
        if isinstance(node, dict):
            return {key: pick(child, leaf) for key, child in node.items()}
        return leaf(node)

    config = ml_collections.ConfigDict(pick(tree, lambda v: v.value))
    for stage in (config.pretrain, config.finetune):
        stage.steps = ml_collections.config_dict.placeholder(int)  # so that a flag may set it
    config.sources = ml_collections.ConfigDict(pick(tree, lambda v: (v.flag, v.where, v.value)))
    return config.lock()
