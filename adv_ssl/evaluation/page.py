"""The page of an evaluation: scores with intervals, what is missing, what was got wrong."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from adv_ssl import figures
from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.files import read_json, write_atomically
from adv_ssl.markup import Html, arrays, document, image, join, table, tag
from adv_ssl.report import provenance

Record = Mapping[str, Any]


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Draws figures and writes ``workdir``/report.html from results.json; returns its path."""
    path = workdir / "results.json"
    records: list[Record] = read_json(path, list) if path.exists() else []
    weights = read_json(workdir / "evaluation.json", dict)["weights"]
    sections: dict[str, Html] = {}
    for suite in dict.fromkeys(r["suite"] for r in records):
        mine = [r for r in records if r["suite"] == suite]
        sections[f"Suite {suite}"] = _scores(mine)
        if any(_is_cell(r) for r in mine):
            sections[f"Corruptions, {suite}"] = _cells(mine)
    wrong = [_wrong(p) for p in sorted((workdir / "figures").glob("wrong_*.npz"))]
    if wrong:
        sections["Wrong"] = join(*wrong)
    sections["Provenance"] = provenance(workdir / "provenance.json")
    top = tag("h1", f"Scores of {weights}"), _headline(records)
    write_atomically(workdir / "report.html", document(f"adv_ssl: {weights}", top, sections))
    return workdir / "report.html"


def _headline(records: Sequence[Record]) -> Html:
    means = [r for r in records if r["kind"] == "summary" and r["value"] is not None]
    scored = {r["dataset"] for r in records if r["value"] is not None and not _is_cell(r)}
    lacking = {r["dataset"] for r in records if r["value"] is None and not _is_cell(r)}
    text = f"{len(scored)} data sets and means scored, {len(lacking)} missing. "
    told = [f"{r['source']}: {100 * r['value']:.1f}%" for r in means if r["metric"] == "top1"]
    return tag("p", text, "; ".join(told), class_="scores")


def _is_cell(record: Record) -> bool:
    return str(record["dataset"]).startswith("c/")


def _scores(records: Sequence[Record]) -> Html:
    """A row for each score; of the corrupted sets the mean alone, and those that lack a score."""
    rows = []
    for r in records:
        if _is_cell(r):
            continue
        rule = tag("small", f"{r['metric']}, {r['source']}")
        name = tag("span", tag("b", r["dataset"]), " ", rule)
        if r["value"] is None:
            why = f"missing: {r.get('missing', 'nothing to count')}"
            rows.append((name, *[""] * 4, tag("span", why, class_="missing")))
            continue
        interval = "{:.1f} to {:.1f}".format(*(100 * v for v in r["ci95"])) if r["ci95"] else ""
        pace = f"{r['images_per_second']:,.0f}" if "images_per_second" in r else ""
        flags = "; ".join(r.get("flags", []))
        value = f"{r['value']:.3f}" if r["metric"] == "mce" else f"{100 * r['value']:.1f}"
        rows.append((name, tag("b", value), interval, f"{r['n']:,}", pace, tag("small", flags)))
    head = ("data, rule", "score, %", "95% interval", "n", "images/s", "to be known")
    return table(head, rows, numbers=(1, 2, 3, 4), class_="results")


def _cells(records: Sequence[Record]) -> Html:
    """Top-1 by type and severity."""
    values = {r["dataset"]: r["value"] for r in records if _is_cell(r)}
    rows = []
    for kind in TYPES:
        shown = [values.get(f"c/{kind}_{s}") for s in SEVERITIES]
        scored = [v for v in shown if v is not None]
        mean = f"{100 * sum(scored) / len(scored):.1f}" if len(scored) == len(shown) else ""
        cells = ["missing" if v is None else f"{100 * v:.1f}" for v in shown]
        rows.append((kind.replace("_", " "), *cells, tag("b", mean)))
    head = ("top-1, %", *(f"severity {s}" for s in SEVERITIES), "mean")
    return table(head, rows, numbers=range(1, 7), class_="results")


def _wrong(path: pathlib.Path) -> Html:
    """What a row got wrong first: the image, its label, what the model says."""
    data = arrays(path)
    cards = []
    for i, (label, said) in enumerate(zip(data["label"], data["said"], strict=True)):
        drawn = figures.mosaic([[data["images"][i] / 255]])
        picture = image(path.parent, f"{path.stem}_{i}", drawn, f"{label}, taken for {said}")
        below = tag("span", tag("b", label), tag("br"), tag("span", f"✗ {said}", class_="wrong"))
        cards.append(tag("figure", picture, tag("figcaption", below)))
    name = path.stem.removeprefix("wrong_")
    shown = tag("div", *cards, class_="cards") if cards else tag("p", "nothing", class_="note")
    return join(tag("h3", name), shown)
