"""python -m adv_ssl.main --config=FILE[:SCALE] --workdir=DIR [--config.KEY=VALUE ...]

FILE is configs/NAME.py: supervised, rotnet, mae or byol with _nominal, _linf or _l2; simclr_l2,
continue_mae_l2, transfer_sgd, transfer_adamw. SCALE is imagenet (the paper's), cifar10, cifar10_ti,
cifar10_s or digits, for a transfer SET[,SCALE]. All keys with their values:
    python -c 'from configs import byol_l2; print(byol_l2.get_config("digits"))'
One process of several: --coordinator=HOST:PORT --processes=N --process=I (docs/scale.md).
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

hosts.define_flags()
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
