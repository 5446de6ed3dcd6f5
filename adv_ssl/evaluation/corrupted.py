"""Sets that are corrupted on the fly, and where they are kept for the next model."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from typing import Any

import numpy as np

from adv_ssl.data import corruptions
from adv_ssl.data.sources import Read, Source
from adv_ssl.errors import UserError
from adv_ssl.files import write_atomically


def corrupted(
    source: Source, corruption: tuple[str, int], seed: int, kept: pathlib.Path | None = None
) -> Source:
    """The same images, each corrupted by ``seed`` and its place in the set.

    Args:
      source: the clean images.
      corruption: type and severity.
      seed: of all of them.
      kept: where corrupted images are looked up, and kept; None: they are made anew. Images are
        found again only if clean images, seed and the code that corrupts are the same.
    """
    records, (name, severity) = source.records, corruption

    def anew(i: int) -> tuple[np.ndarray, Any]:
        image, label = records.read(i)
        return corruptions.corrupt(image, name, severity, (seed, i)), label

    read: Read = anew
    if kept is not None:
        identity = _identity(records.read, len(records), seed)
        read = _kept(anew, source, kept / identity / f"{name}_{severity}.npy")
    return dataclasses.replace(source, records=dataclasses.replace(records, read=read))


def _kept(read: Read, source: Source, path: pathlib.Path) -> Read:
    """What ``read`` gives, with the images in one file, [N, H, W, 3]."""
    if not path.exists():
        images, content = [read(i)[0] for i in range(len(source.records))], io.BytesIO()
        np.save(content, np.stack(images))
        mine = path.with_name(f"{path.name}.{os.getpid()}")  # others may be at the same set
        write_atomically(mine, content.getvalue())
        os.replace(mine, path)
    try:
        images = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and it is made anew.") from None
    return lambda i: (images[i], source.records.read(i)[1])


@functools.lru_cache(maxsize=1)  # a suite corrupts one set, 75 times
def _identity(read: Read, images: int, seed: int) -> str:
    """Of the clean images, the seed and the code."""
    code = pathlib.Path(corruptions.__file__).read_bytes()
    total = hashlib.sha256(code + f"{seed} {np.__version__}".encode())
    for i in range(images):
        total.update(read(i)[0].tobytes())
    return total.hexdigest()[:16]
