"""The page of a run: its files in, one HTML file out.

A pure function of the folder. It may be asked for at any time, of a run that has only begun too:
what is missing is said to be missing. The page stands alone: figures and style are inside it.
"""

import functools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adv_ssl import figures, gallery, metrics, provenance
from adv_ssl.evaluation.page import curves, robust_panels
from adv_ssl.files import read_arrays, write_atomically
from adv_ssl.markup import TIMES, Html, document, image, join, table, tag
from adv_ssl.names import METHOD_TITLES, NORMS, radius, search_name, threat
from adv_ssl.recipes.values import FLAGS

NAME = "report.html"
PANELS: dict[str, tuple[str, tuple[float, float] | None]] = {  # metric -> title, ends of the y axis
    "loss": ("loss", None),
    "learning_rate": ("learning rate", None),
    "accuracy": ("training accuracy", (0.0, 1.05)),
    "feature_std": ("feature std (0: collapse)", None),
    "attack/gain": ("attack: loss gain per step", None),
    "attack/radius": ("attack: |δ| / ε", (0.0, 1.05)),
    "attack/zero_grad": ("attack: share of zero gradients", (-0.02, 1.05)),
}
HEADLINE = 6  # scores told at the top
_log = logging.getLogger("adv_ssl")


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Draws ``figures/*.png`` and writes ``report.html``, whole or not at all; returns its path."""
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    part = functools.partial(_part, workdir)
    trained = {"Fine-tuning": "finetune/metrics.jsonl"}
    shown = {"Test images": "figures/gallery.npz"}
    if _has_pretraining(workdir / "config.json"):
        trained = {"Pre-training": "pretrain/metrics.jsonl"} | trained
        shown |= {"Inputs of pre-training": "figures/pretrain_gallery.npz"}
    received = "pretrain/handoff.json"  # not there: it starts from random weights
    sections = {
        "Scores": part(_scores, "results.json"),
        "Robustness": part(_robust_accuracy, "results.json"),
        "Training": _headed(part, _training, trained),
        "Gallery": _headed(part, gallery.shown, shown),
        "Filters": part(_filters, "figures/filters.npz"),
        "Hand-off": join(
            *([part(_handoff, received)] * (workdir / received).exists()),
            part(_handoff, "finetune/handoff.json"),
        ),
        "Recipe": part(_recipe, "config.json"),
        "Provenance": part(provenance.shown, "provenance.json"),
    }
    top = part(_headline, "config.json"), part(_sentence, "results.json")
    page = document(f"adv_ssl: {workdir.resolve().name}", top, sections)
    path = workdir / NAME
    write_atomically(path, page)
    return path


Build = Callable[[pathlib.Path], Html]


def _headed(part: Callable[[Build, str], Html], build: Build, sources: Mapping[str, str]) -> Html:
    """Parts that are built alike, each of its file, below its heading."""
    return join(*[join(tag("h3", head), part(build, file)) for head, file in sources.items()])


def _has_pretraining(path: pathlib.Path) -> bool:
    """Whether the run pre-trains, or fine-tunes what it was given."""
    try:
        config = json.loads(path.read_text())
        return _pretrains(config)
    except (OSError, ValueError, KeyError):
        return True


def _pretrains(config: Mapping[str, Any]) -> bool:
    pretrain = config["pretrain"]
    if not pretrain or config["weights"]:
        return False
    return bool(pretrain["epochs"] if pretrain["steps"] is None else pretrain["steps"])


def _part(workdir: pathlib.Path, build: Build, source: str) -> Html:
    """What ``build`` makes of a file of the run, or one line on why there is nothing."""
    try:
        return build(workdir / source)
    except FileNotFoundError:
        return tag("p", f"{source} is missing: the run has not got that far.", class_="missing")
    except Exception as error:  # a page about a run must never be what ends it
        reason = f"{source} cannot be shown ({type(error).__name__}: {error})"
        if source.startswith("figures/"):
            reason += "; the same command makes it anew"
        _log.warning("report: %s", reason)
        return tag("p", reason, class_="missing")


# ---- Headline and scores ----


def _headline(path: pathlib.Path) -> Html:
    config = json.loads(path.read_text())
    model, pretrain = config["model"], config["pretrain"]
    setup = [
        f"ViT of width {model['width']} and {model['depth']} blocks",
        f"patches of {model['patch']} in images of {model['image_size']} pixels",
        f"data: {config['data']['name']}",
    ]
    if not _pretrains(config):
        start = config["weights"] or config.get("init_from") or "random weights"
        title = f"Fine-tuning of {start}"
        return join(tag("h1", title), tag("p", " · ".join(setup), class_="setup"))
    name, attack = pretrain["task"]["name"], pretrain["attack"]
    if attack and not attack["steps"]:
        attack = None
    how = f"adversarial pre-training, {threat(attack)}" if attack else "nominal pre-training"
    title = f"{METHOD_TITLES.get(name, name)}: {how}"
    if attack:
        setup.append(f"{search_name(attack)}, {attack['steps']} steps of {attack['step_size']} ε")
    return join(tag("h1", title), tag("p", " · ".join(setup), class_="setup"))


def _sentence(path: pathlib.Path) -> Html:
    records = _top1(path)
    sentence: list[object] = ["Top-1 accuracy"]
    dataset = None
    for i, record in enumerate(records[:HEADLINE]):
        sentence.append("; " if i else "")
        if record["dataset"] != dataset:
            dataset = record["dataset"]
            sentence.append(f" on {dataset}: ")
        under = f"under {threat(record['attack'])}" if record["attack"] else "clean"
        sentence += [tag("b", f"{100 * record['value']:.1f}%"), f" {under} "]
        sentence.append(f"(95% interval {_interval(record)}, n\xa0=\xa0{record['n']:,})")
    more = f"; {len(records) - HEADLINE} more below" if len(records) > HEADLINE else ""
    return tag("p", *sentence, f"{more}.", class_="scores")


def _scores(path: pathlib.Path) -> Html:
    rows, records = [], json.loads(path.read_text())
    for record in records:
        attack = record["attack"] or {}
        main = ("norm", "epsilon", "steps")
        options = [f"{k.replace('_', ' ')} {v}" for k, v in attack.items() if k not in main]
        options = [f"{o} ε" if o.startswith("step size") else o for o in options]
        metric = record["metric"].replace("top1", "top-1").replace("_", " ")
        ends = zip(("low", "high", "at"), (*record["ci95"], record["value"]), strict=True)
        rows.append(
            (
                tag("span", record["dataset"], " ", tag("small", metric)),
                NORMS.get(attack["norm"], attack["norm"]) if attack else "none",
                radius(attack["norm"], attack["epsilon"]) if attack else "",
                attack.get("steps", ""),
                tag("b", f"{100 * record['value']:.1f}"),
                _interval(record),
                tag("i", class_="range", style=";".join(f"--{k}:{v:.2%}" for k, v in ends)),
                f"{record['n']:,}",
                f"{record['seconds']:,.0f}",
                tag("small", ", ".join([*options, *record.get("flags", [])])),
            )
        )
    head = ("data", "attack", "ε", "steps", "score, %", "95% interval", "0 to 100%", "n", "seconds")
    whole = table((*head, "options"), rows, numbers=(2, 3, 4, 5, 7, 8), class_="results")
    blind = {r["dataset"]: r["commonest"] for r in reversed(records) if "commonest" in r}
    told = [f"{100 * share:.1f}% on {dataset}" for dataset, share in blind.items()]
    if not told:
        return whole
    note = f"Always predicting the most frequent class would score {', '.join(told)}."
    return join(whole, tag("p", note, class_="note"))


def _robust_accuracy(path: pathlib.Path) -> Html:
    found = curves(_top1(path), lambda r: f"{r['dataset']}, {r['stage']}, step {r['step']}")
    if not found:
        return tag("p", "no attack evaluated", class_="missing")
    note = "Top-1 with 95% intervals. Radius 0 is clean; of several attacks of a radius, the worst."
    panels = robust_panels(found, path.parent / "figures")
    return join(panels, tag("p", note, class_="note"))


def _top1(path: pathlib.Path) -> list[dict[str, Any]]:
    """The top-1 records of a run; FileNotFoundError if there is none yet."""
    records = [r for r in json.loads(path.read_text()) if r["metric"] == "top1"]
    if not records:
        raise FileNotFoundError(path)
    return records


def _interval(record: Mapping[str, Any]) -> str:
    return "{:.1f} to {:.1f}".format(*(100 * end for end in record["ci95"]))


# ---- Training ----


def _training(path: pathlib.Path) -> Html:
    rows, stage = metrics.read(path), path.parent.name
    if not rows:
        raise FileNotFoundError(path)
    images = []
    for key, (title, bounds) in PANELS.items():
        steps, values = _series(rows, key)
        if len(steps):
            drawn = figures.curve(steps, values, title, bounds)
            name = f"{stage}_{key.replace('/', '_')}"
            images.append(image(path.parents[1] / "figures", name, drawn, f"{title}, {stage}"))
    facts = [f"Up to step {rows[-1]['step']:,}"]
    for key, text, summary in (
        ("images_per_second", "{:,.0f} images/s (median)", np.median),
        ("input_wait", "{:.1%} of the time waiting for input (median)", np.median),
        ("skipped", "{:.0f} steps skipped as not finite", np.sum),
    ):
        _, values = _series(rows, key)
        facts += [text.format(summary(values))] if len(values) else []
    note = tag("p", " · ".join(facts), class_="note")
    return join(tag("div", *images, class_="panels"), note)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [T] of one metric, where it was logged and is finite."""
    points = [(r["step"], r[key]) for r in rows if key in r and r[key] is not None]
    steps, values = np.array(points, float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


# ---- Images ----


def _filters(path: pathlib.Path) -> Html:
    data = read_arrays(path)
    explained = data["explained"]
    drawn = figures.filters(data["components"], explained)
    note = (
        f"The first {len(explained)} principal components of the standardised filters of the patch "
        f"embedding, each rescaled to [0, 1], with its share of the variance (together "
        f"{explained.sum():.1%}), as in Fig. 4 of the paper."
    )
    drawing = image(path.parent, "filters", drawn, "Principal components of the patch embedding")
    return join(tag("div", drawing, class_="filters"), tag("p", note, class_="note"))


# ---- Hand-off and recipe ----


def _handoff(path: pathlib.Path) -> Html:
    rows: dict[str, list[tuple[object, ...]]] = {"carried": [], "fresh": [], "dropped": []}
    for r in json.loads(path.read_text()):
        shape = f" {TIMES} ".join(map(str, r["shape"])) or "scalar"
        rows[r["status"]].append((r["status"], tag("code", r["name"]), shape, r["reason"]))
    counts = ", ".join(f"{len(of_status)} {status}" for status, of_status in rows.items())
    head = ("status", "parameter", "shape", "reason")
    summary = tag("summary", f"The {len(rows['carried'])} that are carried over")
    return join(
        tag("p", f"What the stage {path.parent.name} starts from: {counts}."),
        table(head, rows["fresh"] + rows["dropped"]),
        tag("details", summary, table(head, rows["carried"])),
    )


def _recipe(path: pathlib.Path) -> Html:
    config = json.loads(path.read_text())
    if config["weights"]:
        del config["pretrain"]  # its encoder had a recipe of its own
    rows, counts, sources = [], Counter[str](), config.pop("sources", None)
    for name, value, source in _leaves(config, sources):
        flag, text = _label(value, source)
        counts[flag] += 1
        mark = tag("span", text, class_=f"tag {flag}") if flag else ""
        rows.append((tag("code", name), tag("code", _text(value)), mark))
    legend = []
    for flag, meaning in FLAGS.items():
        legend.append(tag("dt", tag("span", flag, class_=f"tag {flag}")))
        legend.append(tag("dd", f"{meaning} ({counts[flag]} of {len(rows)})"))
    return join(
        tag("dl", *legend, class_="legend"),
        table(("key", "value", "source"), rows, class_="recipe"),
    )


def _leaves(tree: Any, source: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Leaves of a configuration: dotted path, value, its [flag, id, recipe's value] or None."""
    known = isinstance(source, list) and len(source) == 3 and source[0] in FLAGS
    if not isinstance(tree, Mapping) or known or not tree:
        yield path, tree, source if known else None
        return
    for key, value in tree.items():
        inner = source.get(key) if isinstance(source, Mapping) else None
        yield from _leaves(value, inner, f"{path}.{key}" if path else key)


def _label(value: Any, source: Any) -> tuple[str, str]:
    """Flag and text of a leaf's tag, empty where the source is not known."""
    if source is None:
        return "", ""
    flag, where, recipe = source
    origin = f"{flag} {where}".strip()
    if value == recipe:
        return flag, origin
    return "changed", f"changed (recipe: {_text(recipe)}, {origin})"


def _text(value: Any) -> str:
    """A string as it is, all else as JSON; an empty string as JSON too, to be seen."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
