"""Command lines, each in a process of its own that begins with everything imported already."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from conftest import ROOT

_FORKS = """
import importlib, json, os, runpy, sys
module, folder, imports, lines = json.loads(sys.argv[1])
for name in imports:
    importlib.import_module(name)
for i, words in enumerate(lines):
    child = os.fork()
    if child == 0:
        for stream, end in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{i}.{end}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def ran(
    module: str,
    imports: Sequence[str],
    lines: Sequence[Sequence[str]],
    folder: pathlib.Path,
    **environment: str,
) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of ``python -m module`` with each line.

    ``imports`` are what the module itself imports; the output is kept in ``folder``.
    """
    job = json.dumps([module, str(folder), imports, lines])
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, job],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    codes = [int(code) for code in done.stdout.split()]
    assert len(codes) == len(lines), done.stderr
    texts = [[(folder / f"{i}.{e}").read_text() for e in ("out", "err")] for i in range(len(lines))]
    return [(code, *text) for code, text in zip(codes, texts, strict=True)]
