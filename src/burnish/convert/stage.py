"""`Upcycle`: a dense Llama-type checkpoint as a Mixtral that computes the same until it is trained.

mixture = burnish.Upcycle(num_experts=8)(model)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from burnish.core.kinds import Plan
from burnish.core.stage import Context, Stage

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model


class Upcycle(Stage):
    """Copies the MLP of every layer into routed experts."""

    name: ClassVar[str] = "upcycle"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a dense Llama-type model as a Mixtral, unchanged in what it computes"
    memory_settings: ClassVar[str] = "num_experts"

    num_experts: int = Field(default=8, ge=2, description="experts per layer")
    top_k: int = Field(default=2, ge=1, description="experts chosen for each token")
    noise: float = Field(
        default=0.0,
        ge=0,
        description="noise on each expert's weights, in their standard deviations; 0 keeps the function exactly",
    )
    router_aux_loss_coef: float = Field(default=0.01, ge=0, description="load-balancing loss that training will use")

    def plan(self, before: Plan) -> Plan:
        from burnish.convert.upcycle import mixtral_config
        from burnish.core.checkpoint import plan_config

        config = mixtral_config(
            before.config,
            num_experts=self.num_experts,
            top_k=self.top_k,
            router_aux_loss_coef=self.router_aux_loss_coef,
        )
        after = plan_config(config, kind=before.kind)
        per_parameter = before.num_bytes / before.num_parameters
        num_bytes = round(per_parameter * after.num_parameters)
        note = "all experts are equal until the model is trained" if not self.noise else "noise changes the function"
        return before.with_(
            config=config,
            shapes=after.shapes,
            num_bytes=num_bytes,
            peak_memory_bytes=before.num_bytes + num_bytes + 500_000_000,
            notes=(*before.notes, note),
        )

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run

        return run(self, model, ctx)
