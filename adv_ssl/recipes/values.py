"""A recipe is a tree of ``Value``s: each with its line of the method's specification."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

Tree = dict[str, Any]
FLAGS = {  # and what they mean
    "PAPER": "stated by the paper",
    "REF": "stated by the reference the paper names, or by its released code",
    "OPEN": "left open by the paper: the best-supported choice",
    "OURS": "chosen by us: a smaller scale, or a matter of running",
    "changed": "differs from the recipe, whose value and source are in brackets",
}


class Value(NamedTuple):
    """A value of a recipe and where it comes from."""

    value: Any
    flag: str
    where: str


def _flagged(flag: str) -> Callable[..., Value]:
    return lambda value, where="": Value(value, flag, where)


PAPER, REF, OPEN, OURS = map(_flagged, ("PAPER", "REF", "OPEN", "OURS"))


def merged(tree: Tree, changes: Tree) -> Tree:
    """``tree`` with the leaves of ``changes`` over its own; another optimizer comes as a whole."""
    result = dict(tree)
    for key, change in changes.items():
        old: Any = tree.get(key)
        groups = isinstance(change, dict) and isinstance(old, dict)
        other = key == "optimizer" and "name" in change and change["name"][0] != old["name"][0]
        result[key] = merged(old, change) if groups and not other else change
    return result


def config_dict(tree: Tree) -> ml_collections.ConfigDict:
    """The configuration of a recipe, with its ``sources``: (flag, where, recipe's value)."""
    config = ml_collections.ConfigDict(_map(tree, lambda v: v.value))
    for stage in filter(None, (config.pretrain, config.finetune)):
        if stage.steps is None:
            stage.steps = ml_collections.config_dict.placeholder(int)  # for flags to set
    config.sources = ml_collections.ConfigDict(_map(tree, lambda v: (v.flag, v.where, v.value)))
    return config.lock()


def _map(node: Any, leaf: Callable[[Value], Any]) -> Any:
    if isinstance(node, dict):
        return {key: _map(child, leaf) for key, child in node.items()}
    return leaf(node)
