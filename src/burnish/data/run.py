"""What the stages of data do: the rows of `burnish data chain`, `table` and `burnish data trajectories`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.made_data import ROWS_FILE, Data
from burnish.data.draws import questions_of
from burnish.data.trajectories.curate import Curation, curate, in_words
from burnish.data.trajectories.filters import parse_filters
from burnish.data.trajectories.rows import Masking

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.stage import Context
    from burnish.data.stage import CurateTrajectories, Draw


def run(settings: Draw, model: Model, ctx: Context) -> Data:
    """Problems, drawn while they are written.

    Raises:
        DataError: no further question can be found, or no problems where others are to be apart from them.
    """
    others, taken = ctx.inputs.get("apart_from"), set[str]()
    if others is not None:
        path = Path(others).expanduser()
        taken = questions_of(path / ROWS_FILE if path.is_dir() else path)
    return Data(settings.rows(taken))


def run_trajectories(settings: CurateTrajectories, model: Model, ctx: Context) -> Data:
    """Rows of the episodes that are left, with a funnel in the ledger.

    Raises:
        DataError: see `burnish.data.trajectories.curate.curate`.
    """
    evaluated = ctx.inputs.get("apart_from")
    filters = parse_filters(settings.filters, has_evaluation=evaluated is not None)
    curation = Curation(filters, evaluated, settings.bad_rows == "skip", settings.failed > 0)
    masking = Masking(model.tokenizer, settings.weights, settings.context, settings.failed)
    made = curate([ctx.inputs["episodes"]], curation, masking, ctx.work_dir, ctx.progress, settings.workers)
    ctx.ledger.table("funnel", made.funnel)
    ctx.ledger.table("trained tokens", [{"kind": kind, "tokens": count} for kind, count in made.tokens.items()])
    ctx.progress.log(in_words(made.funnel))
    return Data(made.rows, about=made.about, pages=made.pages)
