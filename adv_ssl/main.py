"""python -m adv_ssl.main --config=configs/byol_l2.py[:SCALE] --workdir=DIR [--config.KEY=VALUE ...]

Exit codes: 0 done; 1 the training cannot go on; 2 a mistake in the command, the configuration or
the data, told in one line; 75 stopped by SIGTERM or Ctrl-C with everything saved: start the same
command again.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags

from adv_ssl import command, config_flag, hosts, pipeline
from adv_ssl.command import leave

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: a new one, or one to go on in.")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    rest = config_flag.parse_flags(argv)
    if config_flag.value() is None or not _WORKDIR.value:
        leave("both --config=FILE[:SCALE] and --workdir=DIR are needed.")
    return rest


def _work(_: Sequence[str]) -> None:
    if hosts.several():
        if not hosts.works():
            sys.exit(hosts.watch())
        hosts.join()
        if not hosts.lead():
            command.log.setLevel(logging.WARNING)
    print(pipeline.run(config_flag.value(), str(_WORKDIR.value)))


if __name__ == "__main__":
    command.start(_work, _parse_flags)
