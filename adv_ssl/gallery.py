"""The images of a run as cards on its page: an .npz file of them in, HTML out."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from adv_ssl import figures
from adv_ssl.files import read_arrays
from adv_ssl.markup import TIMES, Html, image, join, tag
from adv_ssl.names import search_name, threat

Images = Mapping[str, np.ndarray]


def shown(path: pathlib.Path) -> Html:
    """A card an image; perturbations by one factor in all, so that they can be compared.

    The file has, of N images, ``clean_input`` [N, H, W, 3] and, where there is an attack,
    ``attacked_input`` and the attack's options. What else there may be of either kind:
    ``reconstruction`` (with ``clean_original``), ``loss`` and ``prediction`` [N], the latter with
    ``label`` and ``class_names``.
    """
    data = read_arrays(path)
    attack: dict[str, Any] = {
        k: data[k].item() for k in ("name", "norm", "epsilon", "steps") if k in data
    }
    factor = ""
    if attack:
        delta = data["attacked_input"] - data["clean_input"]
        times = figures.amplification(delta)
        data["perturbation"] = 0.5 + times * delta
        factor = f"{TIMES} {times:g}"
    rows, captions = _layout("clean_reconstruction" in data, bool(attack))
    cards = []
    for i in range(len(data["clean_input"])):
        drawn = figures.mosaic([[data[name][i] for name in row] for row in rows])
        names = ", ".join(name.replace("_", " ") for row in rows for name in row)
        below = [tag("span", _caption(data, i, kind) if kind else factor) for kind in captions]
        drawing = image(path.parent, f"{path.stem}_{i:02}", drawn, names)
        cards.append(tag("figure", drawing, tag("figcaption", *below)))
    note = tag("p", _note(data, attack, factor), class_="note")
    return join(note, tag("div", *cards, class_="cards"))


def _layout(reconstructs: bool, attacked: bool) -> tuple[list[list[str]], list[str]]:
    """The rows of images of a card; by column, what its caption is of: clean, attacked, neither."""
    if reconstructs and attacked:
        above = ["clean_original", "clean_input", "attacked_input"]
        below = ["perturbation", "clean_reconstruction", "attacked_reconstruction"]
        return [above, below], ["", "clean", "attacked"]
    if reconstructs:
        return [["clean_original", "clean_input", "clean_reconstruction"]], ["", "", "clean"]
    if attacked:
        row = ["clean_input", "perturbation", "attacked_input"]
        return [row], ["clean", "", "attacked"]
    return [["clean_input"]], ["clean"]


def _note(data: Images, attack: Mapping[str, Any], factor: str) -> str:
    """What is to be seen."""
    under = f"{threat(attack)}, {attack['steps']} steps of {search_name(attack)}" if attack else ""
    delta = f"the perturbation {factor} about mid-grey"
    if "clean_reconstruction" in data:
        says = ["Left to right: the image; the patches that are seen; the others, predicted."]
        if attack:
            says = [
                "Above: the image; the patches that are seen, clean and attacked",
                f"({under}). Below: {delta}; the other patches, predicted from the clean ones and",
                "from the attacked ones.",
            ]
        says += [
            "A prediction is of each patch with its mean and contrast taken out: it is shown with",
            "those of the clean patch, clipped to [0, 1].",
        ]
    elif attack:
        says = [f"{under}. Left to right: the clean image; {delta}; the attacked image."]
    else:
        says = ["What the model sees."]
    if "clean_loss" in data:
        says.append("The loss is that of pre-training, of these images as one batch.")
    if "label" in data:
        says.append("Below: the label in bold, then the prediction (✗:\xa0wrong).")
    return " ".join(says)


def _caption(data: Images, i: int, kind: str) -> Html:
    """What stands below the clean or the attacked image ``i``: its label or ``kind``, its loss, the
    class that the model says.
    """
    lines = [Html(kind)]
    if f"{kind}_loss" in data:
        lines.append(Html(f"loss {data[f'{kind}_loss'][i]:#.3g}"))
    if "label" in data:
        names, label, said = data["class_names"], data["label"][i], data[f"{kind}_prediction"][i]
        if kind == "clean":
            lines[0] = join(Html("label "), tag("b", names[label]))
        right, mark = ("right", "✓") if said == label else ("wrong", "✗")
        lines.append(tag("span", f"{mark} {names[said]}", class_=right))
    return Html(tag("br").join(lines))
