"""The report: the paper's tables, figures and claims beside ours, on one page that stands alone.

A pure function of the store. What is missing is shown as missing, with the command that fills it.
"""

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from adv_ssl.errors import UserError
from adv_ssl.figures import robust_accuracy
from adv_ssl.files import write_atomically, write_csv
from adv_ssl.markup import Html, document, image, join, table, tag
from adv_ssl.names import axis, radius
from adv_ssl.paper import figures, filters, grid, kept, prices, runner, scaling, tables, verdicts
from adv_ssl.paper.exhibits import BASELINE, Exhibits, Score, paper
from adv_ssl.paper.figures import Line, Sheet
from adv_ssl.paper.layouts import (
    GROUPS,
    MISSING,
    NOTES,
    SHORT,
    TITLES,
    Key,
    Layout,
    digits,
    layouts,
    signed,
)
from adv_ssl.paper.store import Record, Store, collect
from adv_ssl.paper.verdicts import FAILS, HOLDS, UNDECIDED, Judged
from adv_ssl.recipes import METHODS

SELECTED = {
    "test": "the best mean on these very sets, as the paper's",
    "held_out": "the best top-1 on images held out of the training set",
}
LACKS = "a dash is a missing number: point at it for the command that fills it."


class Study(NamedTuple):
    """All that the page tells."""

    scale: str
    folder: pathlib.Path  # of the store, as commands on the page name it
    store: Store
    theirs: Exhibits
    ours: tables.Ours
    comparable: bool  # whether numbers of the two may be subtracted: the paper's scale
    selection: str  # what our best radii and decays are the best on


def write(
    scale: str,
    folder: pathlib.Path,
    out: pathlib.Path,
    selection: str = "test",
    called: pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes ``out``/report.html, its figures and tables; returns the page's path.

    ``selection`` is one of ``tables.SELECTIONS``; ``called``: how commands on the page name
    ``folder``, if not by its path.

    Raises:
      UserError: the scale has no page of its own, or ``out`` cannot be a folder.
    """
    options = grid.SCALES[scale]
    if base := next((name for name in grid.SCALES if scale in grid.follow_ups(name)), None):
        raise UserError(f"--scale={scale} follows {base} up: the page of --scale={base} shows it.")
    if selection == "held_out" and not options.held_out:
        raise UserError(f"--selection=held_out: at --scale={scale} nothing is held out; take test.")
    store = collect(folder / scale)
    counted = _of_cells(store, scale)
    ours = tables.ours(counted, options, selection)
    comparable = options.recipe == "imagenet"
    study = Study(scale, called or folder, store, paper(), ours, comparable, selection)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be written to ({error.strerror}): name another folder."
        ) from None
    judged = verdicts.judged(study.theirs, ours)
    cells = grid.cells(scale)
    missing = [cell for cell in cells if not runner.done(cell, folder)]
    sections = {"Claims": verdicts.section(judged, comparable, out)}
    for layout in layouts(scale, ours.whole).values():
        if layout.name == "figure5":
            chosen = ours.whole.chosen
            sections["Figure 4"] = filters.section(scale, chosen, folder, study.folder, out)
        sections[TITLES[layout.name][0]] = _exhibit(layout, study, out)
    if options.held_out:
        sections["Robustness kept"] = kept.section(counted, options, out)
    if follow_ups := grid.follow_ups(scale):
        records = {name: _of_cells(collect(folder / name), name) for name in follow_ups}
        records[scale] = counted
        sections["Length and size"] = scaling.section(scale, records, study.folder, out)
    sections["Missing"] = _missing(missing, study)
    sections["Scores"] = _records(store, len(counted), out)
    top = tag("h1", f"The paper and ours: {scale}"), _headline(judged, study, len(cells), missing)
    write_atomically(out / "report.html", document(f"adv_ssl: {scale}", top, sections))
    return out / "report.html"


def _of_cells(store: Store, scale: str) -> tuple[Record, ...]:
    """Scores that are cells of the grid: others, as of a run with more steps, of another attack, or
    of a sample of a set where all of it is asked for, are in no exhibit.
    """
    cells = {cell.name.removeprefix(f"{scale}/"): cell for cell in grid.cells(scale)}

    def counts(record: Record) -> bool:
        cell = cells.get(record.folder)
        if cell is None:
            return False
        if record.suite == "robust":
            return cell.asks(record.attack, record.n)
        return cell.takes(record.whole)

    return tuple(filter(counts, store.records))


# ---- exhibits -------------------------------------------------------------------------------


def _exhibit(layout: Layout, study: Study, out: pathlib.Path) -> Html:
    """The paper's picture, ours, both number by number, and all of it as a CSV file."""
    name, title = layout.name, TITLES[layout.name][1]
    printed = layouts("imagenet", study.theirs)[name]
    theirs, ours = (grid.SCALES[scale].robust[1] for scale in ("imagenet", study.scale))
    pictures = [
        _picture("paper", printed, study.theirs, _band(study.theirs), theirs, out),
        _picture("ours", layout, study.ours.whole, _level(study.ours.whole), ours, out),
    ]
    write_csv(out / f"{name}.csv", (*layout.fields, *_COLUMNS), _numbers(layout, study))
    note = f"Bold is ours, below it the paper's and the difference; {LACKS} {NOTES[name]}"
    return join(
        tag("p", tag("b", title)),
        tag("div", *pictures, class_="wide panels" if name == "figure5" else "stacked"),
        _comparison(layout, study),
        tag("p", note, _shown(name, study), f" {name}.csv has the same numbers.", class_="note"),
    )


def _shown(name: str, study: Study) -> str:
    """What of ours an exhibit shows."""
    chosen, scale = study.ours.whole.chosen, grid.SCALES[study.scale]
    if name == "figure1":
        decay = "its best decay" if scale.swept is None else f"decay {scale.swept:g}"
        return f" Each radius of ours has {decay}."
    if name == "figure5" and study.ours.attack:
        return f" Our attack: {study.ours.attack}."
    if name in ("figure2", "figure3") and chosen:
        models = [f"{SHORT[m]} {GROUPS[t]} {radius(t, epsilon)}"
                  for (m, t), epsilon in sorted(chosen.items()) if epsilon]  # fmt: skip
        return (
            f" Ours have {SELECTED[study.selection]}: {', '.join(models)}; the best of "
            f"{_choices(scale)} models of radius and decay of a method, of the "
            "same seeds: the best of more is better by chance alone."
        )
    return ""


def _choices(scale: grid.Scale) -> str:
    """Among how many models the best is chosen, by threat."""
    counts: dict[str, set[int]] = {}
    for (method, threat), radii in scale.radii.items():
        models = sum(len(scale.decays(method, threat, epsilon)) for epsilon in radii)
        counts.setdefault(threat, set()).add(models)
    return ", ".join(f"{'/'.join(map(str, n))} {GROUPS[t]}" for t, n in counts.items())


_SIDES = {  # of an exhibit, by whose it is: heading, and why there may be no picture
    "paper": ("The paper's", "it is an image, and the text has none"),
    "ours": ("Ours", "nothing is scored yet"),
}


def _picture(
    who: str, layout: Layout, exhibits: Exhibits, line: Line | None, norm: str, out: pathlib.Path
) -> Html:
    """``line`` is the zero line of Figure 1, ``norm`` that of Figure 5."""
    heading, lack = _SIDES[who]
    shown = tag("p", f"no numbers: {lack}", class_="missing")
    if drawn := _draw(layout, getattr(exhibits, layout.name), line, norm):
        shown = image(out, f"{layout.name}_{who}", drawn, f"{TITLES[layout.name][0]}, {who}")
    return tag("figure", tag("h3", heading), shown)


def _draw(
    layout: Layout, scores: Mapping[Key, Score], line: Line | None, norm: str
) -> Figure | None:
    """None where there is no number for a curve."""
    if layout.name in ("figure1", "figure5") and not scores:
        return None
    if layout.name == "figure1":
        radii = {t: [row.key[1] for row in layout.rows if row.key[0] == t] for t in figures.PANELS}
        return figures.radius_curves(scores, radii, line)
    if layout.name == "figure5":
        return _robust(layout, scores, norm)
    keys = [[layout.key(row.key, column.key) for column in layout.columns] for row in layout.rows]
    values = [[scores[key].value if key in scores else np.nan for key in row] for row in keys]
    return figures.sheet(
        Sheet(
            [row.label for row in layout.rows],
            [column.label for column in layout.columns],
            layout.groups,
            np.array(values, float),
            layout.decimals,
            coloured=layout.name != "table1",
        )
    )


def _level(exhibits: Exhibits) -> Line | None:
    """Our zero line."""
    if BASELINE not in exhibits.figure1:
        return None
    value, low, high, _ = exhibits.figure1[BASELINE]
    low, high = (value if end is None else end for end in (low, high))
    return Line(value, low, high, "supervised from scratch")


def _band(theirs: Exhibits) -> Line:
    """Where the paper's zero line has to be for C05 to be true."""
    sup, rotnet, mae, byol = (theirs.mean(method, "nominal") for method in METHODS)
    return Line(None, max(byol, rotnet), min(sup, mae), "supervised from scratch: in this band")


def _robust(layout: Layout, scores: Mapping[Key, Score], threat: str) -> Figure:
    curves = {}
    for column in layout.columns:
        points = [(row.key[0], scores[layout.key(row.key, column.key)]) for row in layout.rows
                  if layout.key(row.key, column.key) in scores]  # fmt: skip
        if points:
            curves[column.label] = [
                [r, s.value / 100, *(s.value / 100 if end is None else end / 100 for end in s[1:3])]
                for r, s in points
            ]
    return robust_accuracy(curves, axis(threat))


_COLUMNS = ("paper", "ours", "low", "high", "seeds", "difference", "fill")


def _numbers(layout: Layout, study: Study) -> Iterable[Sequence[object]]:
    """The rows of an exhibit's CSV file."""
    for row in layout.rows:
        for column in layout.columns:
            key = layout.key(row.key, column.key)
            theirs, ours = _pair(layout, key, study)
            yield (
                *key,
                digits(theirs and theirs.value),
                *([digits(end) for end in ours[:3]] if ours else [""] * 3),
                ours.seeds if ours else "",
                digits(ours.value - theirs.value) if ours and theirs else "",
                "" if ours else _command(layout, key, study),
            )


def _pair(layout: Layout, key: Key, study: Study) -> tuple[Score | None, Score | None]:
    """A number of the paper, where it is one of the same thing, and ours."""
    theirs = getattr(study.theirs, layout.name).get(key) if study.comparable else None
    return theirs, getattr(study.ours.whole, layout.name).get(key)


def _command(layout: Layout, key: Key, study: Study) -> str:
    """What fills a cell; "": nothing, it is not of the grid."""
    names = layout.fill(key)
    return grid.run_command(study.scale, study.folder, names) if names else ""


def _comparison(layout: Layout, study: Study) -> Html:
    """Ours, the paper's and the difference, cell by cell; or the command of a missing number."""
    groups = [tag("th", name, colspan=over, class_="group") for name, over in layout.groups]
    heads = [tag("th", column.label, class_="number") for column in layout.columns]
    lines = []
    for row in layout.rows:
        keys = [layout.key(row.key, column.key) for column in layout.columns]
        lines.append(tag("tr", tag("th", row.label), *[_cell(layout, key, study) for key in keys]))
    head = tag("thead", tag("tr", tag("th"), *groups), tag("tr", tag("th"), *heads))
    return tag("div", tag("table", head, tag("tbody", *lines), class_="grid"), class_="scroll")


def _cell(layout: Layout, key: Key, study: Study) -> Html:
    theirs, ours = _pair(layout, key, study)
    if not theirs and not ours and not layout.fill(key):
        return tag("td")
    places = layout.decimals
    lines = [tag("b", f"{ours.value:.{places}f}" if ours else MISSING)]
    if theirs:
        lines += [tag("br"), tag("small", f"{theirs.value:.{places}f}")]
    if theirs and ours:
        lines += [tag("br"), tag("small", signed(ours.value - theirs.value, places))]
    if not ours:
        return tag("td", *lines, class_="number lacks", title=_command(layout, key, study))
    told = f"{ours.seeds} seed" + "s" * (ours.seeds > 1)
    if ours.low is not None and ours.high is not None:
        told += f", 95% interval {ours.low:.{places}f} to {ours.high:.{places}f}"
    return tag("td", *lines, class_="number", title=told)


# ---- head, missing, scores ------------------------------------------------------------------


def _headline(judged: Judged, study: Study, cells: int, missing: Sequence[grid.Cell]) -> Html:
    parts = [
        f"{cells - len(missing)} of {cells} cells of the grid are done, "
        f"with {len(study.store.records)} scores. "
    ]
    for whose, found in (("the paper's", [t for _, t, _ in judged]),
                         ("our", [o for _, _, o in judged])):  # fmt: skip
        counts = Counter(verdict.verdict for verdict in found)
        told = f"{counts[HOLDS]} hold, {counts[FAILS]} fail, {counts[UNDECIDED]} are undecided"
        if unasked := sum(not verdict.seeds for verdict in found):
            told += f", {unasked} of these because numbers are missing"
        parts.append(f"Of the {len(judged)} claims, on {whose} numbers, {told}. ")
    if not study.comparable:
        parts.append("This is another scale than the paper's: shapes compare, numbers do not.")
    return tag("p", *parts, class_="scores")


def _missing(missing: Sequence[grid.Cell], study: Study) -> Html:
    """Every command that is left, and every file that could not be read."""
    if not missing:
        left = tag("p", "Nothing: every cell is done.")
    else:
        command = grid.run_command(study.scale, study.folder)
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(c.kind for c in missing).items())
        price = f"{prices.hours(missing, study.scale):,.0f} {prices.unit(study.scale)}"
        items = [tag("li", tag("code", cell.command(str(study.folder)))) for cell in missing]
        summary = tag("summary", f"The {len(missing)} commands, in order")
        left = join(
            tag(
                "p",
                f"{kinds}; to train them takes about {price}. All of it, one after the other: ",
                tag("code", command),
            ),
            tag("details", summary, tag("ol", *items)),
        )
    files = [tag("li", reason) for reason in study.store.passed_over]
    if not files:
        return left
    return join(left, tag("h3", "Files that could not be read"), tag("ul", *files))


def _records(store: Store, counted: int, out: pathlib.Path) -> Html:
    write_csv(out / "scores.csv", Record._fields, store.records)
    commits = Counter(record.commit for record in store.records)
    if not commits:
        return tag("p", "no scores yet", class_="missing")
    rows = [(tag("code", commit), f"{count:,}") for commit, count in commits.most_common()]
    others = len(store.records) - counted
    said = ""
    if others:
        said = f" {others:,} are of no cell of the grid, or of a sample of a set: in no exhibit."
    note = tag(
        "p", f"scores.csv lists every score with its run.{said} By the commits that made them:"
    )
    doubts = Counter(flag for record in store.records for flag in record.flags.split("; ") if flag)
    listed = [(flag, f"{count:,}") for flag, count in doubts.most_common()]
    return join(
        note,
        table(("commit", "scores"), rows, numbers=(1,)),
        *([table(("notes", "scores"), listed, numbers=(1,))] if listed else []),
    )
