"""What the stage `upcycle` does: the mixture's configuration, then its weights."""

from __future__ import annotations

from burnish.convert.stage import Upcycle
from burnish.convert.upcycle import mixtral_config, upcycle
from burnish.core.checkpoint import Model
from burnish.core.stage import Context


def run(settings: Upcycle, model: Model, ctx: Context) -> Model:
    """A Mixtral that computes what the dense model does, up to the noise that the settings ask for."""
    config = mixtral_config(
        model.config,
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        router_aux_loss_coef=settings.router_aux_loss_coef,
    )
    module = upcycle(model.module, config, noise=settings.noise, generator=ctx.generator)
    return model.derive(module=module)
