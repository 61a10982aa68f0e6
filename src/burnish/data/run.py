"""What the stage `chain` does: the rows of `burnish data chain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.core.made_data import Data
from burnish.data.chain import chain_rows

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.stage import Context
    from burnish.data.stage import DrawChains


def run(settings: DrawChains, model: Model, ctx: Context) -> Data:
    """Chains, drawn while they are written.

    Raises:
        DataError: no further question can be found.
    """
    return Data(chain_rows(settings.kind, settings.number, seed=settings.seed, distinct=settings.distinct))
