"""python -m adv_ssl.main --config=configs/byol_l2.py[:SCALE] --workdir=DIR [--config.KEY=VALUE ...]

Exit codes: 0 done; 1 the training cannot go on; 2 a mistake in the command, the configuration or
the data, told in one line; 75 stopped by SIGTERM or Ctrl-C with everything saved: start the same
command again.
"""

import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from adv_ssl import command, hosts, pipeline
from adv_ssl.command import leave
from adv_ssl.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:SCALE.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: a new one, or one to go on in.")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; a mistake in it is told in one line."""
    if any(argument.lstrip("-").startswith("config.sources") for argument in argv):
        leave("config.sources says where the values come from: it is not to be set.")
    try:
        rest = flags.FLAGS(list(argv))
    except (KeyError, AttributeError) as error:
        leave(f"the configuration has no such key: {error.args[0]}")
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        none = re.match(r'Override (\S+) .* because field "(\w+)" is None', str(error))
        if none:
            leave(
                f"config.{none[1]}: {none[2]} is None in this configuration; take one that has it "
                "(an attack: those that end in _linf or _l2)."
            )
        leave(str(error))
    except Exception as error:  # whatever a configuration file raises while it is executed
        where = traceback.extract_tb(error.__traceback__)[-1]
        leave(f"--config: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    if rest[1:]:
        leave(f"unexpected argument {rest[1]!r}: options begin with --.")
    if _CONFIG.value is None or not _WORKDIR.value:
        leave("both --config=FILE[:SCALE] and --workdir=DIR are needed.")
    if not isinstance(_CONFIG.value, ConfigDict):
        leave("--config: there is no such configuration file, or it is broken.")
    return rest


def _work(_: Sequence[str]) -> None:
    if hosts.several():
        if not hosts.works():
            sys.exit(hosts.watch())
        hosts.join()
        if not hosts.lead():
            command.log.setLevel(logging.WARNING)
    print(pipeline.run(_CONFIG.value, pathlib.Path(str(_WORKDIR.value))))


if __name__ == "__main__":
    command.start(_work, _parse_flags)
