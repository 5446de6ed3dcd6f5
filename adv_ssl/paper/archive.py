"""A store in one small file: what its numbers stand on, without checkpoints, pictures and logs."""

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
from adv_ssl.paper import runner
from adv_ssl.paper.grid import Cell

FILES = ("config.json", "evaluation.json", "provenance.json", "results.json")  # of a cell
# What a file that is no archive, or a damaged or encrypted one, raises
_NONE = (OSError, EOFError, UnicodeDecodeError, RuntimeError, lzma.LZMAError, zlib.error,
         zipfile.BadZipFile)  # fmt: skip
_PLACE = "{store}/"  # stands for the store's folder, as in a cell's flags


def pack(cells: Sequence[Cell], store: pathlib.Path, path: pathlib.Path) -> int:
    """Writes the files of the cells that are done to ``path``, a .zip; returns their number.

    Raises:
      UserError: none is done.
    """
    done: list[str] = []
    for cell in cells:  # a score is of the run that it needs: not without it
        if runner.done(cell, store) and (not cell.needs or cell.needs in done):
            done.append(cell.name)
    if not done:
        raise UserError(f"{store} has no cell of this --scale that is done: nothing to pack.")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for place in (f"{cell}/{name}" for cell in done for name in FILES):
            if (store / place).exists():
                member = zipfile.ZipInfo(place)  # no date: the same bytes again
                member.compress_type = zipfile.ZIP_LZMA
                archive.writestr(member, _text(store / place).replace(_quoted(store), _PLACE))
    write_atomically(path, content.getvalue())
    return len(done)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
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
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {member: archive.read(member).decode() for member in archive.namelist()}
            for place in map(pathlib.PurePosixPath, texts):
                if place.name not in FILES or place.is_absolute() or ".." in place.parts:
                    raise zipfile.BadZipFile(f"it holds {str(place)!r}")
    except _NONE as error:
        raise UserError(
            f"{path} is no archive that `python -m adv_ssl.paper pack` wrote ({error})."
        ) from None
    cells: dict[pathlib.Path, dict[str, str]] = defaultdict(dict)
    for member, text in texts.items():
        file = store / member
        cells[file.parent][file.name] = text.replace(_PLACE, _quoted(store))
    new = [folder for folder, files in cells.items() if _same(folder, files)]
    for folder in new:
        for name, text in cells[folder].items():
            if not (folder / name).exists():
                write_atomically(folder / name, text)
    return len(new)


def _same(folder: pathlib.Path, files: Mapping[str, str]) -> bool:
    """Whether what there is of a cell, if anything, is of these files: unpacked before."""
    there = [folder / name for name in FILES if (folder / name).exists()]
    return all(files.get(path.name) == path.read_text(errors="replace") for path in there)
