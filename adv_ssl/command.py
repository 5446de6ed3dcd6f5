"""What all commands share: one line and an exit code for whatever goes wrong.

0 done; 1 the training cannot go on; 2 a mistake in the command, the configuration or the data;
75 stopped by SIGTERM or Ctrl-C with everything saved: start the same command again.
"""

import contextlib
import errno
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

import absl.logging
from absl import app, flags

from adv_ssl import hosts, preemption, runtime, train
from adv_ssl.errors import UserError, disk_full, out_of_memory

# What is wrong with a path that a user named, or with what lies there
_PATHS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
          errno.ELOOP, errno.ENAMETOOLONG}  # fmt: skip
log = logging.getLogger("adv_ssl")


def leave(message: str, code: int = 2) -> NoReturn:
    """Says why, in one line, and ends."""
    hosts.say(" ".join(message.split()))
    sys.exit(code)


def start(
    work: Callable[[Sequence[str]], None], parse: Callable[[Sequence[str]], list[str]]
) -> None:
    """Runs a command: ``work`` gets what ``parse`` leaves of the command line.

    Never returns.
    """

    def main(rest: Sequence[str]) -> None:
        _log_to(sys.stdout)
        preemption.watch()
        runtime.prepare()
        with _answered():
            work(rest[1:])

    def parsed(argv: Sequence[str]) -> list[str]:
        try:
            return parse(argv)
        except SystemExit as end:  # absl ends with 1 after its --help
            sys.exit(0 if end.code == 1 else end.code)

    app.run(main, flags_parser=parsed)


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
        sys.stdout.flush()
    except hosts.AgreedError as error:
        leave(str(error))
    except UserError as error:
        (_end if hosts.together() else leave)(str(error), 2)
    except train.TrainingError as error:
        leave(str(error), code=1)
    except preemption.Preempted:
        log.info("stopped: start the same command again to go on.")
        sys.exit(75)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():  # as behind ``| head``; all is done
            _hush()
            return
        if hosts.lost(error):
            _end(hosts.told_of_loss(error), code=75)
        if reason := _refused(error):
            _end(reason, code=2)
        if hosts.together():
            traceback.print_exc()
            os._exit(1)
        raise


def _end(message: str, code: int) -> NoReturn:
    """Leaves at once: libraries would write what they still hold, or wait for the other hosts."""
    with contextlib.suppress(SystemExit):
        leave(message, code)
    os._exit(code)


def _refused(error: Exception) -> str:
    """What is missing or forbidden on this machine, in a line; "": another error."""
    if out_of_memory(error):
        return (
            f"out of memory ({str(error)[:100]}): go on with config.remat=True, with "
            "config.fsdp=True on several devices or, in scoring, a lower "
            "config.evaluate.batch_size (--batch_size of adv_ssl.evaluate); or begin a new "
            "--workdir with a higher config.STAGE.accumulation."
        )
    if disk_full(error):
        name = getattr(error, "filename", None)
        of = f" of {name}" if name else ""
        return f"no space left on the disk{of}: make room and start again."
    if isinstance(error, OSError) and error.errno in _PATHS and error.filename:
        return f"{error.filename}: {error.strerror}: name another place, or change what is there."
    return ""


class _Lines(logging.StreamHandler[TextIO]):
    """Goes on in silence where nobody reads any more, as behind ``| head``."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            _hush()
        else:
            super().handleError(record)


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _hush() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_to(stream: TextIO) -> None:
    """Our progress as plain lines, and nothing of the libraries'."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # errors are raised as well
    handler = _Lines(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
