"""`burnish quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.options import Options
from burnish.cli.run import run_single
from burnish.quantize.stage import Quantize

_DEFAULTS = Quantize.parse({}, where="defaults")


def quantize(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    settings: Options[Quantize] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Round the weights to 2-8 bits in the compressed-tensors format that transformers and vLLM load.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        Where the quantized checkpoint goes; ledger and report go to OUT.run beside it.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    run_single(settings, model, out, evaluate=evaluate, overwrite=overwrite)
