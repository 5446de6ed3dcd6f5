"""BYOL, no attack; then nominal fine-tuning and evaluation.

    python -m adv_ssl.main --config=configs/byol_nominal.py --workdir=DIR

is the paper's scale. ``:cifar10`` and ``:digits`` behind the file's name are the same method made
small, with radii of their own.
"""

import ml_collections

from adv_ssl import recipes


def get_config(scale: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.byol(scale, threat="nominal")
