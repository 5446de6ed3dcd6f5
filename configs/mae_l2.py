"""MAE pre-training, PGD^2 in L2 at epsilon 0.5; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/mae_l2.py[:SCALE] --workdir=DIR

SCALE is imagenet, the default and the paper's; cifar10, cifar10_ti, cifar10_s or digits, with radii
of their own.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.recipe("mae", "l2", argument)
