"""Files of weights: which format one is, told by its content, and how each is read and written."""

import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from adv_ssl.errors import UserError, in_one_line
from adv_ssl.files import write_atomically
from adv_ssl.weights import torch_zip

MANIFEST = "adv_ssl"  # where our files keep what they say of themselves
_ACCEPTED = "a .pth of torch 1.6 or later, a .safetensors or an .npz"


class Raw(NamedTuple):
    """What a file holds, under its own names."""

    arrays: dict[str, np.ndarray]
    manifest: dict[str, Any]  # of our own exports; else empty


def read(path: pathlib.Path) -> Raw:
    """The arrays of a file in any of the formats.

    Raises:
      UserError: it is not there, of no known format, damaged or unsafe.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one file of weights, {_ACCEPTED}.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file: name {_ACCEPTED}.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name {_ACCEPTED}.") from None
    if not head:
        raise UserError(f"{path} is empty: fetch it again.")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not weights: fetch the file itself.")
    if head.startswith(b"\x80\x02\x8a"):
        raise UserError(
            f"{path} is of a torch before 1.6: load it there and torch.save it with a later one."
        )
    raise UserError(f"{path} begins with {head[:8]!r}: of no known format; name {_ACCEPTED}.")


def _read_zip(path: pathlib.Path) -> Raw:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except Exception as error:  # of a damaged directory the library raises almost anything
        reason = in_one_line(error)
        raise UserError(f"{path} is damaged or cut short ({reason}): fetch it again.") from None
    if any(name.endswith("/data.pkl") for name in members):
        return Raw(torch_zip.read(path), {})
    if members and all(name.endswith(".npy") for name in members):
        return _read_npz(path)
    raise UserError(f"{path} is a zip file without weights in it: name {_ACCEPTED}.")


def _read_npz(path: pathlib.Path) -> Raw:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _recovered(file[name]) for name in file.files}
    except Exception as error:  # of a damaged member numpy and zlib raise almost anything
        reason = in_one_line(error)
        raise UserError(f"{path} is damaged or holds more than arrays ({reason}).") from None
    text = arrays.pop(MANIFEST, None)
    return Raw(arrays, {} if text is None else _manifest(path, str(text)))


def _recovered(array: np.ndarray) -> np.ndarray:
    """Bfloat16 comes back from an .npz as two bytes of nothing."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _read_safetensors(path: pathlib.Path) -> Raw:
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get(MANIFEST)
    except (AttributeError, TypeError) as error:  # no such type of numpy's
        raise UserError(
            f"{path} holds numbers that are not read here ({error}): save it in float32."
        ) from None
    except (SafetensorError, OSError) as error:
        reason = in_one_line(error)
        raise UserError(f"{path} is damaged or cut short ({reason}): fetch it again.") from None
    return Raw(arrays, {} if text is None else _manifest(path, text))


def _manifest(path: pathlib.Path, text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: its entry {MANIFEST!r} is damaged: export the weights again.")
    return manifest


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Writes a .safetensors or .npz file, whole or not at all."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content, text = io.BytesIO(), json.dumps(manifest)
    if path.suffix == ".npz":
        entries: Any = whole | {MANIFEST: np.array(text)}
        np.savez(content, **entries)
    else:  # with a second entry the bytes would change from one time to the next
        content.write(save(whole, {MANIFEST: text}))
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): choose another place.") from None
