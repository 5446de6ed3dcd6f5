"""The table of tasks: a new one is a new file and a new row."""

from collections.abc import Callable
from typing import Any

from adv_ssl.models.vit import ViT
from adv_ssl.task import Task
from adv_ssl.tasks import byol, supervised

# name -> (its options, the function (options, encoder, classes) -> Task)
TASKS: dict[str, tuple[type, Callable[[Any, ViT, int], Task]]] = {
    "byol": (byol.Byol, byol.make),
    "supervised": (supervised.Supervised, supervised.make),
}


def make(options: Any, encoder: ViT, classes: int) -> Task:
    """The task that ``options`` belong to."""
    return dict(TASKS.values())[type(options)](options, encoder, classes)
