"""HTML whose text is escaped unless it says that it is markup. [no torch]"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from edgetl.types import Json

VOID = ("img", "meta")


class Markup(str):
    """Text that is HTML already; any other text is escaped where it meets a tag."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | int | None) -> Markup:
    """Return an element; None is left out, a trailing underscore of an attribute's name too, `_` inside is `-`."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Return the children one after another, escaped unless they are markup."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))


def section(key: str, title: str, *children: str | None) -> Markup:
    """Return a section that the page's contents link to."""
    return tag("section", tag("h2", title), *children, id=key)


def details(summary: str, *children: str | None, unfolded: bool = False) -> Markup:
    """Return what can be folded away."""
    return tag("details", tag("summary", summary), *children, open="" if unfolded else None)


def table(caption: str, header: Sequence[str], lines: Iterable[Sequence[str]], kind: str | None = None) -> Markup:
    """Return a table that scrolls by itself; the first cell of a line is its head."""
    kept = [list(line) for line in lines]
    sides = [_side([line[i] for line in kept]) if i else None for i in range(len(header))]
    columns = (tag("th", cell, scope="col", class_=side) for cell, side in zip(header, sides, strict=True))
    head = tag("thead", tag("tr", *columns))
    body = (tag("tr", tag("th", line[0], scope="row"), *map(_cell, line[1:], sides[1:])) for line in kept)
    inner = tag("table", tag("caption", caption), head, tag("tbody", *body), class_=kind)
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def facts(pairs: Iterable[tuple[str, str | None]]) -> Markup:
    """Return a list of names and values; what is unknown says so."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value or "not available")) for name, value in pairs))


def bullets(lines: Iterable[str]) -> Markup:
    """Return a list."""
    return tag("ul", *(tag("li", line) for line in lines))


def data(key: str, value: Mapping[str, Json]) -> Markup:
    """Return JSON that a script of the page reads; no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Markup(text), type="application/json", id=key)


def _side(cells: Sequence[str]) -> str | None:
    """Return the class of a column: figures stand to the right."""
    figures = all(re.match(r"-?\d|-?$", cell) for cell in cells)
    return "n" if figures and any(cell.strip("-") for cell in cells) else None


def _cell(cell: str, side: str | None) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell, class_=side)
