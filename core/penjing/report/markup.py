"""HTML and SVG that is escaped by construction: text becomes markup only through `tag`."""

from __future__ import annotations

from html import escape

VOID = frozenset({"meta", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element; children that are no Markup are escaped, attributes always.

    An attribute `class_` is written class, `text_anchor` text-anchor; one that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Return the children one after the other; what is no Markup is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))
