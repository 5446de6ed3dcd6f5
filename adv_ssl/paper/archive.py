"""A store in one small file: what its numbers and Figure 4 stand on, without checkpoints, logs."""

import io
import json
import lzma
import pathlib
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from adv_ssl.errors import UserError
from adv_ssl.files import write_atomically
from adv_ssl.paper import filters, runner
from adv_ssl.paper.grid import Cell

JSON = ("config.json", "evaluation.json", "provenance.json", "results.json")  # of a cell
FILES = (*JSON, filters.FILE)  # Figure 4 shows filters as pre-training leaves them
# What a file that is no archive, or a damaged or encrypted one, raises
_NONE = (OSError, EOFError, UnicodeDecodeError, RuntimeError, lzma.LZMAError, zlib.error,
         zipfile.BadZipFile)  # fmt: skip
_PLACE = "{store}/"  # stands for the store's folder, as in a cell's flags


def pack(cells: Sequence[Cell], store: pathlib.Path, path: pathlib.Path) -> int:
    """Writes the files of the cells that are done to ``path``, a .zip; returns their number.

    Raises:
      UserError: none is done.
    """
    done: dict[str, Cell] = {}
    for cell in cells:  # a score is of the run that it needs: not without it
        if runner.done(cell, store) and (not cell.needs or cell.needs in done):
            done[cell.name] = cell
    if not done:
        raise UserError(f"{store} has no cell of this --scale that is done: nothing to pack.")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for place in (
            f"{cell.name}/{name}"
            for cell in done.values()
            for name in (FILES if cell.kind == "pretrain" else JSON)
        ):
            if (store / place).exists():
                member = zipfile.ZipInfo(place)  # no date: the same bytes again
                member.compress_type = zipfile.ZIP_LZMA
                archive.writestr(member, _content(store / place, store))
    write_atomically(path, content.getvalue())
    return len(done)


def _content(path: pathlib.Path, store: pathlib.Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    try:
        return path.read_text().replace(_quoted(store), _PLACE).encode()
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is damaged: move its folder away, and run that cell again."
        ) from None


def _quoted(store: pathlib.Path) -> str:
    """How the paths of what is in it begin, as JSON writes them."""
    return json.dumps(f"{store}/")[1:-1]


def unpack(path: pathlib.Path, store: pathlib.Path) -> int:
    """Puts the cells of an archive into ``store``; returns their number. A cell of which there is
    already something else stays as it is.

    Raises:
      UserError: ``path`` is no archive of a store.
    """
    cells: dict[pathlib.Path, dict[str, bytes]] = defaultdict(dict)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                place = pathlib.PurePosixPath(member)
                name = next((name for name in FILES if member.endswith(f"/{name}")), None)
                if name is None or place.is_absolute() or ".." in place.parts:
                    raise zipfile.BadZipFile(f"it holds {member!r}")
                content = archive.read(member)
                if name.endswith(".json"):
                    content = content.decode().replace(_PLACE, _quoted(store)).encode()
                cells[store / member.removesuffix(f"/{name}")][name] = content
    except _NONE as error:
        raise UserError(
            f"{path} is no archive that `python -m adv_ssl.paper pack` wrote ({error})."
        ) from None
    new = [folder for folder, files in cells.items() if _unchanged(folder, files)]
    for folder in new:
        for name, content in cells[folder].items():
            if not (folder / name).exists():
                write_atomically(folder / name, content)
    return len(new)


def _unchanged(folder: pathlib.Path, files: Mapping[str, bytes]) -> bool:
    """Whether what there is of a cell, if anything, is of these files: unpacked before."""
    there = [name for name in FILES if (folder / name).exists()]
    return all(files.get(name) == (folder / name).read_bytes() for name in there)
