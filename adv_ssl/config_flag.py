"""--config=FILE[:SCALE] and --config.KEY=VALUE, for all commands that take a configuration."""

import re
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from adv_ssl.command import leave
from adv_ssl.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:SCALE.", lock_config=True)


def parse_flags(argv: Sequence[str]) -> list[str]:
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
        fraction = re.search(r"to float: '([\d.]+)/(\d+)'$", str(error))
        hint = f"; write {float(fraction[1]) / int(fraction[2]):.6f}" if fraction else ""
        leave(f"{error}{hint}")
    except Exception as error:  # whatever a configuration file raises while it is executed
        where = traceback.extract_tb(error.__traceback__)[-1]
        leave(f"--config: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    if rest[1:]:
        leave(f"unexpected argument {rest[1]!r}: options begin with --.")
    return rest


def value() -> Any:
    """The configuration; ``None``: the flag was not given."""
    if _CONFIG.value is not None and not isinstance(_CONFIG.value, ConfigDict):
        leave("--config: there is no such configuration file, or it is broken.")
    return _CONFIG.value
