"""BYOL pre-training, PGD^2 in L-inf at epsilon 2/255; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/byol_linf.py --workdir=DIR

is the paper's scale. ``:cifar10`` and ``:digits`` behind the file's name are the same method made
small, with radii of their own. At the paper's scale ``:imagenet,adamw`` takes AdamW in the place of
LARS.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.recipe("byol", "linf", argument)
