"""The stage `chain`: verifiable chains as rows that other nodes read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from burnish.core.stage import Context, Stage
from burnish.data.chain import Chains

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.made_data import Data


class DrawChains(Stage):
    """Draw verifiable chains, each with a worked solution; the checkpoint that is given plays no part."""

    name: ClassVar[str] = "chain"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "verifiable chains: sums modulo m whose every step can be checked"
    makes_data: ClassVar[bool] = True

    number: int = Field(default=1000, ge=1, description="how many")
    distinct: bool = Field(default=False, description="no question twice")
    kind: Chains = Field(
        default=Chains(),
        description="what they are made of: modulus, steps, operations and the like, as in the command",
    )

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.data.run import run

        return run(self, model, ctx)
