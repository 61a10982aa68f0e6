"""`burnish evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from burnish.cli.options import Options
from burnish.evaluate.stage import Evaluate


class _Settings(Evaluate):
    reference: Annotated[str | None, Parameter(name="--against")] = Field(
        default=None, description="checkpoint to measure the divergence from"
    )


_DEFAULTS = _Settings.parse({}, where="defaults")


def evaluate(
    model: str,
    /,
    *,
    settings: Options[_Settings] = _DEFAULTS,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
) -> None:
    """Measure quality, size and speed of a checkpoint: every value with its interval, under a named protocol.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    out:
        A run directory whose ledger the measurement is added to; what it already holds is not measured again.
    """
    from rich.console import Console

    from burnish.core.checkpoint import load
    from burnish.core.ledger import Ledger
    from burnish.core.runner.directory import check_run_directory
    from burnish.report import ledger_table, run_of

    if out is not None:
        check_run_directory(out)
    opened = load(model)
    reference = load(settings.reference) if settings.reference else None
    ledger = Ledger(out, node=opened.path.name if opened.path else model)
    evaluation = settings(opened, reference, ledger=ledger, progress=True)
    if ledger.measured(opened.identity, evaluation.protocol) is None:
        evaluation.record(ledger, opened.identity, model)
    Console().print(ledger_table(run_of(ledger)))
    note = (
        f"{evaluation.protocol['text']}, {evaluation.protocol['num_windows']} windows of "
        f"{evaluation.protocol['context']} tokens, {evaluation.protocol['dtype']}, {evaluation.protocol['engine']}"
    )
    print(note)
