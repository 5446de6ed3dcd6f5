"""The table of tasks: a new one is a new file and a new row."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from adv_ssl.models.vit import ViT
from adv_ssl.task import Aux, PyTree, Task
from adv_ssl.tasks import byol, mae, rotnet, simclr, supervised
from adv_ssl.tasks.views import Views


class Row(NamedTuple):
    """What there is to a task."""

    options: type
    make: Callable[[Any, ViT, int], Task]  # (options, encoder, classes) -> Task
    # (x, context, aux) -> what is shown of each image [B, ...], by name: see ``gallery.shown``
    pictures: Callable[[PyTree, Any, Aux], dict[str, Array]]
    class_names: tuple[str, ...] = ()  # of the task's own classes, if its pictures are labelled


def _input(x: Array, context: Any, aux: Aux) -> dict[str, Array]:
    return {"input": x}


def _first_view(x: Views, context: Any, aux: Aux) -> dict[str, Array]:
    return {"input": x.view1}


TASKS = {
    "byol": Row(byol.Byol, byol.make, _first_view),
    "mae": Row(mae.Mae, mae.make, mae.pictures),
    "rotnet": Row(rotnet.RotNet, rotnet.make, rotnet.pictures, rotnet.ANGLES),
    "simclr": Row(simclr.SimClr, simclr.make, _first_view),
    "supervised": Row(supervised.Supervised, supervised.make, _input),
}


def row(options: Any) -> Row:
    """The row of the task that ``options`` belong to."""
    return next(row for row in TASKS.values() if row.options is type(options))


def make(options: Any, encoder: ViT, classes: int) -> Task:
    """The task that ``options`` belong to."""
    return row(options).make(options, encoder, classes)
