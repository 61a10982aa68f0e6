"""How `--help` is drawn: as cyclopts does, with a first column that breaks no option."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import evolve
from cyclopts.help import ColumnSpec, DefaultFormatter, HelpEntry, HelpPanel
from cyclopts.help.specs import NameRenderer, get_default_parameter_columns

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

USUAL, WIDEST = 0.35, 0.5
"""Shares of the width of the screen."""
INDENT = 2
"""Of what a list of names goes on with in its next line."""


class HelpPage(DefaultFormatter):
    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        of_options = panel.format == "parameter"
        DefaultFormatter(column_specs=_columns if of_options else None)(console, options, panel)


def _columns(console: Console, options: ConsoleOptions, entries: list[HelpEntry]) -> tuple[ColumnSpec, ...]:
    longest = max((INDENT + len(name) for entry in entries for name in entry.all_options), default=0)
    width = max(math.ceil(USUAL * console.width), min(longest, int(WIDEST * console.width)))
    return tuple(
        evolve(column, renderer=NameRenderer(max_width=width), max_width=width)
        if isinstance(column.renderer, NameRenderer)
        else column
        for column in get_default_parameter_columns(console, options, entries)
    )
