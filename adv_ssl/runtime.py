"""How a process is set up: it keeps freed memory and compiled programs."""

import ctypes
import os
import pathlib

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # names in glibc's malloc.h


def prepare() -> None:
    """For commands, before JAX's backends start: their threads would have heaps of their own."""
    _keep_memory()
    _keep_programs()


def _keep_memory() -> None:
    """Freed memory stays with the process. XLA:CPU asks for a step's whole scratch space anew in
    each step: by default glibc gives it back to the system, which clears it again page by page, a
    third of the time of a small ViT's step. What the environment says of malloc has precedence.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    mallopt(_ARENA_MAX, 1)  # other heaps are small and given back when empty
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


def _keep_programs() -> None:
    """Compiled programs go to the user's cache folder, where JAX was not told of another: the same
    command again, after a preemption too, starts in seconds.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(caches) / "adv_ssl"))
