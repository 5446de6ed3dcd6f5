"""Files of ``torch.save``, read without torch and without running what a pickle asks for.

A pickle is a program that may call any function of any module. The reader knows the handful of
names that tensors are made of, has a function of its own behind each, and refuses all others.
"""

import io
import pathlib
import pickle
import zipfile
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from adv_ssl.errors import UserError, in_one_line

_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}
_WRAPPERS = ("model", "state_dict")  # where MAE and timm keep the weights beside other things


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of the state dict in ``path``, a zip file of torch 1.6 or later.

    Raises:
      UserError: it is damaged, it holds no state dict, or it asks for more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Unpickler(path, archive).load()
    except UserError:
        raise
    except Exception as error:  # of a damaged pickle the library raises almost anything
        reason = in_one_line(error)
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {reason}): fetch it again."
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a dict of tensors by name: "
            "save the model's state_dict() alone."
        )
    others = [name for name, value in content.items() if not isinstance(value, np.ndarray)]
    if others:
        raise UserError(
            f"{path}: {others[0]} is a {type(content[others[0]]).__name__}, not a tensor: "
            "save the model's state_dict() alone."
        )
    return dict(content)


class _Dict(dict[str, Any]):
    """In the place of an OrderedDict, without torch's _metadata that is set on it, and of the
    options that MAE's training saves beside the model, which are not read.
    """

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Rebuilds numpy arrays where torch would rebuild tensors."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, np.ndarray] = {}
        if (
            self._root + "byteorder" in archive.namelist()
            and self._member("byteorder") != b"little"
        ):
            self._refuse("numbers in big-endian order")
        super().__init__(io.BytesIO(self._member("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that tensors are made of. UserError: any other."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in (("collections", "OrderedDict"), ("argparse", "Namespace")):
            return _Dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        self._refuse(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The numbers of a storage: ("storage", type, key, device, count)."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            self._refuse(f"{kind} of {dtype}")
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._member(f"data/{key}"), dtype, count)
        return self._storages[key]

    def _member(self, name: str) -> bytes:
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:  # torch never does; a bomb would
            self._refuse(f"the compressed member {info.filename}")
        return self._archive.read(info)

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{self._path} asks for {what}, which is refused, because a pickle can run any "
            "program: save the model's state_dict() alone."
        )


def _rebuild(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor: a strided view of a storage, which must lie within it."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size} and stride {stride} at {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = int(np.prod(size, dtype=object))  # a view of stride 0 could claim terabytes
    if count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of {size} reaches beyond its {storage.size} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
