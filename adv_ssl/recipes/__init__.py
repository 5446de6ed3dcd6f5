"""The recipes: every value with its line of the method's specification and who states it.

``paper`` holds the paper's scale, ``small`` what the scales ``cifar10`` and ``digits`` change.
The configuration carries its ``sources``, so that the report can print, beside each value of a run,
where it comes from and whether the user changed it.
"""

import ml_collections

from adv_ssl.errors import UserError
from adv_ssl.recipes import paper, small
from adv_ssl.recipes.values import OPEN, OURS, PAPER, Tree, config_dict, merged

METHODS = tuple(paper.PRETRAINING)
THREATS = ("nominal", "linf", "l2")
SCALES = ("imagenet", *small.SCALES)


def recipe(method: str, threat: str, argument: str) -> ml_collections.ConfigDict:
    """Pre-training by ``method`` under ``threat``, nominal fine-tuning, evaluation.

    ``argument`` is what stands behind the file's name in ``--config=FILE:ARGUMENT``: a scale; for
    BYOL ``SCALE,adamw`` takes AdamW in the place of LARS (C-BYOL-b).
    """
    scale, _, variant = argument.partition(",")
    _choose("scale", scale, SCALES)
    if variant:
        _choose("variant", variant, ("adamw",) if method == "byol" else ())
    run, pretrain, finetune = paper.run(), paper.PRETRAINING[method](), paper.finetune()
    if threat != "nominal":
        radii = paper.RADII if scale == "imagenet" else small.RADII[scale]
        pretrain["attack"] = paper.pgd2(threat, radii[method, threat])
    if variant:
        pretrain = merged(pretrain, paper.byol_adamw())
    if scale != "imagenet":
        small_run, small_pretrain, small_finetune = small.SCALES[scale]
        run = merged(run, small_run())
        pretrain = merged(pretrain, small_pretrain(method))
        finetune = merged(finetune, small_finetune())
    return config_dict(run | {"pretrain": pretrain, "finetune": finetune})


def transfer(optimizer: str, argument: str) -> ml_collections.ConfigDict:
    """Fine-tuning of given weights on a small set (section E).

    ``argument`` is ``SET``, for an encoder of the paper's scale, or ``SET,SCALE``.
    """
    name, _, scale = argument.partition(",")
    scale = scale or "imagenet"
    _choose("set", name, (*paper.TRANSFER_SETS, "digits"))
    _choose("scale", scale, SCALES)
    run, stage = paper.run(), paper.TRANSFERS[optimizer]()
    if scale != "imagenet":
        run = merged(run, small.SCALES[scale][0]())
    run = merged(run, _transfer_data(name))
    stage["split"] = run.pop("train")
    return config_dict(run | {"pretrain": OURS(None), "finetune": stage})


def _transfer_data(name: str) -> Tree:
    if name in paper.TRANSFER_SETS:
        data, train, test = paper.TRANSFER_SETS[name]
        splits = PAPER(data, "E"), OPEN(train, "E"), OPEN(test, "E")
    else:
        splits = OURS(name), OURS("train"), OURS("test")
    return {
        "data": {"name": splits[0]},
        "train": splits[1],
        "evaluate": {
            "split": splits[2],
            "resize": PAPER(0, "P:C"),  # the whole image, stretched
            "attacks": OURS(()),
        },
    }


def _choose(what: str, given: str, among: tuple[str, ...]) -> None:
    if given not in among:
        raise UserError(
            f"{what} {given!r} behind the file's name in --config=FILE:ARGUMENT: "
            f"choose from {', '.join(among) or 'none'}."
        )
