"""BYOL, PGD^2 in L-inf, epsilon 2/255; then nominal fine-tuning and evaluation.

python -m adv_ssl.main --config=configs/byol_linf.py --workdir=DIR            # the paper's scale
python -m adv_ssl.main --config=configs/byol_linf.py:cifar10 --workdir=DIR    # two cores, half an hour
python -m adv_ssl.main --config=configs/byol_linf.py:digits --workdir=DIR     # two minutes
"""

import ml_collections

from adv_ssl import recipes


def get_config(scale: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``."""
    return recipes.byol(scale, threat="linf")
