"""Numbers over time: one JSON line a log step, and TensorBoard events."""

import json
import math
import pathlib

import tensorboardX

from adv_ssl.files import write_atomically


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl up to the first line that is none, as a kill may leave one."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            break
        records.append(record)
    return records


class Writer:
    """Appends to DIR/metrics.jsonl and to TensorBoard events in DIR; a context manager.

    A run that resumes at step ``start`` forgets what was logged beyond it: no step is there twice.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        path = folder / "metrics.jsonl"
        kept = [json.dumps(r) + "\n" for r in read(path) if r["step"] <= start]
        write_atomically(path, "".join(kept))
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One record; a kill of this process does not lose it. What is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()
