"""Batches as a pure function of (seed, step): nothing to save, the same for any number of hosts."""

import functools
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from adv_ssl.data import transforms
from adv_ssl.data.sources import Source
from adv_ssl.data.transforms import Augment
from adv_ssl.errors import UserError

Batch = dict[str, Any]  # of arrays; or one example, without the axis B


def train_batches(
    source: Source,
    *,
    image_size: int,
    views: int,
    augment: Augment,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """Batches ``start`` to ``stop - 1`` of the endless sequence that ``seed`` stands for.

    Every epoch is a new permutation of the source, its last, short batch dropped. Example ``i`` of
    the sequence is always the same, augmentation included, wherever the sequence is entered.

    Args:
      source: the images.
      image_size: S, side of the square they become, pixels.
      views: V, of each image.
      augment: what makes a view of an image.
      batch_size: B, over all hosts: a multiple of ``hosts``, not more than the source has.
      seed: a non-negative integer.
      start: first step to yield.
      stop: step to stop before.
      host: this host; it yields rows [host * B / hosts, (host + 1) * B / hosts) of each batch.
      hosts: number of hosts.

    Returns:
      An iterator over ``{"image": uint8 [B / hosts, V, S, S, 3], "label": int32 [B / hosts]}``,
      without the axis V if ``views`` is 1. Close it, or drop it, to stop its threads.
    """
    images = len(source.records)
    # grain permutes epoch e by seed + e: unmixed, seed 1's epoch 0 would be seed 0's epoch 1.
    shuffle_seed, augment_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
    examples = (
        grain.MapDataset.source(source.records)
        .shuffle(seed=shuffle_seed)
        .slice(slice(images // batch_size * batch_size))
        .repeat()
        .random_map(functools.partial(_example, image_size, views, augment), seed=augment_seed)
    )
    rows = batch_size // hosts

    def example(i: int) -> Batch:  # of this host: row i % rows of step i // rows
        return examples[i // rows * batch_size + host * rows + i % rows]

    return _run(grain.MapDataset.range(start * rows, stop * rows).map(example), rows)


def _example(
    image_size: int, views: int, augment: Augment, record: dict[str, Any], rng: np.random.Generator
) -> Batch:
    made = [transforms.augment(record["image"], rng, image_size, augment) for _ in range(views)]
    image = np.stack(made) if views > 1 else made[0]
    return {"image": image, "label": np.int32(record["label"])}


def eval_batches(
    source: Source,
    *,
    image_size: int,
    resize: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Batch]:
    """Images ``start`` to ``stop - 1`` once each, in order; the last one fills the last batch up.

    Args:
      source: the images.
      image_size: S, side of the central crop, pixels.
      resize: short side of the image before the crop, pixels; 0: no crop, the image is stretched.
      batch_size: B.
      start: position of the first image in the source.
      stop: position behind the last one; None: all.

    Returns:
      An iterator over ``{"image": uint8 [B, S, S, 3], "label": int32 [B] or as the source has it,
      "mask": bool [B], "index": int32 [B]}``: ``mask`` is false for filling, ``index`` the position
      in the source.

    Raises:
      UserError: at once, if ``resize`` is less than ``image_size``.
    """
    if 0 < resize < image_size:
        raise UserError(f"resize={resize}: must be image_size={image_size} or more.")
    images = len(source.records) if stop is None else stop

    def example(i: int) -> Batch:
        index = min(i, images - 1)
        record = source.records[index]
        return {
            "image": transforms.eval_crop(record["image"], resize, image_size),
            "label": np.asarray(record["label"], np.int32),
            "mask": np.bool_(i < images),
            "index": np.int32(index),
        }

    batches = -((start - images) // batch_size)  # rounded up
    filled = start + batches * batch_size
    return _run(grain.MapDataset.range(start, filled).map(example), batch_size)


def _run(examples: grain.MapDataset, batch_size: int) -> Iterator[Batch]:
    """Computes examples in threads, two batches ahead, and stacks them."""
    options = grain.ReadOptions(
        num_threads=min(os.cpu_count() or 1, 32, 2 * batch_size),
        prefetch_buffer_size=2 * batch_size,
    )
    iterator = iter(examples.to_iter_dataset(options).batch(batch_size))
    try:
        yield from iterator
    finally:
        iterator.close()  # else the threads would finish their work before the program may end
