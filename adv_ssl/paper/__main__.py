"""The paper's grid, run and reported.

python -m adv_ssl.paper run --store=DIR [--scale=SCALE] [--only=GLOB] [--dry_run | --print_jobs]
python -m adv_ssl.paper report --store=DIR|FILE.zip --out=DIR2 [--scale=SCALE]
    [--selection=test|held_out]
python -m adv_ssl.paper pack|unpack --store=DIR --archive=FILE.zip [--scale=SCALE]

SCALE is imagenet, cifar10 or tiny; tiny_x2, tiny_x4, tiny_x8 and tiny_ti, to ``run``, are of longer
pre-trainings and of ViT-Ti, which tiny's ``report`` and ``pack`` take in.
``run`` runs what is missing of the grid, one command after the other; again, it goes on where it
was. ``--dry_run`` lists the cells that are not done, with the hours of their training,
``--print_jobs`` a shell command for each, each behind the one it needs. ``report`` writes the
paper's tables, figures and claims beside ours; our radii and decays are those that are the best on
the test sets, as the paper's, or on what was held out of the training set. ``pack`` writes what is
done into one small file, without checkpoints; after ``unpack`` elsewhere, ``run`` goes on.
Exit codes: 0 done; 1 a cell failed; 2 a mistake, told in one line; 75 stopped, start again.
"""

import itertools
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence

from absl import flags

from adv_ssl import command
from adv_ssl.command import leave
from adv_ssl.errors import UserError
from adv_ssl.files import user_path
from adv_ssl.paper import archive, grid, page, prices, runner, tables
from adv_ssl.paper.grid import Cell

_SCALE = flags.DEFINE_enum("scale", "imagenet", [*grid.SCALES], "Of the grid.")
_STORE = flags.DEFINE_string("store", None, "Folder of all runs.")
_OUT = flags.DEFINE_string("out", None, "report: folder of the page, the figures and the tables.")
_ARCHIVE = flags.DEFINE_string("archive", None, "pack, unpack: a .zip of what is done.")
_ONLY = flags.DEFINE_string("only", "*", "run: the cells of these names, and what they need.")
_SELECTION = flags.DEFINE_enum(
    "selection", "test", tables.SELECTIONS, "report: what radii and decays are chosen by."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "run: list the cells that are not done.")
_PRINT_JOBS = flags.DEFINE_bool("print_jobs", False, "run: print the commands instead.")

_OF = {"run": ("only", "dry_run", "print_jobs"), "report": ("out", "selection"),
       "pack unpack": ("archive",)}  # fmt: skip


def _parse_flags(argv: Sequence[str]) -> list[str]:
    rest = command.parse_flags(argv)
    if rest[1:] not in [[word] for word in ("run", "report", "pack", "unpack")]:
        leave("say `python -m adv_ssl.paper run`, `report`, `pack` or `unpack`.")
    for word, options in _OF.items():
        for name in options:
            if rest[1] not in word.split() and flags.FLAGS[name].present:
                leave(f"--{name} is an option of {word.replace(' ', ', ')}; {rest[1]} has none.")
    if _DRY_RUN.value and _PRINT_JOBS.value:
        leave("--dry_run and --print_jobs: take one of them.")
    if not _STORE.value:
        leave("--store=DIR is needed: the folder of all runs.")
    if rest[1] == "report" and not _OUT.value:
        leave("--out=DIR is needed: a folder for the page.")
    if rest[1] in ("pack", "unpack") and not _ARCHIVE.value:
        leave("--archive=FILE.zip is needed.")
    return rest


def _work(words: Sequence[str]) -> None:
    store = user_path(str(_STORE.value)).resolve()
    if words[0] != "report" and store.is_file():
        raise UserError(
            f"--store={store} is a file: `unpack --archive={store}` into a folder first."
        )
    cells = runner.matching(grid.cells(_SCALE.value), _ONLY.value)
    if words[0] == "report":
        _report(store)
    elif words[0] == "pack":
        cells = list(itertools.chain(cells, *map(grid.cells, grid.follow_ups(_SCALE.value))))
        print(f"{archive.pack(cells, store, user_path(str(_ARCHIVE.value)))} cells")
    elif words[0] == "unpack":
        print(f"{archive.unpack(user_path(str(_ARCHIVE.value)), store)} cells in {store}")
    elif _PRINT_JOBS.value:
        for cell in cells:
            print(cell.command(str(store)))
    elif _DRY_RUN.value:
        _list(cells, store)
    else:
        came = runner.run(cells, store)
        print(_counted(came.values()))
        failed = [name for name, what in came.items() if what == runner.FAILED]
        if failed:
            leave(f"{len(failed)} cells failed, {failed[0]} first; the others went on.", code=1)


def _report(store: pathlib.Path) -> None:
    out, selection, called = user_path(str(_OUT.value)), str(_SELECTION.value), None
    with tempfile.TemporaryDirectory() as folder:
        if store.is_file() or (store.suffix == ".zip" and not store.is_dir()):
            archive.unpack(store, pathlib.Path(folder))
            store, called = pathlib.Path(folder), pathlib.Path("STORE")
        if not (store / _SCALE.value).is_dir() and store.is_dir():
            others = [name for name in grid.SCALES if (store / name).is_dir()]
            if others:
                print(f"nothing of --scale={_SCALE.value}; there is {', '.join(others)}.")
        print(page.write(_SCALE.value, store, out, selection, called))


def _list(cells: Sequence[Cell], store: pathlib.Path) -> None:
    states = runner.planned(cells, store)
    print(f"state   kind      {'hours':>6}  cell, in {prices.unit(_SCALE.value)}")
    for cell in cells:
        if states[cell.name] == runner.DONE:
            continue
        price = f"{prices.hours([cell], _SCALE.value):8.2f}" if prices.flops(cell) else 8 * " "
        print(f"{states[cell.name]:8}{cell.kind:9}{price}  {cell.name}")
    left = [cell for cell in cells if states[cell.name] in (runner.MISSING, runner.AGAIN)]
    total = f"{prices.hours(left, _SCALE.value):,.0f} {prices.unit(_SCALE.value)}"
    why = "; again: a missing cell needs its checkpoints" * (runner.AGAIN in states.values())
    print(f"{_counted(states.values())}{why}; to train: about {total}", file=sys.stderr)


def _counted(states: Iterable[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())


if __name__ == "__main__":
    command.start(_work, _parse_flags)
