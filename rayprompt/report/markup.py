"""HTML out of Python: everything is escaped but what was made here."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

VOID = ("br", "hr", "input", "link", "meta")
# What no HTML file may hold, or what would be gone from it: control characters and halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
NEUTRAL = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def printable(text: str) -> str:
    """Text in which what cannot be printed is a symbol that can: of control characters the one Unicode has for it."""
    return UNPRINTABLE.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def escaped(text: Any) -> Markup:
    """Any data as HTML text, or as the value of an attribute."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text)), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. ``class_`` is class, ``data_v`` data-v; an attribute that is None or False is left out.

    Children are text, markup, or lists of either; None is nothing.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{given}>") if name in VOID else Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Any], between: str = "") -> Markup:
    """Children one after the other."""
    return Markup(between.join(_flat(children)))


def _flat(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str):
            yield escaped(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        elif child is not None:
            yield escaped(child)


def embedded(content: Any, id_: str) -> Markup:
    """Data for a script, in an element that no browser runs and that no text in it can end."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    body = UNPRINTABLE.sub("\ufffd", text).translate(NEUTRAL)
    return Markup(f'<script type="application/json" id="{escaped(id_)}">{body}</script>')
