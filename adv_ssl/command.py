"""What all commands share: one line and an exit code for whatever goes wrong.

0 done; 1 the training cannot go on; 2 a mistake in the command, the configuration or the data;
75 stopped by SIGTERM or Ctrl-C with everything saved: start the same command again.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

import absl.logging
import jax
from absl import app, flags

from adv_ssl import train
from adv_ssl.errors import UserError

log = logging.getLogger("adv_ssl")


def leave(message: str, code: int = 2) -> NoReturn:
    """Says why, in one line, and ends."""
    print(f"adv_ssl: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def start(
    work: Callable[[Sequence[str]], None], parse: Callable[[Sequence[str]], list[str]]
) -> None:
    """Runs a command: ``work`` gets what ``parse`` leaves of the command line.

    Never returns.
    """

    def main(rest: Sequence[str]) -> None:
        _log_to(sys.stdout)
        train.watch_for_preemption()
        with _answered():
            work(rest[1:])

    app.run(main, flags_parser=parse)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; a mistake in it is told in one line. Words may stand anywhere."""
    flags.FLAGS.set_gnu_getopt(True)
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        leave(str(error))


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Turns what was raised into a line and an exit code."""
    try:
        yield
    except UserError as error:
        leave(str(error))
    except train.TrainingError as error:
        leave(str(error), code=1)
    except train.Preempted:
        log.info("stopped and saved: start the same command again to go on.")
        sys.exit(75)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        leave(
            f"out of memory ({str(error)[:100]}): lower the batch sizes (config.STAGE.batch_size, "
            "--batch_size) or take a smaller model."
        )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        of = f" of {error.filename}" if error.filename else ""
        message = f"no space left on the disk{of}: make room and start again."
        print(f"adv_ssl: {message}", file=sys.stderr, flush=True)
        os._exit(2)  # without the libraries' own attempts to write what they still hold


def _log_to(stream: TextIO) -> None:
    """Our progress as plain lines, and nothing of the libraries'."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # errors are raised as well
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
