"""The page of an evaluation: scores with intervals, what is missing, what was got wrong."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adv_ssl import figures, provenance
from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.files import read_arrays, read_json, write_atomically
from adv_ssl.markup import TIMES, Html, document, image, join, table, tag
from adv_ssl.names import NORMS, axis, threat

NAME = "report.html"
Record = Mapping[str, Any]


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Draws figures and writes ``workdir``/report.html from results.json; returns its path."""
    path = workdir / "results.json"
    records: list[Record] = read_json(path, list) if path.exists() else []
    weights = read_json(workdir / "evaluation.json", dict)["weights"]
    (workdir / "figures").mkdir(exist_ok=True)
    sections: dict[str, Html] = {}
    for suite in dict.fromkeys(r["suite"] for r in records):
        mine = [r for r in records if r["suite"] == suite]
        sections[f"Suite {suite}"] = _scores(mine)
        if suite == "robust":
            found = curves(mine, _of_images, lambda r: f"{_of_images(r)}, {r['attack']['name']}")
            sections["Robust curve"] = robust_panels(found, workdir / "figures")
        if any(_is_cell(r) for r in mine):
            sections[f"Corruptions, {suite}"] = _cells(mine)
    ladders = sorted((workdir / "robust").glob("doubts_*.json"))
    if ladders:
        sections["Gradient-masking checks"] = join(*[_ladder(path) for path in ladders])
    fallen = sorted((workdir / "figures").glob("fallen_*.npz"))
    if fallen:
        sections["Successful attacks"] = join(*[_fallen(path) for path in fallen])
    names = dict.fromkeys(r["dataset"] for r in records)  # in the order of the suites
    wrong = [workdir / "figures" / f"wrong_{name}.npz" for name in names]
    wrong = [path for path in wrong if path.exists()]
    if wrong:
        about = "The first images the model gets wrong, as it sees them, and its prediction."
        sections["Wrong"] = join(tag("p", about, class_="note"), *map(_wrong, wrong))
    sections["Provenance"] = provenance.shown(workdir / "provenance.json")
    top = tag("h1", f"Scores of {weights}"), _headline(records)
    write_atomically(workdir / NAME, document(f"adv_ssl: {weights}", top, sections))
    return workdir / NAME


def _headline(records: Sequence[Record]) -> Html:
    """The scores, the corrupted sets by their mean alone; then how many are missing."""
    own: dict[tuple[str, ...], Record] = {}
    for r in records:
        under = f"under {threat(r['attack'])}" if r["attack"] else ""
        which = (r["dataset"], under, *(_images(r)[1:] if r["suite"] == "robust" else ()))
        first = own.setdefault(which, r)  # the first metric of a row is its own
        if under and r["value"] < first["value"]:  # the attack that found more
            own[which] = r
    shown = {which: r for which, r in own.items() if not _is_cell(r)}
    scored = [
        f"{under or what} {100 * r['value']:.1f}%"
        for (what, under, *_), r in shown.items()
        if r["n"]
    ]
    lacking = [what for (what, *_), r in shown.items() if not r["n"]]
    text = ", ".join(scored) or "nothing scored"
    text += f"; missing: {', '.join(lacking)}." if lacking else "."
    return tag("p", text, class_="scores")


def _is_cell(record: Record) -> bool:
    return str(record["dataset"]).startswith("c/")


def _scores(records: Sequence[Record]) -> Html:
    """A row for each score, of the corrupted sets their mean alone; below, what rows lack."""
    rows, reasons, above = [], [], None
    for r in records:
        if _is_cell(r):
            continue
        facts = [r["source"] if r["source"] != r["dataset"] else "", r.get("prepared", "")]
        small = tag("small", ", ".join(filter(None, facts)))
        name = tag("span", tag("b", r["dataset"]), tag("br"), small)
        name, above = name if r["dataset"] != above else tag("span"), r["dataset"]
        rule = _under(r["attack"]) or r["metric"].replace("_", " ")
        if r["suite"] == "robust" and not r["attack"]:
            rule = "no attack"
        if r["value"] is None:
            rows.append((name, rule, *[""] * 5, tag("span", "missing", class_="missing")))
            reason = tag("b", r["dataset"]), f" {rule}: {r['missing']}"
            reasons.append(tag("p", *reason, class_="note"))
            continue
        interval = "{:.1f} to {:.1f}".format(*(100 * v for v in r["ci95"])) if r["ci95"] else ""
        pace = f"{r['images_per_second']:,.3g}" if "images_per_second" in r else ""
        waited = f"{r['input_wait']:.0%}" if "input_wait" in r else ""
        flags = join(*[tag("div", flag) for flag in r.get("flags", [])])
        value = f"{100 * r['value']:.1f}"
        rows.append((name, rule, tag("b", value), interval, f"{r['n']:,}", pace, waited, flags))
    head = ("data", "rule", "score, %", "95% interval", "n", "images/s", "input wait", "notes")
    whole = table(head, rows, numbers=(2, 3, 4, 5, 6), class_="suite")
    return join(whole, *reasons)


def _under(attack: Mapping[str, Any] | None) -> str:
    """An attack in words."""
    if not attack:
        return ""
    effort = ", ".join(
        f"{k} {v}" for k, v in attack.items() if k not in ("name", "norm", "epsilon")
    )
    return f"{attack['name']}, {threat(attack)} ({effort})"


def curves(
    records: Sequence[Record],
    images: Callable[[Record], str],
    name: Callable[[Record], str] | None = None,
) -> dict[str, dict[str, list[list[float]]]]:
    """Norm -> name of a curve -> its points (radius, value, low, high), the clean one first; of
    several attacks of one name and radius the worst.

    ``images`` are those a record is of, in words, and the name too where ``name`` is not given.
    """
    clean = {images(r): r for r in reversed(records) if not r["attack"]}
    worst: dict[str, dict[str, dict[float, list[float]]]] = {}
    for r in records:
        if not r["attack"]:
            continue
        norm, start = r["attack"]["norm"], clean.get(images(r))
        points = worst.setdefault(norm, {}).setdefault((name or images)(r), {})
        if start:
            points[0.0] = [0.0, start["value"], *start["ci95"]]
        at = r["attack"]["epsilon"] * (255 if norm == "linf" else 1)
        point = [at, r["value"], *r["ci95"]]
        points[at] = min(points.get(at, point), point)
    return {
        norm: {name: [points[at] for at in sorted(points)] for name, points in named.items()}
        for norm, named in worst.items()
    }


def robust_panels(
    found: Mapping[str, Mapping[str, list[list[float]]]], folder: pathlib.Path
) -> Html:
    """Top-1 against radius: a picture for each norm of ``curves``."""
    drawings = []
    for norm, named in found.items():
        drawn = figures.robust_accuracy(named, axis(norm))
        drawings.append(image(folder, f"robust_{norm}", drawn, f"Top-1 over {axis(norm)}"))
    return tag("div", *drawings, class_="wide panels")


def _images(record: Record) -> list[str]:
    """Which images were attacked, in words."""
    facts = record["dataset"], record.get("prepared"), f"{record['n']:,} images"
    return [fact for fact in facts if fact]


def _of_images(record: Record) -> str:
    return ", ".join(_images(record))


def _ladder(path: pathlib.Path) -> Html:
    """The rungs, and what is wrong with them."""
    found = read_json(path, dict)
    rows = [(name, f"{100 * share:.1f}") for name, share in found["accuracy"].items()]
    rows.append(("zeros in the cross-entropy's gradient", f"{100 * found['zero_gradient']:.1f}"))
    says = [tag("p", "✗ " + flag, class_="missing") for flag in found["flags"]]
    well = tag(
        "p", "✓ More effort breaks more, and a radius without bound breaks all.", class_="note"
    )
    about = (
        f"{found['dataset']}, {threat(found)}, the first {found['n']} images: the margin loss, "
        "more effort downwards."
    )
    head = ("attack", "still right, %")
    note = tag("p", about, class_="note")
    return join(note, table(head, rows, numbers=(1,), class_="grid"), *(says or [well]))


def _cells(records: Sequence[Record]) -> Html:
    """Top-1 by type and severity, and what the first set that is missing lacks."""
    cells = {r["dataset"]: r for r in records if _is_cell(r)}
    rows = []
    for kind in TYPES:
        found = [cells.get(f"c/{kind}_{s}", {}).get("value") for s in SEVERITIES]
        scored = [v for v in found if v is not None]
        mean = f"{100 * sum(scored) / len(scored):.1f}" if len(scored) == len(found) else ""
        shown = ["missing" if v is None else f"{100 * v:.1f}" for v in found]
        rows.append((kind.replace("_", " "), *shown, tag("b", mean)))
    head = ("top-1, %", *(f"severity {s}" for s in SEVERITIES), "mean")
    lacking = [r for r in cells.values() if r["value"] is None]
    whole = table(head, rows, numbers=range(1, 7), class_="results")
    if not lacking:
        return whole
    first = f"{lacking[0]['dataset']}: {lacking[0]['missing']}"
    why = tag("p", f"{len(lacking)} of {len(cells)} are missing; {first}", class_="note missing")
    return join(why, whole) if len(lacking) < len(cells) else why


def _fallen(path: pathlib.Path) -> Html:
    """The first images that fell to a search, each at the least radius that it fell at."""
    data = read_arrays(path)
    norm, delta = str(data["norm"]), data["attacked"] - data["images"]
    factor = figures.amplification(delta) if len(delta) else 1.0
    cards = []
    for i, (label, said) in enumerate(zip(data["label"], data["said"], strict=True)):
        row = [data["images"][i], 0.5 + factor * delta[i], data["attacked"][i]]
        picture = image(
            path.parent, f"{path.stem}_{i}", figures.mosaic([row]), f"{label}, taken for {said}"
        )
        attack = threat({"norm": norm, "epsilon": float(data["radius"][i])})
        below = (
            tag("b", label),
            tag("span", attack, tag("br"), data["fell_to"][i]),
            tag("span", f"✗ {said}", class_="wrong"),
        )
        cards.append(tag("figure", picture, tag("figcaption", *below)))
    about = (
        "The first images that fell, at the least radius that they fell at: the image; what was "
        f"added to it, {TIMES} {factor:g} about mid-grey; their sum."
    )
    shown = tag("div", *cards, class_="cards") if cards else tag("p", "none fell", class_="note")
    heading = f"{data['what']}, {data['attack']}, {NORMS[norm]}"
    return join(tag("h3", heading), tag("p", about, class_="note"), shown)


def _wrong(path: pathlib.Path) -> Html:
    """What a row got wrong first: the image, its label, what the model says."""
    data = read_arrays(path)
    cards = []
    for i, (label, said) in enumerate(zip(data["label"], data["said"], strict=True)):
        drawn = figures.mosaic([[data["images"][i] / 255]])
        picture = image(path.parent, f"{path.stem}_{i}", drawn, f"{label}, taken for {said}")
        below = tag("span", tag("b", label), tag("br"), tag("span", f"✗ {said}", class_="wrong"))
        cards.append(tag("figure", picture, tag("figcaption", below)))
    name = path.stem.removeprefix("wrong_")
    shown = (
        tag("div", *cards, class_="small cards") if cards else tag("p", "nothing", class_="note")
    )
    return join(tag("h3", name), shown)
