"""MAE pre-training, PGD^2 in L-inf at epsilon 1/255; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/mae_linf.py[:SCALE] --workdir=DIR

SCALE is imagenet, the default and the paper's; cifar10, cifar10_ti, cifar10_s or digits, with radii
of their own.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.recipe("mae", "linf", argument)
