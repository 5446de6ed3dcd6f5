"""What a command sets up for its process, in processes of their own."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = """
import ctypes, resource
from adv_ssl import runtime
runtime.prepare()
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE: all pages are small
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    scratch = libc.malloc(size)
    libc.memset(scratch, 1, size)
    libc.free(scratch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
COMPILE = """
import jax
from adv_ssl import runtime
runtime.prepare()
jax.jit(lambda x: x + 1)(1.0)
"""


def run(code: str, **environment: str) -> str:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "JAX_")) and name != "XDG_CACHE_HOME"
    }
    always = {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=inherited | always | environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_MMAP_MAX_": "9"}, False)])
def test_freed_memory_is_kept(environment, kept):
    """The second time the pages are there already; a word on malloc in the environment is last."""
    assert (int(run(FAULTS, **environment)) < 1000) == kept


def names(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.rglob("*-cache")]


@pytest.mark.parametrize("told", [True, False])
def test_programs_are_kept(told: bool, tmp_path: pathlib.Path):
    """In the user's cache, or where JAX was told."""
    other = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "other")} if told else {}
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path / "user"), **other)
    assert bool(names(tmp_path / "other")) == told
    assert bool(names(tmp_path / "user" / "adv_ssl")) != told
