"""`burnish align` and `burnish audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.align.stage import Align
from burnish.cli.run import run_single

_DEFAULTS = Align.parse({}, where="defaults")


def align(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    settings: Annotated[Align, Parameter(name="*")] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a model on preference pairs, or make a reward model of it.

    Example: burnish align models/smollm2 --loss r3m-dpo --data prefs.jsonl -o aligned

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        Where the checkpoint goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    run_single(settings, model, out, evaluate=evaluate, overwrite=overwrite)
