"""`Upcycle.run`: the mixture in memory, with the dense model's tokenizer and lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.convert.upcycle import mixtral_config, upcycle
from burnish.core.stage import Context

if TYPE_CHECKING:
    from burnish.convert.stage import Upcycle
    from burnish.core.checkpoint import Model


def run(settings: Upcycle, model: Model, ctx: Context) -> Model:
    """The mixture; the input stays as it is."""
    config = mixtral_config(
        model.config,
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        router_aux_loss_coef=settings.router_aux_loss_coef,
    )
    return model.derive(module=upcycle(model.module, config, noise=settings.noise, generator=ctx.generator))
