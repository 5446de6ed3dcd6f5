"""The same methods made small: what differs from the paper's scale, all of it ours."""

from collections.abc import Callable
from typing import NamedTuple

from adv_ssl.recipes.values import OURS, Tree, Value, merged

# Suited to the small images: at cifar10 an L2 radius is about the same root mean square per pixel
# as at the paper's scale, at digits it is larger, to be seen.
RADII: dict[str, dict[tuple[str, str], Value]] = {
    "cifar10": {
        ("supervised", "linf"): OURS(6 / 255),
        ("supervised", "l2"): OURS(0.5),
        ("rotnet", "linf"): OURS(4 / 255),
        ("rotnet", "l2"): OURS(0.5),
        ("mae", "linf"): OURS(1 / 255),
        ("mae", "l2"): OURS(0.07),
        ("byol", "linf"): OURS(2 / 255),
        ("byol", "l2"): OURS(0.25),
    },
    "digits": {
        ("supervised", "linf"): OURS(8 / 255),
        ("supervised", "l2"): OURS(0.5),
        ("rotnet", "linf"): OURS(8 / 255),
        ("rotnet", "l2"): OURS(0.5),
        ("mae", "linf"): OURS(8 / 255),
        ("mae", "l2"): OURS(0.25),
        ("byol", "linf"): OURS(8 / 255),
        ("byol", "l2"): OURS(0.5),
    },
}


def _model(image_size: int, patch: int, width: int, depth: int, heads: int = 4) -> Tree:
    return {
        "image_size": OURS(image_size),
        "patch": OURS(patch),
        "width": OURS(width),
        "depth": OURS(depth),
        "heads": OURS(heads),
        "mlp": OURS(4 * width),
    }


def _adamw(lr: float) -> Tree:
    """For BYOL too (C-BYOL-b): LARS's presets were tuned for large batches."""
    return {
        "name": OURS("adamw"),
        "lr": OURS(lr),
        "scaled": OURS(True),
        "weight_decay": OURS(0.05),
        "b1": OURS(0.9),
        "b2": OURS(0.999),
        "decayed": OURS(("matrix",)),
    }


def _decoder(width: int) -> Tree:
    return {"width": OURS(width), "depth": OURS(2), "heads": OURS(4), "mlp": OURS(4 * width)}


# ---- CIFAR-10: a ViT of width 128 and 4 blocks ----------------------------------------------


def cifar10_run() -> Tree:
    """All but the stages."""
    return {
        "model": _model(image_size=32, patch=8, width=128, depth=4),
        "dtype": OURS("float32"),
        "data": {"name": OURS("cifar10:3.0.2")},
        "evaluate": {
            "split": OURS("test"),
            "resize": OURS(32),
            "batch_size": OURS(500),
            "attacked": OURS(1000),
            "attacks": OURS(tuple(("l2", r, 10) for r in (0.125, 0.25, 0.5, 1.0))),
        },
        "log_every": OURS(100),
    }


def cifar10_pretrain() -> Tree:
    """What all pre-training shares: some minutes of each."""
    return {
        "batch_size": OURS(64),
        "schedule": {"warmup": OURS(0.1)},
        "optimizer": _adamw(4e-3),
    }


def cifar10_methods() -> dict[str, Tree]:
    """What each method changes of its own."""
    classifier: Tree = {
        "augment": {"min_area": OURS(0.25), "randaugment": OURS(None)},
        "epochs": OURS(10.0),
        "drop_path": OURS(0.0),
        "ema": {"decay": OURS(0.999), "final_decay": OURS(0.999)},
    }
    return {
        "supervised": classifier,
        "rotnet": classifier,
        "mae": {
            "task": _decoder(64),
            "augment": {"min_area": OURS(0.25)},
            "epochs": OURS(20.0),
        },
        "byol": {
            "task": {"hidden": OURS(512), "output": OURS(128)},
            "augment": {"min_area": OURS(0.25)},
            "epochs": OURS(4.0),
            "ema": {"decay": OURS(0.97, "B22")},
        },
    }


def cifar10_finetune() -> Tree:
    """On a tenth of the labels."""
    return {
        "task": {"erasing": OURS(None), "mixing": OURS(None)},
        "split": OURS("train[:5000]"),
        "augment": {"crop": OURS("byol"), "min_area": OURS(0.6), "randaugment": OURS(None)},
        "batch_size": OURS(64),
        "epochs": OURS(20.0),
        "drop_path": OURS(0.0),
        "optimizer": {"lr": OURS(4e-3)},
        "schedule": {"warmup": OURS(0.1)},
        "layer_decay": OURS(0.75),
    }


# ---- the same with larger models: DeiT's ViT-Ti and ViT-S, in patches of 8 ----------------


def _cifar10_with(width: int, heads: int) -> "Scale":
    def run() -> Tree:
        return merged(cifar10_run(), {"model": _model(32, 8, width, depth=12, heads=heads)})

    def methods() -> dict[str, Tree]:
        return merged(cifar10_methods(), {"mae": {"task": _decoder(width // 2)}})

    return Scale(RADII["cifar10"], run, cifar10_pretrain, methods, cifar10_finetune)


# ---- digits: a ViT of width 64 and 3 blocks, for the demo and the tests ----------------------


def digits_run() -> Tree:
    """All but the stages."""
    return {
        "model": _model(image_size=16, patch=4, width=64, depth=3),
        "dtype": OURS("float32"),
        "data": {"name": OURS("digits")},
        "evaluate": {
            "split": OURS("test"),
            "resize": OURS(16),
            "batch_size": OURS(360),
            "attacks": OURS(tuple(("l2", r, 20) for r in (0.125, 0.25, 0.375, 0.5))),
        },
        "log_every": OURS(40),
        "save_every": OURS(200),
    }


def digits_pretrain() -> Tree:
    """What all pre-training shares: a minute or two of each."""
    return {
        "augment": {"min_area": OURS(0.5), "flip": OURS(False)},
        "batch_size": OURS(128),
        "epochs": OURS(16.0),
        "schedule": {"warmup": OURS(0.1)},
        "optimizer": _adamw(2e-3),
    }


def digits_views() -> Tree:
    """Heads and colours of a task that compares two views."""
    weak: Tree = {
        "jitter_prob": OURS(0.5),
        "brightness": OURS(0.2),
        "grayscale_prob": OURS(0.0),
        "saturation": OURS(0.0),
        "hue": OURS(0.0),
        "blur_prob": OURS(0.0),  # its kernel, a tenth of the side, would be one pixel
    }
    return {"hidden": OURS(256), "output": OURS(64), "view1": weak, "view2": weak}


def digits_methods() -> dict[str, Tree]:
    """What each method changes of its own."""
    classifier: Tree = {
        "augment": {"randaugment": OURS(None)},
        "drop_path": OURS(0.0),
        "ema": {"decay": OURS(0.97), "final_decay": OURS(0.97)},
    }
    return {
        "supervised": classifier,
        "rotnet": classifier,
        "mae": {"task": _decoder(32)},
        "byol": {"task": digits_views()},
    }


def digits_finetune() -> Tree:
    """On all 1,437 training digits."""
    return {
        "task": {"erasing": OURS(None), "mixing": OURS(None)},
        "augment": {
            "crop": OURS("byol"),
            "min_area": OURS(0.7),
            "flip": OURS(False),
            "randaugment": OURS(None),
        },
        "batch_size": OURS(64),
        "epochs": OURS(50.0),
        "drop_path": OURS(0.0),
        "optimizer": {"lr": OURS(8e-3)},
        "schedule": {"warmup": OURS(0.1)},
        "layer_decay": OURS(0.75),
    }


class Scale(NamedTuple):
    """What a scale changes: radii; the run, all pre-training, the methods', fine-tuning."""

    radii: dict[tuple[str, str], Value]
    run: Callable[[], Tree]
    pretrain: Callable[[], Tree]
    methods: Callable[[], dict[str, Tree]]
    finetune: Callable[[], Tree]


SCALES = {
    "cifar10": Scale(
        RADII["cifar10"], cifar10_run, cifar10_pretrain, cifar10_methods, cifar10_finetune
    ),
    "cifar10_ti": _cifar10_with(width=192, heads=3),
    "cifar10_s": _cifar10_with(width=384, heads=6),
    "digits": Scale(RADII["digits"], digits_run, digits_pretrain, digits_methods, digits_finetune),
}
