"""SimCLR pre-training, PGD^2 in L2; then nominal fine-tuning and evaluation. Not of the paper.

    python -m adv_ssl.main --config=configs/simclr_l2.py --workdir=DIR

is the paper's scale, ``:cifar10`` and ``:digits`` behind the file's name are smaller. All but the
task is as for BYOL. ``--config.pretrain.attack.steps=0`` is nominal pre-training,
``--config.pretrain.attack.norm=linf --config.pretrain.attack.epsilon=0.00784`` attacks in L-inf.
"""

import ml_collections

from adv_ssl import recipes
from adv_ssl.recipes import paper, small
from adv_ssl.recipes.values import OPEN, OURS, REF, Tree

OWN: dict[str, Tree] = {
    "cifar10": {
        "task": {"hidden": OURS(512), "output": OURS(128)},
        "attack": {"epsilon": OURS(0.25)},
        "augment": {"min_area": OURS(0.25)},
        "epochs": OURS(4.0),
    },
    # At BYOL's radius, 0.5, and temperature 0.1 the attacked loss came down to chance and stayed.
    "digits": {
        "task": small.DIGITS_VIEWS | {"temperature": OURS(0.5)},
        "attack": {"epsilon": OURS(0.125)},
    },
}

OWN |= dict.fromkeys(("cifar10_ti", "cifar10_s"), OWN["cifar10"])


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    view = paper.photometric(blur_prob=0.5, solarize_prob=0.0)
    pretrain = paper.BYOL | {
        "task": {
            "name": OURS("simclr"),
            "temperature": REF(0.1, "S2"),
            "hidden": REF(2048, "S3"),
            "output": REF(128, "S3"),
            "view1": view,
            "view2": view,
        },
        "attack": paper.pgd2("l2", OPEN(2.0, "S4")),
        "ema": REF(None, "S1"),
    }
    return recipes.assembled(argument, pretrain, OWN)
