"""SIGTERM and Ctrl-C: asked for at any time, answered where there is a good place to stop."""

import contextlib
import signal
import subprocess
import threading
from typing import Any

_asked = threading.Event()


class Preempted(Exception):
    """SIGTERM or Ctrl-C came; what has to be saved is saved."""


def watch() -> None:
    """SIGTERM and Ctrl-C now ask for an end; a second Ctrl-C ends at once."""

    def ask(number: int, _: object) -> None:
        _asked.set()
        if number == signal.SIGINT:  # a launcher sends SIGTERM beside the terminal's Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)


def asked() -> bool:
    """Whether an end was asked for."""
    return _asked.is_set()


def stop_if_asked() -> None:
    """Raises Preempted once it was: for work that has nothing to save."""
    if asked():
        raise Preempted


def end_of(child: "subprocess.Popen[Any]") -> int:
    """The exit code of a process, which is asked to end as soon as this one is."""
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=0.2)
        if asked() and not told:
            child.terminate()
            told = True
