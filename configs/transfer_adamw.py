r"""Transfer to a small set by AdamW with layer-wise decay, the procedure of He et al.

    python -m adv_ssl.main --config=configs/transfer_adamw.py:SET \
        --config.weights=DIR/pretrain --workdir=NEW

SET is cifar10, cifar100, sun397, resisc45, dmlab or digits. ``:SET,cifar10`` and ``:SET,digits``
are for an encoder that was pre-trained at that scale. Without an encoder it is refused;
``--config.weights=`` takes random weights.
"""

import ml_collections

from adv_ssl import recipes


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """The recipe for a set of ``recipes.paper.TRANSFER_SETS``."""
    return recipes.transfer("adamw", argument)
