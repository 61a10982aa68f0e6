"""Lists on a terminal of any width: an entry is a title with facts below it, and no word is broken."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

INDENT = 4


def print_entry(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Prints a title and, indented below it, labelled facts; equal labels in a row are said once."""
    facts = list(facts)
    width = max(len(label) for label, _ in facts)
    print(_wrapped(title, head="", rest=" " * INDENT))
    said = ""
    for label, text in facts:
        head = " " * INDENT + f"{'' if label == said else label:<{width}}  "
        print(_wrapped(text, head=head, rest=" " * len(head)))
        said = label


def _wrapped(text: str, *, head: str, rest: str) -> str:
    return textwrap.fill(
        text,
        width=shutil.get_terminal_size().columns,
        initial_indent=head,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
