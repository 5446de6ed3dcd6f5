"""--config=FILE[:SCALE] and --config.KEY=VALUE, for all commands that take a configuration."""

import pathlib
import re
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import adv_ssl
from adv_ssl.command import leave
from adv_ssl.errors import UserError, in_decimals

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:SCALE.", lock_config=True)

_HOME = pathlib.Path(adv_ssl.__file__).parents[1]  # of configs/, in a checkout and where installed


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; a mistake in it is told in one line."""
    if any(argument.lstrip("-").startswith("config.sources") for argument in argv):
        leave("config.sources says where the values come from: it is not to be set.")
    try:
        rest = flags.FLAGS([_from_anywhere(argument) for argument in argv])
    except (KeyError, AttributeError) as error:
        leave(_no_such_key(str(error.args[0]), argv))
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        none = re.match(r'Override (\S+) .* because field "(\w+)" is None', str(error))
        if none:
            leave(
                f"config.{none[1]}: {none[2]} is None in this configuration; take one that has it "
                "(an attack: those that end in _linf or _l2)."
            )
        if str(error).endswith("is not a dict."):
            leave(
                f"{error} Keys are set one by one; no attack is configs/METHOD_nominal.py, or "
                "--config.pretrain.attack.steps=0."
            )
        text = re.search(r"to float: '(.*)'$", str(error))
        leave(f"{error}{in_decimals(text and text[1])}")
    except Exception as error:  # whatever a configuration file raises while it is executed
        where = traceback.extract_tb(error.__traceback__)[-1]
        leave(f"--config: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    for stage in re.findall(r"^-{1,2}config\.(\w+)\.epochs\b", "\n".join(argv), re.MULTILINE):
        steps = value()[stage].steps
        if steps is not None:
            leave(
                f"config.{stage}.epochs: steps={steps} comes before it; set config.{stage}.steps."
            )
    if rest[1:]:
        leave(f"unexpected argument {rest[1]!r}: options begin with --.")
    return rest


def _no_such_key(error: str, argv: Sequence[str]) -> str:
    """The override that has it, and the key that may be meant."""
    names = re.findall(r"\w+", error)
    near = re.search(r'Did you mean "(\w+)"', error)
    given = (argument.partition("=")[0] for argument in argv)
    where = next((path for path in given if names and names[0] in path.split(".")), error)
    return f"{where}: no such key" + (f"; did you mean {near[1]}?" if near else ".")


def _from_anywhere(argument: str) -> str:
    """[--config=]configs/NAME.py[:SCALE] where that file is not: the one that came with us."""
    match = re.fullmatch(r"(-{0,2}config=)?(configs/\w+\.py)(:.*)?", argument)
    if match is None or pathlib.Path(match[2]).exists():
        return argument
    return f"{match[1] or ''}{_HOME / match[2]}{match[3] or ''}"


def value() -> Any:
    """The configuration; ``None``: the flag was not given."""
    if _CONFIG.value is not None and not isinstance(_CONFIG.value, ConfigDict):
        leave(
            "--config: there is no such configuration file, or it is broken; those that came with "
            f"us are in {_HOME / 'configs'}."
        )
    return _CONFIG.value
