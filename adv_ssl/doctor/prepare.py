"""Prepares a data set of TFDS as array_record."""

import logging
import signal
import sys
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from adv_ssl.data import sources
from adv_ssl.doctor import check
from adv_ssl.doctor.sets import Set
from adv_ssl.errors import UserError, disk_full, in_one_line
from adv_ssl.preemption import Preempted

_log = logging.getLogger("adv_ssl")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def prepare(known: Set, data_dir: str) -> None:
    """Makes what is missing of a set; returns when it is ready.

    A set appears in its folder at once and whole: TFDS writes beside it, into incomplete.*.

    Raises:
      UserError: it cannot be prepared, or what is there is not whole.
      Preempted: on Ctrl-C or SIGTERM; what has been downloaded is kept.
    """
    parts = {name: check.check_part(known, name, data_dir, False) for name in known.parts}
    for part in parts.values():
        if part.state == check.WRONG:
            raise UserError(
                f"{known.name} is already there, but damaged or incomplete "
                f"({'; '.join(part.problems)[:200]}): move {part.folder} away, then start the same "
                "command again."
            )
    missing = [name for name, part in parts.items() if part.state == check.MISSING]
    if missing and (absent := known.absent(data_dir)):
        raise UserError(
            f"{known.name}: preparing needs more than reading. First {'; then '.join(absent)}; "
            "then start the same command again."
        )
    for name in missing:
        _log.info("%s: %s", name, check.amounts(known, data_dir))
        _prepare(name, data_dir)
        part = check.check_part(known, name, data_dir, False)
        if part.state != check.READY:
            raise UserError(
                f"{name} was prepared, but is {part.state} ({'; '.join(part.problems)[:200]}): "
                f"move {part.folder} away, and see that the originals are whole."
            )


def _prepare(name: str, data_dir: str) -> None:
    """One set, by TFDS's own code, from its own address."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # TFDS tries an address ten times
    handlers = {n: signal.signal(n, signal.default_int_handler) for n in _SIGNALS}
    folder = sources.tfds_folder(data_dir)
    exact, builder = sources.as_tfds_writes(name), None
    try:
        builder = tfds.builder(exact, data_dir=folder)
        config = tfds.download.DownloadConfig(try_download_gcs=False)  # there it is tfrecord
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except KeyboardInterrupt:
        raise Preempted from None
    except Exception as error:  # of TFDS and of the network's libraries: almost anything
        if disk_full(error):
            raise
        reason = in_one_line(error, 300)
        files = _originals(exact, (builder and builder.url_infos) or {})
        raise UserError(
            f"{name} could not be prepared ({type(error).__name__}: {reason})."
            + f" Where the network fails or an address is dead, put {files} into "
            f"{folder}/downloads/manual yourself; then start the same command again." * bool(files)
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _originals(name: str, infos: Mapping[str, Any]) -> str:
    """The files that TFDS would fetch: it takes those of downloads/manual, by their checksums."""
    files = sorted(info.filename for info in infos.values() if info.filename)
    config = name.split(":")[0].partition("/")[2]
    return " and ".join([file for file in files if config in file] or files)
