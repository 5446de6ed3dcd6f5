"""Classification: adversarial or nominal supervision, and what fine-tuning and transfer train."""

import dataclasses
from typing import ClassVar

from jax import Array

from adv_ssl.data.mixing import Erasing, Mixing, erase, mix
from adv_ssl.keys import named
from adv_ssl.models.vit import MEAN, STD, ViT
from adv_ssl.ranges import Below1, NotNegative, Options
from adv_ssl.task import Batch, Prepared, Task, pixels
from adv_ssl.tasks import classifier


@dataclasses.dataclass(frozen=True)
class Supervised(Options):
    """Options of the task."""

    label_smoothing: Below1  # share of the target spread over all classes
    head_std: NotNegative  # of the head's initial weights; its bias starts at 0
    erasing: Erasing | None
    mixing: Mixing | None
    views: ClassVar[int] = 1


def make(options: Supervised, encoder: ViT, classes: int) -> Task:
    """Cross-entropy to soft targets of erased, then mixed images (C-SUP, D11)."""

    def prepare(batch: Batch, key: Array) -> Prepared:
        images = pixels(batch)
        targets = classifier.smoothed(batch["label"], classes, options.label_smoothing)
        if options.erasing:
            images = erase(images, named(key, "erasing"), MEAN, STD, options.erasing)
        if options.mixing:
            images, targets = mix(images, targets, named(key, "mixing"), options.mixing)
        return Prepared(images, targets)

    return classifier.make(encoder, classes, options.head_std, prepare)
