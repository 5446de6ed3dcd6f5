"""SIGTERM and Ctrl-C: asked for at any time, answered where there is a good place to stop."""

import signal
import threading

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
