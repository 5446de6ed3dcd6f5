"""Runs what is missing of a grid, one cell after the other.

What is done is read from the files of the runs themselves, so cells that were started by hand, by a
scheduler or by another runner count as well.
"""

import ast
import contextlib
import fnmatch
import json
import logging
import pathlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from adv_ssl.checkpoint import begun, in_part
from adv_ssl.errors import UserError
from adv_ssl.evaluation.predict import IN_PART
from adv_ssl.files import Busy, held, is_held, read_json
from adv_ssl.paper.grid import Cell
from adv_ssl.paper.store import attack_name
from adv_ssl.preemption import end_of, stop_if_asked

DONE, RUNNING, MISSING = "done", "running", "missing"  # states of a cell
AGAIN = "again"  # done, but its checkpoints are not there, and a missing cell needs them
RAN, FAILED, BLOCKED = "ran", "failed", "blocked"  # what else may come of a missing one
ROOT = pathlib.Path(__file__).parents[2]  # where configs/ is
Launch = Callable[[Cell], list[str]]
_log = logging.getLogger("adv_ssl")


def state(cell: Cell, store: pathlib.Path) -> str:
    """done, running (on this machine) or missing."""
    if done(cell, store):
        return DONE
    return RUNNING if is_held(store / cell.name) or is_held(_lock(cell, store)) else MISSING


def done(cell: Cell, store: pathlib.Path) -> bool:
    """Whether every score is there that the cell ends with, made by its own command."""
    folder = store / cell.name
    try:
        scored = [r for r in read_json(folder / "results.json", list) if r["value"] is not None]
        if not _made_by(cell, folder):
            return False
        if any(IN_PART in flag for r in scored for flag in r.get("flags", ())):
            return False
        if cell.kind == "robust":
            attacked = (r for r in scored if r["attack"])  # the folder may have others' too
            return any(cell.asks(attack_name(r["attack"]), r["n"]) for r in attacked)
        if cell.rows:
            counted = (r for r in scored if cell.takes(r.get("whole", True)))
            return set(cell.rows) <= {r["dataset"] for r in counted}
        attacks = read_json(folder / "config.json", dict)["evaluate"]["attacks"]
        return sum(r["stage"] == "finetune" for r in scored) == 1 + len(attacks)
    except (OSError, UserError, AttributeError, KeyError, TypeError):
        return False


def _lock(cell: Cell, store: pathlib.Path) -> pathlib.Path:
    """The runners' own: the cell's folder is locked by the run itself."""
    return store / ".runners" / cell.name.replace("/", "+")


def _made_by(cell: Cell, folder: pathlib.Path) -> bool:
    """Whether what lies in the cell's folder was made with its values, as far as its flags go."""
    if cell.module == "adv_ssl.evaluate":
        claim = read_json(folder / "evaluation.json", dict)
        images = cell.flag("images")
        same = str(claim.get("images", images)) == str(images)
        return same and claim["weights"].endswith(f"{cell.needs}/{cell.stage}")
    config = read_json(folder / "config.json", dict)
    flags = [flag for flag in cell.flags if flag.startswith("--config.")]
    values = (flag.removeprefix("--config.").split("=", 1) for flag in flags)
    return all(_equal(_leaf(config, key), text) for key, text in values)


def _leaf(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _equal(value: Any, text: str) -> bool:
    """Whether a leaf is what the text of a flag says; of a path its end, since stores move."""
    if text.startswith("{store}"):
        return str(value).endswith(text.removeprefix("{store}"))
    try:
        return bool(value == json.loads(json.dumps(ast.literal_eval(text))))
    except (ValueError, SyntaxError):
        return bool(value == text)


def matching(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """The cells whose names match, where * is any text, and those they need.

    Raises:
      UserError: none does.
    """
    needs = {cell.name: cell.needs for cell in cells}
    wanted = {name for name in needs if fnmatch.fnmatchcase(name, pattern)}
    if not wanted:
        raise UserError(
            f"--only={pattern}: no cell has such a name; they are such as {cells[0].name}, "
            "* is any text, and --dry_run lists them."
        )
    for cell in reversed(cells):  # each one stands behind the one it needs
        if cell.name in wanted:
            wanted.add(cell.needs)
    return [cell for cell in cells if cell.name in wanted]


def run(cells: Sequence[Cell], store: pathlib.Path, launch: Launch | None = None) -> dict[str, str]:
    """Runs the cells that are missing, in order; one that fails does not stop the others.

    Args:
      cells: with every cell that one of them needs before it.
      store: absolute path.
      launch: the command of a cell; None: its own.

    Returns:
      What came of each, by name: done (before), ran, running (elsewhere), failed, or blocked by a
      cell that it needs.

    Raises:
      Preempted: after SIGTERM or Ctrl-C, once the cell at work has saved and left.
    """
    launch = launch or (lambda cell: [sys.executable, *cell.arguments(str(store))])
    came: dict[str, str] = {}
    wanted = _wanted(cells, store)
    for i, cell in enumerate(cells):
        stop_if_asked()
        if cell.name not in wanted:
            came[cell.name] = DONE
        elif came.get(cell.needs, DONE) not in (DONE, RAN):
            came[cell.name] = BLOCKED
        else:
            place = f"{i + 1} of {len(cells)}"
            came[cell.name] = _attempt(cell, store, launch, place, wanted[cell.name])
        _log.info("%s: %s", cell.name, came[cell.name])
    return came


def planned(cells: Sequence[Cell], store: pathlib.Path) -> dict[str, str]:
    """What ``run`` would find, by name: done, running, missing or again."""
    states = dict.fromkeys((cell.name for cell in cells), DONE)
    wanted = _wanted(cells, store)
    for cell in (cell for cell in cells if cell.name in wanted):
        found = state(cell, store)
        states[cell.name] = AGAIN if found == DONE else found
    return states


def _wanted(cells: Sequence[Cell], store: pathlib.Path) -> dict[str, set[str]]:
    """The cells that are missing, and those without the weights that one of them needs; each with
    the stages that are needed of it.
    """
    wanted: dict[str, set[str]] = {}
    needed: dict[str, set[str]] = defaultdict(set)
    for cell in reversed(cells):  # each one stands behind the one it needs
        stages = needed[cell.name]
        if not done(cell, store) or _lacks(store / cell.name, stages):
            wanted[cell.name] = stages
            needed[cell.needs].add(cell.stage)
    return wanted


def _lacks(run: pathlib.Path, stages: Collection[str]) -> bool:
    """Whether one of these stages is not there, as in a store that was unpacked, or not whole."""
    try:
        return any(not begun(run / stage) or in_part(run / stage) for stage in stages)
    except UserError:  # a damaged file: the run itself tells of it
        return True


def _attempt(
    cell: Cell, store: pathlib.Path, launch: Launch, place: str, stages: Collection[str]
) -> str:
    """Runs a cell, if it or one of the stages is missing and nobody else is at it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(_lock(cell, store)))
        except Busy:
            return RUNNING
        if done(cell, store) and not _lacks(store / cell.name, stages):
            return DONE
        if is_held(store / cell.name):
            return RUNNING
        _log.info("cell %s: %s", place, cell.name)
        code = _execute(launch(cell))
        if code and is_held(store / cell.name):  # another one was quicker
            return RUNNING
        if code:
            _log.info("%s: exit code %d", cell.name, code)
        elif not done(cell, store):
            _log.info(
                "%s: not all of it has a score over a whole set, see its report.html", cell.name
            )
    return RAN if not code and done(cell, store) else FAILED


def _execute(command: Sequence[str]) -> int:
    """The exit code. Preempted: after SIGTERM, for which the child has saved and left."""
    with subprocess.Popen(command, cwd=ROOT) as child:
        code = end_of(child)
    stop_if_asked()
    return code
