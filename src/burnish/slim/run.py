"""`Slim.run`: calibration text, scores, what is kept, surgery.

A checkpoint on disk is read whole only where text goes through it and there is room; else the text takes a layer at a
time. Scores of weights alone, and the cut itself, take a matrix at a time from its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.core.checkpoint import Model
from burnish.core.errors import NumericalError
from burnish.core.stage import Context
from burnish.slim.best import best
from burnish.slim.forms import FORMS, Chosen
from burnish.slim.price import COMPARABLE, WINDOWS, say_price
from burnish.slim.selection import Selection
from burnish.slim.sizes import new_config
from burnish.slim.surgery import cut, deferred_cut
from burnish.slim.uncut import Uncut

if TYPE_CHECKING:
    from burnish.slim.stage import Slim


def run(settings: Slim, model: Model, ctx: Context) -> Model:
    """The smaller model; the input stays as it is. What came from disk is cut while it is saved."""
    uncut = Uncut(model)
    for view in uncut.matrices:
        if not torch.isfinite(uncut.matrix(view)).all():
            raise NumericalError("holds weights that are not finite", where=view.name, fix="check the checkpoint")
    # The selection holds the network that text went through; it is gone before the cut is made.
    config, (kept, refitted, rows) = _chosen(settings, model, uncut, ctx)
    ctx.ledger.table("slim", rows)
    if uncut.files is not None:
        return deferred_cut(uncut, config, kept, refitted)
    return model.derive(module=cut(uncut, config, kept, refitted))


def _chosen(settings: Slim, model: Model, uncut: Uncut, ctx: Context) -> tuple[object, Chosen]:
    """The configuration of the smaller model, and what is kept."""
    if settings.method == "best":
        selection, chosen = best(Selection(settings, model, uncut, model.config, ctx))
    else:
        selection = Selection(settings, model, uncut, new_config(settings, model.plan()), ctx)
        chosen = FORMS[settings.method](selection)
    if selection.widths is not None and selection.settings.score_name in COMPARABLE and selection.on_disk is None:
        one, own = selection.widths
        split = selection.settings.method == "split"
        pieces = selection.smaller if split else None
        say_price(selection.network, uncut, selection.unseen[:WINDOWS], one, own, ctx, split=split, pieces=pieces)
    return selection.config, chosen
