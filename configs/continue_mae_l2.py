r"""Adversarial continuation: MAE, PGD^2 in L2, from public weights; then nominal fine-tuning.

    python -m adv_ssl.weights import mae_pretrain_vit_base.pth --workdir=WEIGHTS
    python -m adv_ssl.main --config=configs/continue_mae_l2.py --workdir=DIR \
        --config.init_from=WEIGHTS

What one GPU can afford, and not of the paper: 20 epochs from an encoder that is there, in batches
of 256, with MAE's decoder anew. All else is as in ``mae_l2.py``, but that positions are trained,
because those of other weights may be no table. ``:cifar10`` and ``:digits`` behind the file's name
go on with weights of that size.
"""

import ml_collections

from adv_ssl import recipes
from adv_ssl.recipes.values import OURS

SHORT = {
    "batch_size": OURS(256),
    "epochs": OURS(20.0),
    "learned_positions": OURS(True),
}


def get_config(argument: str = "imagenet") -> ml_collections.ConfigDict:
    """The recipe at one of ``recipes.SCALES``; ``init_from`` has to be given."""
    return recipes.recipe("mae", "l2", argument, changes=SHORT, init_from="WEIGHTS")
