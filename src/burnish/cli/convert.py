"""`burnish convert upcycle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.options import Options
from burnish.cli.run import run_single
from burnish.convert.stage import Upcycle

_DEFAULTS = Upcycle.parse({}, where="defaults")


def upcycle(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    settings: Options[Upcycle] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a mixture of experts (Mixtral) of a dense Llama-type model; it computes the same until it is trained.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        Where the mixture goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    run_single(settings, model, out, evaluate=evaluate, overwrite=overwrite)
