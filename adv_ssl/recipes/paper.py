"""The paper's scale: ViT-B/16 on ImageNet."""

from adv_ssl.recipes.values import OPEN, OURS, PAPER, REF, Tree, Value

# The best radius of each method and norm: Table 1's caption.
RADII = {
    ("supervised", "linf"): PAPER(6 / 255, "Table 1"),
    ("supervised", "l2"): PAPER(4.0, "Table 1"),
    ("rotnet", "linf"): PAPER(4 / 255, "Table 1"),
    ("rotnet", "l2"): PAPER(4.0, "Table 1"),
    ("mae", "linf"): PAPER(1 / 255, "Table 1"),
    ("mae", "l2"): PAPER(0.5, "Table 1"),
    ("byol", "linf"): PAPER(2 / 255, "Table 1"),
    ("byol", "l2"): PAPER(2.0, "Table 1"),
}


# What all runs share: all but the stages.
RUN: Tree = {
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
    "fsdp": OURS(False),
    "remat": OURS(False),
    "data": {"name": PAPER("imagenet2012:5.*", "C"), "dir": OURS("")},
    "weights": OURS(""),
    "init_from": OURS(""),
    "evaluate": {
        "split": PAPER("validation", "F"),
        "resize": REF(256, "F"),
        "batch_size": OURS(64),
        "attacks": OPEN(tuple(("l2", r, 40) for r in (0.125, 0.25, 0.5, 1.0, 2.0)), "A24, A25"),
        "attacked": OPEN(5000, "A24"),
        "reach": OPEN(2.5, "A25"),
    },
    "log_every": OURS(50),
    "save_every": OURS(1000),
}


def pgd2(norm: str, epsilon: Value) -> Tree:
    """The paper's attack: two steps of 5/8 epsilon from a random start."""
    return {
        "name": PAPER("pgd", "A2"),
        "norm": PAPER(norm, "A3"),
        "epsilon": epsilon,
        "steps": PAPER(2, "A2"),
        "step_size": PAPER(5 / 8, "A2"),
        "start": OPEN("ball", "A4-A6"),
    }


# Augmentation


# rand-m9-mstd0.5-inc1.
RANDAUGMENT: Tree = {
    "ops": REF(2, "C RandAugment"),
    "prob": REF(0.5, "C RandAugment"),
    "magnitude": REF(9.0, "C RandAugment"),
    "magnitude_std": REF(0.5, "C RandAugment"),
}


# Mixup and cutmix in turn.
MIXING: Tree = {
    "mixup": REF(0.8, "C Mixup/CutMix"),
    "cutmix": REF(1.0, "C Mixup/CutMix"),
    "cutmix_prob": REF(0.5, "C Mixup/CutMix"),
    "group": OPEN(32, "C Mixup/CutMix, I10"),
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


def resized_crop(min_area: float, where: str) -> Tree:
    """Torchvision's random resized crop, and a flip."""
    return {
        "crop": REF("torchvision", where),
        "min_area": REF(min_area, where),
        "flip": REF(True, where),
        "randaugment": REF(None, where),
    }


# Pre-training


# He et al.'s from-scratch recipe.
SUPERVISED: Tree = {
    "task": {
        "name": PAPER("supervised", "P:C"),
        "label_smoothing": REF(0.1, "C-SUP"),
        "head_std": OPEN(0.02, "B10"),
        "erasing": OPEN(None, "A23"),
        "mixing": MIXING,
    },
    "attack": OURS(None),
    "split": PAPER("train", "C"),
    "augment": resized_crop(0.08, "C-SUP") | {"randaugment": RANDAUGMENT},
    "batch_size": REF(4096, "C-SUP"),
    "accumulation": OURS(1),
    "epochs": REF(300.0, "C-SUP"),
    "steps": OURS(None),
    "drop_path": REF(0.1, "B13"),
    "learned_positions": OPEN(True, "B8"),
    "optimizer": {
        "name": REF("adamw", "C-SUP"),
        "lr": REF(1e-4, "C-SUP"),
        "scaled": REF(True, "C"),
        "weight_decay": REF(0.3, "C-SUP"),
        "b1": REF(0.9, "C-SUP"),
        "b2": REF(0.95, "C-SUP"),
        "decayed": REF(("matrix",), "C"),
    },
    "schedule": {"warmup": REF(20 / 300, "C-SUP"), "min_lr": REF(0.0, "C")},
    "layer_decay": REF(1.0, "C"),
    "ema": {
        "decay": REF(0.9999, "C-SUP"),
        "final_decay": REF(0.9999, "C-SUP"),
        "own_seed": REF(False, "C EMA"),
        "used": OPEN(True, "C EMA"),
    },
}


# As supervised, without mixup and cutmix.
ROTNET: Tree = SUPERVISED | {
    "task": {
        "name": PAPER("rotnet", "P:B.1"),
        "label_smoothing": OPEN(0.1, "C"),
        "head_std": OPEN(0.02, "B10"),
    }
}


# He et al.'s masked autoencoder.
MAE: Tree = {
    "task": {
        "name": PAPER("mae", "P:s3.1"),
        "mask_ratio": REF(0.75, "B15"),
        "width": REF(512, "B14"),
        "depth": PAPER(8, "B14"),
        "heads": PAPER(16, "B14"),
        "mlp": PAPER(2048, "B14"),
    },
    "attack": OURS(None),
    "split": PAPER("train", "C"),
    "augment": resized_crop(0.2, "C-MAE"),
    "batch_size": REF(4096, "C-MAE"),
    "accumulation": OURS(1),
    "epochs": OPEN(800.0, "C-MAE, I7"),
    "steps": OURS(None),
    "drop_path": REF(0.0, "B13"),
    "learned_positions": REF(False, "B6"),
    "optimizer": {
        "name": REF("adamw", "C-MAE"),
        "lr": REF(1.5e-4, "C-MAE"),
        "scaled": REF(True, "C"),
        "weight_decay": REF(0.05, "C-MAE"),
        "b1": REF(0.9, "C-MAE"),
        "b2": REF(0.95, "C-MAE"),
        "decayed": REF(("matrix", "token"), "C, I8"),
    },
    "schedule": {"warmup": OPEN(40 / 800, "C-MAE"), "min_lr": REF(0.0, "C")},
    "layer_decay": REF(1.0, "C"),
    "ema": REF(None, "C-MAE"),
}


# BYOL's own release, on a ViT.
BYOL: Tree = {
    "task": {
        "name": PAPER("byol", "P:B.2"),
        "hidden": PAPER(4096, "B19"),
        "output": PAPER(256, "B19"),
        "view1": photometric(blur_prob=1.0, solarize_prob=0.0),
        "view2": photometric(blur_prob=0.1, solarize_prob=0.2),
    },
    "attack": OURS(None),
    "split": PAPER("train", "C"),
    "augment": {
        "crop": REF("byol", "C-BYOL crops"),
        "min_area": REF(0.08, "C-BYOL crops"),
        "flip": REF(True, "C-BYOL photometric"),
        "randaugment": REF(None, "C-BYOL photometric"),
    },
    "batch_size": OPEN(4096, "C-BYOL"),
    "accumulation": OURS(1),
    "epochs": OPEN(300.0, "C-BYOL"),
    "steps": OURS(None),
    "drop_path": OPEN(0.0, "B13"),
    "learned_positions": OPEN(True, "B8"),
    "optimizer": {
        "name": OPEN("lars", "C-BYOL LARS"),
        "lr": OPEN(0.3, "C-BYOL LARS"),
        "scaled": REF(True, "C"),
        "weight_decay": OPEN(1e-6, "C-BYOL LARS"),
        "momentum": OPEN(0.9, "C-BYOL LARS"),
        "trust": OPEN(1e-3, "C-BYOL LARS"),
        "decayed": OPEN(("matrix", "token", "position"), "C"),
    },
    "schedule": {"warmup": OPEN(10 / 300, "C"), "min_lr": REF(0.0, "C")},
    "layer_decay": OPEN(1.0, "C"),
    "ema": {
        "decay": OPEN(0.99, "B22"),
        "final_decay": REF(1.0, "B22"),
        "own_seed": REF(True, "B22"),
        "used": REF(False, "B22"),
    },
}


# The fallback for BYOL's optimizer, from MoCo v3's ViT recipe (C-BYOL-b).
BYOL_ADAMW: Tree = {
    "optimizer": {
        "name": OPEN("adamw", "C-BYOL-b"),
        "lr": OPEN(1.5e-4, "C-BYOL-b"),
        "scaled": REF(True, "C"),
        "weight_decay": OPEN(0.1, "C-BYOL-b"),
        "b1": OPEN(0.9, "C-BYOL-b"),
        "b2": OPEN(0.999, "C-BYOL-b"),
        "decayed": OPEN(("matrix",), "C-BYOL-b"),
    },
    "schedule": {"warmup": OPEN(40 / 300, "C-BYOL-b")},
}


PRETRAINING = {"supervised": SUPERVISED, "rotnet": ROTNET, "mae": MAE, "byol": BYOL}


# Fine-tuning and transfer


# Clean fine-tuning, the same for every pre-trained encoder.
FINETUNE: Tree = {
    "task": {
        "name": PAPER("supervised", "P:C"),
        "label_smoothing": REF(0.1, "D11"),
        "head_std": REF(2e-5, "B11"),
        "erasing": {
            "prob": REF(0.25, "D11"),
            "area": REF((0.02, 1 / 3), "D11"),
            "ratio": REF(0.3, "D11"),
        },
        "mixing": MIXING,
    },
    "attack": PAPER(None, "P:s4.1"),
    "split": PAPER("train", "D1"),
    "augment": resized_crop(0.08, "D11") | {"randaugment": RANDAUGMENT},
    "batch_size": PAPER(512, "D1"),
    "accumulation": OURS(1),
    "epochs": PAPER(100.0, "D1"),
    "steps": OURS(None),
    "drop_path": REF(0.1, "D12"),
    "learned_positions": REF(True, "B7"),
    "optimizer": {
        "name": PAPER("adamw", "D2"),
        "lr": PAPER(5e-4, "D3"),
        "scaled": OPEN(True, "D3, I2"),
        "weight_decay": PAPER(0.05, "D2"),
        "b1": REF(0.9, "D2"),
        "b2": REF(0.999, "D2"),
        "decayed": REF(("matrix",), "D10"),
    },
    "schedule": {"warmup": REF(5 / 100, "D4"), "min_lr": REF(1e-6, "D4")},
    "layer_decay": PAPER(0.65, "D5"),
    "ema": REF(None, "D13"),
}


# What both transfers share: clean images, stretched to a square and flipped.
_TRANSFER: Tree = FINETUNE | {
    "task": {
        "name": PAPER("supervised", "P:E"),
        "label_smoothing": OPEN(0.0, "E"),
        "head_std": REF(2e-5, "B11"),
        "erasing": OPEN(None, "E"),
        "mixing": OPEN(None, "E"),
    },
    "augment": {
        "crop": PAPER("none", "P:C"),
        "min_area": PAPER(1.0, "P:C"),
        "flip": PAPER(True, "P:C"),
        "randaugment": PAPER(None, "P:C"),
    },
}


# He et al.'s procedure, as for fine-tuning (E-AdamW).
TRANSFER_ADAMW: Tree = _TRANSFER | {
    "batch_size": OPEN(512, "E-AdamW"),
    "epochs": OPEN(100.0, "E-AdamW"),
    "drop_path": OPEN(0.1, "E-AdamW"),
    "schedule": {"warmup": OPEN(5 / 100, "E-AdamW"), "min_lr": OPEN(1e-6, "E-AdamW")},
    "layer_decay": OPEN(0.65, "E-AdamW"),
}


# Steiner et al.'s procedure (E-SGD).
TRANSFER_SGD: Tree = _TRANSFER | {
    "task": _TRANSFER["task"] | {"head_std": OPEN(0.0, "E-SGD")},
    "batch_size": PAPER(512, "E-SGD"),
    "steps": PAPER(2500, "E-SGD"),
    "drop_path": REF(0.0, "E-SGD"),
    "optimizer": {
        "name": PAPER("sgd", "E-SGD"),
        "lr": PAPER(0.01, "E-SGD"),
        "scaled": PAPER(False, "E-SGD"),
        "momentum": PAPER(0.9, "E-SGD"),
        "clip": PAPER(1.0, "E-SGD"),
    },
    "schedule": {"warmup": PAPER(500 / 2500, "E-SGD"), "min_lr": PAPER(0.0, "E-SGD")},
    "layer_decay": REF(1.0, "E-SGD"),
}

TRANSFERS = {"adamw": TRANSFER_ADAMW, "sgd": TRANSFER_SGD}

# set -> (TFDS name, split to train on, split to test on): section E's table.
TRANSFER_SETS = {
    "cifar10": ("cifar10:3.0.2", "train", "test"),
    "cifar100": ("cifar100:3.0.2", "train", "test"),
    "sun397": ("sun397/tfds:4.0.0", "train+validation", "test"),
    "resisc45": ("resisc45:3.0.0", "train[:80%]", "train[80%:]"),
    "dmlab": ("dmlab:2.0.1", "train+validation", "test"),
}
