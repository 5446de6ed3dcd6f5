"""python -m adv_ssl.main --config=configs/byol_l2.py[:SCALE] --workdir=DIR [--config.KEY=VALUE ...]

Exit codes: 0 done; 2 a mistake in the command, the configuration or the data, told in one line;
75 stopped by SIGTERM or Ctrl-C with everything saved: start the same command again.
"""

import errno
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, TextIO

import absl.logging
import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from adv_ssl import pipeline, train
from adv_ssl.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:SCALE.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: a new one, or one to go on in.")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; a mistake in it is told in one line."""
    if any(argument.lstrip("-").startswith("config.sources") for argument in argv):
        _leave("config.sources says where the values come from: it is not to be set.")
    try:
        rest = flags.FLAGS(list(argv))
    except (KeyError, AttributeError) as error:
        _leave(f"the configuration has no such key: {error.args[0]}")
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        none = re.match(
            r'Override (\S+) can not be applied because field "(\w+)" is None', str(error)
        )
        if none:
            _leave(
                f"config.{none[1]}: {none[2]} is None in this configuration; take one that has it "
                "(an attack: those that end in _linf or _l2)."
            )
        _leave(str(error))
    except Exception as error:  # whatever a configuration file raises while it is executed
        where = traceback.extract_tb(error.__traceback__)[-1]
        _leave(f"--config: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    if rest[1:]:
        _leave(f"unexpected argument {rest[1]!r}: options begin with --.")
    if _CONFIG.value is None or not _WORKDIR.value:
        _leave("both --config=FILE[:SCALE] and --workdir=DIR are needed.")
    if not isinstance(_CONFIG.value, ConfigDict):
        _leave("--config: there is no such configuration file, or it is broken.")
    return rest


def _log_to(stream: TextIO) -> None:
    """Our progress as plain lines, and nothing of the libraries'."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # errors are raised as well
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("adv_ssl")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False


def _leave(message: str) -> NoReturn:
    print(f"adv_ssl: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _main(_: Sequence[str]) -> None:
    _log_to(sys.stdout)
    train.watch_for_preemption()
    workdir = pathlib.Path(str(_WORKDIR.value))
    try:
        page = pipeline.run(_CONFIG.value, workdir)
    except UserError as error:
        _leave(str(error))
    except train.TrainingError as error:
        print(f"adv_ssl: {error}", file=sys.stderr)
        sys.exit(1)
    except train.Preempted:
        logging.getLogger("adv_ssl").info(
            "stopped and saved: start the same command again to go on."
        )
        sys.exit(75)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _leave(
            f"out of memory ({str(error)[:100]}): lower config.pretrain.batch_size, "
            "config.finetune.batch_size, config.evaluate.batch_size or the model."
        )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = f"no space left on the disk of {workdir}: make room and start again."
        print(f"adv_ssl: {message}", file=sys.stderr, flush=True)
        os._exit(2)  # without the libraries' own attempts to write what they still hold
    print(page)


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse_flags)
