"""`burnish report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(*runs: Path, out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None) -> None:
    """Write the HTML report of one or more runs: one self-contained page.

    Parameters
    ----------
    runs:
        Run directories (runs/NAME, or OUT.run of a single command).
    out:
        The file [default: report.html in the first run directory].
    """
    from burnish.core.errors import SettingsError
    from burnish.report import write

    if not runs:
        raise SettingsError("no run directory was given", fix="burnish report runs/quickstart")
    print(write(*runs, out=out))
