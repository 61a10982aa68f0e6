"""`burnish slim`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.options import Options
from burnish.cli.run import run_single
from burnish.slim.stage import Slim

# Not validated here: without any size it is refused, but by the recipe that the command becomes, in one sentence.
_DEFAULTS = Slim.model_construct()


def slim(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    settings: Options[Slim] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a mixture of experts smaller: all experts kept and narrower, or fewer experts; with --stages recovered too.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        Where the smaller checkpoint goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    run_single(settings, model, out, evaluate=evaluate, overwrite=overwrite)
