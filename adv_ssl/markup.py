"""HTML: elements that escape what enters them, and a page that stands alone."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adv_ssl import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = "\N{MULTIPLICATION SIGN}"
VOID = ("br", "img", "meta")  # elements without an end tag


class Html(str):
    """Text that is HTML already. Any other text is escaped where it enters the page."""


def tag(element: str, *children: object, **attributes: object) -> Html:
    """``<element attributes>children</element>``, escaped; ``class_`` stands for ``class``."""
    pairs = "".join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    inner = "".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children)
    return Html(f"<{element}{pairs}>{inner}" + ("" if element in VOID else f"</{element}>"))


def join(*parts: Html) -> Html:
    """Elements one after another."""
    return Html("".join(parts))


def document(title: str, top: Sequence[Html], sections: Mapping[str, Html]) -> str:
    """A whole page: header, links to the sections, the sections; the style is inside it."""
    anchors = {name: name.replace(" ", "-") for name in sections}
    links = [tag("a", name, href=f"#{anchor}") for name, anchor in anchors.items()]
    style = pathlib.Path(__file__).with_suffix(".css").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = [tag("section", tag("h2", name), s, id=anchors[name]) for name, s in sections.items()]
    header = tag("header", *top, tag("nav", *links))
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', header, *body), lang='en')}\n"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Sequence[int] = (),
    class_: str = "",
) -> Html:
    """A table that scrolls by itself on a narrow screen; the columns ``numbers`` are set right."""

    def line(cell: str, values: Sequence[object]) -> Html:
        look = ["number" if i in numbers else "text" for i in range(len(values))]
        return tag("tr", *[tag(cell, v, class_=k) for v, k in zip(values, look, strict=True)])

    body = tag("tbody", *[line("td", row) for row in rows])
    whole = tag("table", tag("thead", line("th", head)), body, class_=class_)
    return tag("div", whole, class_="scroll")


def image(folder: pathlib.Path, name: str, figure: "Figure", alt: str) -> Html:
    """Writes the figure as ``name.png`` and gives an element that holds a copy of it."""
    data = figures.png(figure)
    (folder / f"{name}.png").write_bytes(data)
    encoded = base64.b64encode(data).decode()
    return tag("img", src=f"data:image/png;base64,{encoded}", alt=alt)
