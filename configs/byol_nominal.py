"""BYOL pre-training, no attack; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/byol_nominal.py --workdir=DIR

is the paper's scale. ``:cifar10`` and ``:digits`` behind the file's name are the same method made
small. At the paper's scale ``:imagenet,adamw`` takes AdamW in the place of LARS.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.recipe("byol", "nominal", argument)
