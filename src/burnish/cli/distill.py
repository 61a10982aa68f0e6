"""`burnish distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.options import Options
from burnish.cli.run import run_single
from burnish.distill.stage import Distill

_DEFAULTS = Distill.parse({}, where="defaults")


def distill(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    settings: Options[Distill] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a student to predict what a teacher predicts.

    Parameters
    ----------
    model:
        The student: a checkpoint directory or hub id.
    out:
        Where the trained student goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    run_single(settings, model, out, evaluate=evaluate, overwrite=overwrite)
