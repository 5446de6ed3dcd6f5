"""BYOL, no attack; then nominal fine-tuning and evaluation.

python -m adv_ssl.main --config=configs/byol_nominal.py --workdir=DIR            # the paper's scale
python -m adv_ssl.main --config=configs/byol_nominal.py:cifar10 --workdir=DIR    # two cores, half an hour
python -m adv_ssl.main --config=configs/byol_nominal.py:digits --workdir=DIR     # two minutes
"""

import ml_collections

from adv_ssl import recipes


def get_config(scale: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.byol(scale, threat="nominal")
