"""Which data sets are ready, where, what is wrong with the others, and how to get them.

python -m adv_ssl.data [NAME or FOLDER ...] [--data_dir=DIR] [--thorough]
    Without a NAME: every set that a configuration or a suite needs. FOLDER is one of images, as
    --config.data.name=folder:FOLDER reads it. Decoded are all images of a split of 1,000 or fewer,
    64 of a larger one; by --thorough all.
python -m adv_ssl.data --prepare=NAME [--data_dir=DIR]
    Downloads a set and prepares it, by TFDS.

Exit codes: 0 all that was asked for is ready; 1 something is missing or wrong; 2 a mistake in the
command, or a set that cannot be prepared, told in one line; 75 stopped, start again.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from adv_ssl import command
from adv_ssl.doctor import report
from adv_ssl.doctor.check import READY
from adv_ssl.doctor.prepare import prepare
from adv_ssl.doctor.sets import find
from adv_ssl.errors import UserError

_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Folder of TFDS; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)
_THOROUGH = flags.DEFINE_bool("thorough", False, "Decode every image.")
_PREPARE = flags.DEFINE_string("prepare", None, "The set to prepare.")


def _work(words: Sequence[str]) -> None:
    data_dir = os.path.expanduser(_DATA_DIR.value)
    if _PREPARE.value is not None:
        if words:
            raise UserError(f"--prepare={_PREPARE.value} {words[0]}: expected one set alone.")
        words = [_PREPARE.value]
        if words != [report.DIGITS]:  # which comes with scikit-learn
            prepare(find(words[0]), data_dir)
    reports = report.reports(words, data_dir, _THOROUGH.value)
    print("\n".join(report.table(reports)))
    sys.exit(any(one.state != READY for one in reports))


if __name__ == "__main__":
    command.start(_work, command.parse_flags)
