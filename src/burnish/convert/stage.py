"""`Upcycle`: a dense Llama-type checkpoint as a Mixtral that computes the same until it is trained. `Unpack`: packed
weights as dense ones, for the stages that need those.

mixture = burnish.Upcycle(num_experts=8)(model)
burnish.Unpack()(burnish.load("models/deepseek-v3")).save("deepseek-v3-bf16")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from burnish.core.kinds import STREAMED, Plan, Weights
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


class Unpack(Stage):
    """Multiplies packed weights by their scales and stores them as dense ones."""

    name: ClassVar[str] = "unpack"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "packed weights (FP8, MXFP4, compressed-tensors) as dense ones"
    memory_settings: ClassVar[str] = "dtype"
    accepts_weights: ClassVar[frozenset[Weights]] = frozenset({Weights.PACKED})

    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="of the dense weights")

    def plan(self, before: Plan) -> Plan:
        from math import prod

        from burnish.convert.run import dense_config, packing_of

        method, size = packing_of(before.config), 4 if self.dtype == "float32" else 2
        largest = max(map(prod, before.shapes.values()))
        num_bytes = size * before.num_parameters
        memory = 24 * largest if method in STREAMED else before.num_bytes + 2 * num_bytes
        return before.with_(
            config=dense_config(before.config),
            weights=Weights.DENSE,
            num_bytes=num_bytes,
            peak_memory_bytes=memory + 500_000_000,
            notes=(*before.notes, f"weights packed as {method} are written in {self.dtype}"),
        )

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run_unpack

        return run_unpack(self, model, ctx)
