"""BYOL pre-training, no attack; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/byol_nominal.py[:SCALE] --workdir=DIR

SCALE is imagenet, the default and the paper's; cifar10, cifar10_ti, cifar10_s or digits;
``imagenet,adamw`` takes AdamW in the place of LARS.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.recipe("byol", "nominal", argument)
