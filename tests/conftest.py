"""Strict settings for all tests, and the small things they share."""

import dataclasses
import os
import pathlib
import signal
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # the first process: what follows is for all others
    _cache = tempfile.TemporaryDirectory(prefix="adv_ssl-programs-")
    # The tests are mostly compiling: compile lightly, and the same program once.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": _cache.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

import jax
import numpy as np
import pytest

from adv_ssl import preemption, tasks
from adv_ssl.data.photometric import Photometric
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.task import Task
from adv_ssl.tasks import byol, mae, rotnet, simclr, supervised

# In the background, or under nohup, these would be ignored by all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = pathlib.Path(__file__).parent.parent
TINY = Architecture(image_size=8, patch=4, width=16, depth=1, heads=2, mlp=32)
CLASSES = 3


# Without colour jitter, which takes most of the compilation and has tests of its own.
PALE = Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, (0.1, 2.0), 0.5)


# Of every task, options that make it tiny: what the tests of all tasks go over.
OPTIONS = {
    "byol": byol.Byol(32, 16, PALE, PALE),
    "mae": mae.Mae(mask_ratio=0.5, width=12, depth=1, heads=2, mlp=24),
    "rotnet": rotnet.RotNet(0.1, 0.02),
    "simclr": simclr.SimClr(0.5, 32, 16, PALE, PALE),
    "supervised": supervised.Supervised(0.1, 0.02, None, None),
}


# Of tasks that couple the images of a batch, what does it: without it they obey the law that images
# are apart, or, where it is the loss itself, they are not asked to.
COUPLED_BY = {"byol": "batch norm", "simclr": "loss"}


def random_classifier(classes: int) -> dict:
    """Parameters of TINY and a head."""
    task = supervised.make(OPTIONS["supervised"], ViT(TINY), classes)
    return jax.jit(task.init)(jax.random.key(0))


def make_task(name: str, drop_path: float = 0.0) -> Task:
    """With drop path two blocks, since the rate of the first is 0."""
    architecture = dataclasses.replace(TINY, depth=2) if drop_path else TINY
    encoder = ViT(architecture, drop_path, learned_positions=name != "mae")
    return tasks.make(OPTIONS[name], encoder, CLASSES)


def make_batch(name: str, size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    views = OPTIONS[name].views
    shape = (size, *([views] if views > 1 else []), 8, 8, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
    }


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs are many small mappings of memory, of which a process may have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def forget_stops():
    """One test may ask for an end, and fail before it takes that back."""
    yield
    preemption._asked.clear()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder with the real data sets, where it is."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "tfds"))
    for name in ("cifar10", "imagenet2012", "geirhos_conflict_stimuli"):
        if not (folder / name).is_dir():
            pytest.skip(f"the real data set {name} is missing in {folder}; set TFDS_DATA_DIR")
    return folder
