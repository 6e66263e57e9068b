"""HTML from Python values: everything that is not made here is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """One element. `class_` and `for_` lose their underscore, other underscores become hyphens; None leaves one out."""
    given = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None and value is not False
    }
    text = "".join(
        f" {key}" if value is True else f' {key}="{html.escape(str(value))}"' for key, value in given.items()
    )
    inside = "".join(escaped(child) for child in children)
    return Markup(
        f"<{element}{text}>" if element in ("meta", "input", "br") else f"<{element}{text}>{inside}</{element}>"
    )


def escaped(child: object) -> str:
    """Markup as it is, text escaped, a sequence joined, None as nothing."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return "".join(escaped(inner) for inner in child)
    return html.escape(str(child))


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, text: Sequence[int] = (0,), caption: str
) -> Markup:
    """A table in a box of its own that scrolls sideways; the columns in `text` are left-aligned, others are figures.

    Args:
        caption: its accessible name, not shown.
    """

    def cell(name: str, column: int, child: object) -> Markup:
        return tag(name, child, class_=None if column in text else "figure", scope="col" if name == "th" else None)

    head = tag("tr", *(cell("th", i, heading) for i, heading in enumerate(headings)))
    body = [tag("tr", *(cell("td", i, child) for i, child in enumerate(row))) for row in rows]
    content = tag("table", tag("thead", head), tag("tbody", body))
    return tag("div", content, class_="scroll", role="region", aria_label=caption, tabindex="0")


def data_script(id_: str, data: Any) -> Markup:
    """JSON in a script element; no `<` is left that could end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{id_}">{text}</script>')
