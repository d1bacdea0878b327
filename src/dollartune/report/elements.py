"""Pieces of an HTML page. Whatever is not `Html` already is escaped, so that texts of users and models stay text."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any


class Html(str):
    """Markup, as opposed to a plain string."""

    __slots__ = ()


Child = Html | str | int | float | None | Iterable["Child"]

_EMPTY = frozenset({"meta", "br", "hr", "input", "wbr", "img"})


def escape(value: Child) -> Html:
    """A child as markup: `Html` as it is, None as nothing, sequences joined, everything else escaped."""
    if value is None:
        return Html("")
    if isinstance(value, Html):
        return value
    # Before what can be iterated, which a text is, too.
    if isinstance(value, str):
        return Html(html.escape(value))
    if isinstance(value, Iterable):
        return Html("".join(escape(child) for child in value))
    return Html(html.escape(str(value)))


def tag(element: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. `class_` and `for_` lose the underscore, others turn it into a hyphen; None and False leave the
    attribute out, True writes its name alone.

    Examples:
        >>> tag("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    opened = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        opened.append(written if value is True else f'{written}="{html.escape(str(value), quote=True)}"')
    start = f"<{' '.join(opened)}>"
    return Html(start if element in _EMPTY else f"{start}{escape(children)}</{element}>")


def raw(text: str) -> Html:
    """Markup that was written by us, such as the style sheet."""
    return Html(text)
