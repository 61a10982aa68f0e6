"""The frame of a page: one HTML file that needs nothing from elsewhere and lets nothing in.

A room's template extends `frame.html.j2`. Everything that a page is given is escaped, and a content security policy in
its head forbids the browser to load anything and to run any script but the one that the page was made with.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish._version import __version__
from burnish.core.checkpoint import write_atomically
from burnish.core.errors import OutputError
from burnish.core.outside import check_kind
from burnish.core.page import numbers, palette

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment(package: str) -> Environment:
    """Templates of a package, such as "burnish.report", over those of the kit."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in (package, "burnish.core.page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"palette": palette, "version": __version__, "script": "", "policy": policy("")}
    made.filters["grouped"] = lambda value: numbers.decimal(value, 0)
    return made


def render(package: str, template: str, *, script: str = "", **content: Any) -> str:
    """The page.

    Args:
        package: whose `templates` hold the template.
        template: the file's name; it extends "frame.html.j2".
        script: JavaScript of the page, written by us and never made from data.
        **content: what the template names.
    """
    from markupsafe import Markup

    content |= {"script": Markup(script), "policy": policy(script)}
    return environment(package).get_template(template).render(content)


def policy(script: str) -> str:
    """What the browser may do with the page: apply its style, show pictures that it holds, run exactly this script."""
    allowed = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed.append(f"script-src 'sha256-{digest}'")
    return "; ".join(allowed)


def check_page(path: Path, first: bytes = b"<!doctype html>") -> None:
    """Refuses a place that a page may not be written to.

    Raises:
        OutputError: it holds a file whose first line is another: a table, a ledger.
    """
    check_kind(path, lambda head: head[: len(first) + 2].partition(b"\n")[0].rstrip() == first)


def write(path: Path, page: str) -> Path:
    """Writes a page whole or not at all, perhaps over an older one, and returns where it is.

    Raises:
        OutputError: the place cannot be written to, or holds a file that begins otherwise: a table, a ledger.
    """
    first = page.partition("\n")[0].encode()
    try:
        check_page(path, first)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=str(path), fix="choose another place with -o"
        ) from None
    return path
