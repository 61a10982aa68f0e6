"""The report of a run: one HTML page, and a table for the terminal, made from the ledger and nothing else.

    from burnish.report import write
    write(Path("runs/quickstart"))                  # runs/quickstart/report.html

The report draws what the ledger says. It never measures, and it never puts numbers of different protocols side by side
without saying that they are not comparable.
"""

from burnish.report.page import render, write
from burnish.report.run import read_run, run_of
from burnish.report.terminal import ledger_table

__all__ = ["ledger_table", "read_run", "render", "run_of", "write"]
