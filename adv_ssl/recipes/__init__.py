"""The recipes: every value with its line of the method's specification and who states it.

``paper`` holds the paper's scale, ``small`` what the other ``SCALES`` change.
The configuration carries its ``sources``, so that the report can print, beside each value of a run,
where it comes from and whether the user changed it.
"""

from collections.abc import Mapping

import ml_collections

from adv_ssl.errors import UserError
from adv_ssl.recipes import paper, small
from adv_ssl.recipes.values import OPEN, OURS, PAPER, Tree, config_dict, merged

METHODS = tuple(paper.PRETRAINING)  # the paper's; what else there is has its recipe in configs/
THREATS = ("nominal", "linf", "l2")
SCALES = ("imagenet", *small.SCALES)


def recipe(
    method: str, threat: str, argument: str, changes: Tree | None = None, init_from: str = ""
) -> ml_collections.ConfigDict:
    """Pre-training by ``method`` under ``threat``, nominal fine-tuning, evaluation.

    ``argument`` is what stands behind the file's name in ``--config=FILE:ARGUMENT``: a scale; for
    BYOL ``imagenet,adamw`` takes AdamW in the place of LARS (C-BYOL-b). ``changes`` are of
    pre-training at the paper's scale; ``init_from`` is as for ``assembled``.
    """
    scale, _, variant = argument.partition(",")
    _choose("scale", scale, SCALES)
    if variant:
        _choose("variant", variant, ("adamw",) if (method, scale) == ("byol", "imagenet") else ())
    pretrain = paper.PRETRAINING[method]
    if threat != "nominal":
        radii = paper.RADII if scale == "imagenet" else small.SCALES[scale].radii
        pretrain = pretrain | {"attack": paper.pgd2(threat, radii[method, threat])}
    if variant:
        pretrain = merged(pretrain, paper.BYOL_ADAMW)
    own = {name: made.methods[method] for name, made in small.SCALES.items()}
    return assembled(scale, merged(pretrain, changes or {}), own, init_from)


def assembled(
    scale: str, pretrain: Tree, own: Mapping[str, Tree], init_from: str = ""
) -> ml_collections.ConfigDict:
    """Any pre-training, with the fine-tuning and the evaluation that all share.

    Args:
      scale: ``imagenet``, the paper's, or a key of ``own``.
      pretrain: at the paper's scale: all the keys of a stage.
      own: by smaller scale (``SCALES``), what changes beside that which it changes of all methods.
      init_from: what pre-training starts from; where the user has to name it, a placeholder.
    """
    _choose("scale", scale, ("imagenet", *own))
    run, finetune = paper.RUN, paper.FINETUNE
    if scale != "imagenet":
        made = small.SCALES[scale]
        run = merged(run, made.run)
        pretrain = merged(merged(pretrain, made.pretrain), own[scale])
        finetune = merged(finetune, made.finetune)
    stages = {"init_from": OURS(init_from), "pretrain": pretrain, "finetune": finetune}
    return config_dict(run | stages)


def transfer(optimizer: str, argument: str) -> ml_collections.ConfigDict:
    """Fine-tuning of given weights on a small set (section E).

    ``argument`` is ``SET``, for an encoder of the paper's scale, or ``SET,SCALE``.
    """
    name, _, scale = argument.partition(",")
    scale = scale or "imagenet"
    _choose("set", name, (*paper.TRANSFER_SETS, "digits"))
    _choose("scale", scale, SCALES)
    if name in paper.TRANSFER_SETS:
        data, train, test = paper.TRANSFER_SETS[name]
        where = PAPER(data, "E"), OPEN(train, "E"), OPEN(test, "E")
    else:
        where = OURS(name), OURS("train"), OURS("test")
    evaluate = {
        "split": where[2],
        "resize": PAPER(0, "P:C"),  # the whole image, stretched
        "attacks": OURS(()),
    }
    run = paper.RUN if scale == "imagenet" else merged(paper.RUN, small.SCALES[scale].run)
    run = merged(run, {"data": {"name": where[0]}, "evaluate": evaluate})
    stage = paper.TRANSFERS[optimizer] | {"split": where[1]}
    return config_dict(
        run | {"pretrain": OURS(None), "finetune": stage, "weights": OURS("WEIGHTS")}
    )


def _choose(what: str, given: str, among: tuple[str, ...]) -> None:
    if given not in among:
        raise UserError(
            f"{what} {given!r} behind the file's name in --config=FILE:ARGUMENT: "
            f"choose from {', '.join(among) or 'none'}."
        )
