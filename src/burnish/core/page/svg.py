"""Elements of HTML and SVG from Python: everything that is put into them is escaped."""

from __future__ import annotations

from markupsafe import Markup


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element. Empty attributes are left out; in their names `_` stands for a hyphen, a last one for nothing."""
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value not in ("", None)
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup().join(inside))


def path(shape: str, class_: str, *, title: str = "", **attributes: object) -> Markup:
    """A path; nothing where it has no shape."""
    return (
        tag("path", tag("title", title) if title else "", class_=class_, d=shape, **attributes) if shape else Markup()
    )


def text(x: float, y: float, content: str, *, anchor: str = "", class_: str = "") -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_) if content else Markup()
