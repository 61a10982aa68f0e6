"""The first table of the report for the terminal, narrow enough for eighty columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.core.page.console import console_table
from burnish.report.compare import checkpoints
from burnish.report.paired import Pairing
from burnish.report.run import RunRecord
from burnish.report.table import first_table

if TYPE_CHECKING:
    from rich.table import Table


def ledger_table(run: RunRecord) -> Table:
    """Size, quality and speed of every checkpoint of a run, and the time that its stage took.

    Values of different protocols are not comparable and stand in sections of their own.
    """
    return console_table(first_table(checkpoints([run]), [run], Pairing(), brief=True))
