"""A `Table` of the kit on a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from burnish.core.page.tables import BAD, GOOD, INK, SOFT, Cell, Table

if TYPE_CHECKING:
    from rich.table import Table as ConsoleTable
    from rich.text import Text

_STYLES = {GOOD: "green", BAD: "red", SOFT: "dim", INK: ""}
_HEADING_WIDTH, _TEXT_WIDTH = 8, 10
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def console_table(table: Table) -> ConsoleTable:
    """Texts with their small print below them, footnotes as the caption; bars and intervals are left out."""
    from rich import box
    from rich.table import Table as ConsoleTable
    from rich.text import Text

    made = ConsoleTable(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left", caption_style="dim"
    )
    made.add_column(Text(table.head), overflow="fold", min_width=8)
    for column in table.columns:
        heading = _wrapped(column.name, _HEADING_WIDTH) + (f"\n{column.below}" if column.below else "")
        made.add_column(Text(heading), justify="right", no_wrap=True)
    for section in table.sections:
        if len(table.sections) > 1:
            made.add_section()
            made.add_row(Text(f"{section.title}: {section.detail}" if section.detail else section.title, style="dim"))
        for row in section.rows:
            made.add_row(Text(row.head), *(_cell(cell) for cell in row.cells))
    if table.notes:
        made.caption = Text("\n".join(f"{_mark(i)} {note}" for i, note in enumerate(table.notes, start=1)))
    return made


def _cell(cell: Cell) -> Text:
    from rich.text import Text

    made = Text(_wrapped(cell.text, _TEXT_WIDTH) + _mark(cell.mark), style=_STYLES[cell.tone])
    for line in cell.below:
        made.append(f"\n{line.text}", style=_STYLES[line.tone])
    return made


def _wrapped(text: str, width: int) -> str:
    """Broken at plain spaces only: numbers and their units hold together."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def _mark(number: int) -> str:
    return str(number).translate(_RAISED) if number else ""
