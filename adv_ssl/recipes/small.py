"""The same methods made small: what differs from the paper's scale, all of it ours."""

from typing import NamedTuple

from adv_ssl.recipes.values import OURS, Tree, Value, merged


class Scale(NamedTuple):
    """What a scale changes."""

    radii: dict[tuple[str, str], Value]  # of each method and norm
    run: Tree  # all but the stages
    pretrain: Tree  # of all methods
    methods: dict[str, Tree]  # what each changes of its own
    finetune: Tree


def _radii(linf: tuple[float, ...], l2: tuple[float, ...]) -> dict[tuple[str, str], Value]:
    """L-inf radii in 1/255."""
    methods = ("supervised", "rotnet", "mae", "byol")
    pairs = zip(methods, linf, l2, strict=True)
    return {
        (method, norm): OURS(radius)
        for method, k, e in pairs
        for norm, radius in (("linf", k / 255), ("l2", e))
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


# CIFAR-10, a ViT of width 128 and 4 blocks: some minutes of pre-training each, fine-tuning on a
# tenth of the labels.
_CLASSIFIER: Tree = {
    "augment": {"min_area": OURS(0.25), "randaugment": OURS(None)},
    "epochs": OURS(10.0),
    "drop_path": OURS(0.0),
    "ema": {"decay": OURS(0.999), "final_decay": OURS(0.999)},
}
_CIFAR10 = Scale(
    # An L2 radius is about the same root mean square per pixel as at the paper's scale.
    radii=_radii(linf=(6, 4, 1, 2), l2=(0.5, 0.5, 0.07, 0.25)),
    run={
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
    },
    pretrain={
        "batch_size": OURS(64),
        "schedule": {"warmup": OURS(0.1)},
        "optimizer": _adamw(4e-3),
    },
    methods={
        "supervised": _CLASSIFIER,
        "rotnet": _CLASSIFIER,
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
    },
    finetune={
        "task": {"erasing": OURS(None), "mixing": OURS(None)},
        "split": OURS("train[:5000]"),
        "augment": {"crop": OURS("byol"), "min_area": OURS(0.6), "randaugment": OURS(None)},
        "batch_size": OURS(64),
        "epochs": OURS(20.0),
        "drop_path": OURS(0.0),
        "optimizer": {"lr": OURS(4e-3)},
        "schedule": {"warmup": OURS(0.1)},
        "layer_decay": OURS(0.75),
    },
)


def _larger(width: int, heads: int) -> Scale:
    """CIFAR-10 with one of DeiT's models, in patches of 8."""
    model = _model(32, 8, width, depth=12, heads=heads)
    return _CIFAR10._replace(
        run=merged(_CIFAR10.run, {"model": model}),
        methods=merged(_CIFAR10.methods, {"mae": {"task": _decoder(width // 2)}}),
    )


# Digits, a ViT of width 64 and 3 blocks, for the demo and the tests: a minute or two of
# pre-training each, fine-tuning on all 1,437 training digits.
_FEW: Tree = {
    "augment": {"randaugment": OURS(None)},
    "drop_path": OURS(0.0),
    "ema": {"decay": OURS(0.97), "final_decay": OURS(0.97)},
}
_WEAK: Tree = {
    "jitter_prob": OURS(0.5),
    "brightness": OURS(0.2),
    "grayscale_prob": OURS(0.0),
    "saturation": OURS(0.0),
    "hue": OURS(0.0),
    "blur_prob": OURS(0.0),  # its kernel, a tenth of the side, would be one pixel
}
# Heads and colours of a task that compares two views.
DIGITS_VIEWS: Tree = {"hidden": OURS(256), "output": OURS(64), "view1": _WEAK, "view2": _WEAK}
_DIGITS = Scale(
    radii=_radii(linf=(8, 8, 8, 8), l2=(0.5, 0.5, 0.25, 0.5)),  # large, to be seen
    run={
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
    },
    pretrain={
        "augment": {"min_area": OURS(0.5), "flip": OURS(False)},
        "batch_size": OURS(128),
        "epochs": OURS(16.0),
        "schedule": {"warmup": OURS(0.1)},
        "optimizer": _adamw(2e-3),
    },
    methods={
        "supervised": _FEW,
        "rotnet": _FEW,
        "mae": {"task": _decoder(32)},
        "byol": {"task": DIGITS_VIEWS},
    },
    finetune={
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
    },
)

SCALES = {
    "cifar10": _CIFAR10,
    "cifar10_ti": _larger(width=192, heads=3),
    "cifar10_s": _larger(width=384, heads=6),
    "digits": _DIGITS,
}
