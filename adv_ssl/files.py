"""Files that are either whole or not there."""

import json
import os
import pathlib
from typing import Any


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside ``path``, then moves there: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")
