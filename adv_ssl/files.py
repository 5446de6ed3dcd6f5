"""Files that are either whole or not there, and folders that one run has for itself."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from adv_ssl.errors import UserError

_log = logging.getLogger("adv_ssl")


def user_path(given: str) -> pathlib.Path:
    """What an option, a key or a word names; shells leave a ~ behind ``=`` to us.

    Raises:
      UserError: it is ~NAME, and nobody has that name; or an address such as gs://BUCKET.
    """
    if "://" in given:  # pathlib would make it a folder here, called gs:
        raise UserError(f"{given} is no path of this machine: mount it, and name the folder.")
    try:
        return pathlib.Path(given).expanduser()
    except RuntimeError:
        raise UserError(f"{given}: there is no such user: name another place.") from None


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside ``path``, then moves there: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # where nothing could be written
            temporary.unlink()
        raise


@contextlib.contextmanager
def at_last(write: Callable[[], object]) -> Iterator[None]:
    """Writes a page of what there is, however the work ends. Where it ends early, a page that
    cannot be written, as on a full disk, does not hide why.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            write()
        raise
    write()


def read_json(path: pathlib.Path, kind: type, /, **fields: type) -> Any:
    """What ``write_json`` wrote: a ``dict`` with these fields, or a ``list`` of such dicts.

    Raises:
      UserError: somebody else changed it.
    """
    try:
        value = json.loads(path.read_text())
        _check(value, kind)
        for record in value if kind is list else [value]:
            for name, of in fields.items():
                _check(record, dict)
                _check(record.get(name), of, f"{name} is ")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(
            f"{path} is damaged ({error}): move it away and start the same command again."
        ) from None
    return value


def _check(value: Any, kind: type, what: str = "") -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{what}a {type(value).__name__}, not a {kind.__name__}")


class Busy(UserError):
    """Another process of this machine holds the folder."""


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Makes ``folder`` if need be, and keeps other processes of this machine out of it.

    Raises:
      Busy: another process is in it.
      UserError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): choose another folder."
        ) from None
    with lock:
        try:
            _lock(lock)
        except BlockingIOError:
            raise Busy(
                f"another run is at work in {folder}: wait for it, or choose another folder."
            ) from None
        except OSError as error:  # Lustre without its option flock
            _log.warning("%s: no locks here (%s): one run at a time.", folder, error.strerror)
        yield


def _lock(file: IO[str]) -> None:
    """Tries for a moment: another process that looks whether it is held has it that long."""
    for _ in range(3):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(folder: pathlib.Path) -> bool:
    """Whether a process of this machine holds the folder. Makes nothing."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # it is not there, or there are no locks
        return False


def write_arrays(path: pathlib.Path, **arrays: Any) -> None:
    """An .npz file, atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Of an .npz file."""
    with path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def write_json(path: pathlib.Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: pathlib.Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for other programs, atomically; what is None is left empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_atomically(path, text.getvalue())


def sha256(path: pathlib.Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{inner.relative_to(path)} {sha256(inner)}\n".encode())
    return total.hexdigest()
