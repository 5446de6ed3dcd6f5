"""A store in one small file: what its numbers stand on, without checkpoints, pictures and logs."""

import io
import lzma
import pathlib
import zipfile
from collections.abc import Sequence

from adv_ssl.errors import UserError
from adv_ssl.files import write_atomically
from adv_ssl.paper import runner
from adv_ssl.paper.grid import Cell

FILES = ("config.json", "evaluation.json", "provenance.json", "results.json")  # of a cell
_PLACE = "{store}/"  # stands for the store's folder, as in a cell's flags


def pack(cells: Sequence[Cell], store: pathlib.Path, path: pathlib.Path) -> int:
    """Writes the files of the cells that are done to ``path``, a .zip; returns their number.

    Raises:
      UserError: none is done.
    """
    done = [cell for cell in cells if runner.done(cell, store)]
    if not done:
        raise UserError(f"{store} has no cell of this --scale that is done: nothing to pack.")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for cell in done:
            for name in FILES:
                file = store / cell.name / name
                if file.exists():
                    member = zipfile.ZipInfo(f"{cell.name}/{name}")  # no date: the same bytes again
                    member.compress_type = zipfile.ZIP_LZMA
                    archive.writestr(member, file.read_text().replace(f"{store}/", _PLACE))
    write_atomically(path, content.getvalue())
    return len(done)


def unpack(path: pathlib.Path, store: pathlib.Path) -> int:
    """Puts the cells of an archive into ``store``; returns their number. What is there already
    stays as it is.

    Raises:
      UserError: ``path`` is no archive of a store.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {member: archive.read(member).decode() for member in archive.namelist()}
            for place in map(pathlib.PurePosixPath, texts):
                if place.name not in FILES or place.is_absolute() or ".." in place.parts:
                    raise zipfile.BadZipFile(f"it holds {str(place)!r}")
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no archive that `python -m adv_ssl.paper pack` wrote ({error})."
        ) from None
    for member, text in texts.items():
        if not (store / member).exists():
            write_atomically(store / member, text.replace(_PLACE, f"{store}/"))
    return len({pathlib.PurePosixPath(member).parent for member in texts})
