"""`Upcycle`: a dense Llama-type checkpoint as a Mixtral that computes the same until it is trained. `Unpack`: packed
weights as dense ones, for the stages that need those. `LatentAttention`: keys and values as a latent, with less cache.
`LadderResidual`: layers that compute while the sums of those before them are on their way. `SwiftKV`: later layers that
a prompt does not run.

mixture = burnish.Upcycle(num_experts=8)(model)
half = burnish.LatentAttention(cache=0.5)(model, calibration=texts)
burnish.Unpack()(burnish.load("models/deepseek-v3")).save("deepseek-v3-bf16")
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.kinds import Plan, Weights
from burnish.core.settings import VOLATILE, DataRef
from burnish.core.stage import Context, Stage

if TYPE_CHECKING:
    from burnish.convert.latent_config import Widths
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
    accepts_adapter: ClassVar[bool] = True

    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="of the dense weights")

    def plan(self, before: Plan) -> Plan:
        from math import prod

        from burnish.convert.run import dense_config, is_streamed, packing_of

        method, size = packing_of(before.config), 4 if self.dtype == "float32" else 2
        largest = max(map(prod, before.shapes.values()))
        num_bytes = size * before.num_parameters
        memory = 24 * largest if is_streamed(before.config) else before.num_bytes + 2 * num_bytes
        return before.with_(
            config=dense_config(before.config),
            weights=Weights.DENSE,
            adapter=False,
            num_bytes=num_bytes,
            peak_memory_bytes=memory + 500_000_000,
            notes=(*before.notes, f"weights packed as {method} are written in {self.dtype}"),
        )

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run_unpack

        return run_unpack(self, model, ctx)


class LatentAttention(Stage):
    """Replaces keys and values of every layer by a latent and one rotary key, as DeepSeek's attention has them."""

    name: ClassVar[str] = "mla"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "grouped-query attention as latent attention, with a smaller cache"
    memory_settings: ClassVar[str] = "tokens or length"

    cache: float = Field(
        default=0.5, gt=0, description="share of the source's cache that is left, where no rank is given"
    )
    rank: int | None = Field(default=None, ge=1, description="of the latent, instead of a share of the cache")
    rope_dim: int | None = Field(
        default=None, ge=2, description="channels of the shared rotary key; chosen by predicted error if not given"
    )
    engine: Literal["vllm", "transformers"] = Field(
        default="vllm", description="what shall load it; transformers takes any rotary frequencies, vLLM a grid"
    )
    objective: Literal["attention", "two-sided", "transmla", "care", "svd"] = Field(
        default="attention", description="what the latent is the best one for; all but the first are baselines"
    )
    rope: str = Field(
        default="auto",
        description="pairs that keep turning: free (transformers), grid, and the published rorope and freqfold:N; "
        "auto is free or grid, by engine",
    )
    norm: Literal["functional", "bias", "fold"] = Field(
        default="functional",
        description="what makes the latent's norm harmless: a nearly constant channel, one that is exactly constant "
        "(transformers), or nothing but its mean (a baseline, much worse)",
    )
    sequential: bool = Field(
        default=True, description="convert each layer on what the converted ones before it give, not on the original's"
    )
    refit: bool = Field(
        default=False, description="fit each output projection to the original's attention output, by held-out choice"
    )
    heal_tokens: int = Field(
        default=0,
        ge=0,
        description="train each layer's attention to give what the original's gave, on so many tokens of the "
        "calibration text; what held-out text does not confirm is dropped",
    )
    context: int | None = Field(
        default=None,
        ge=2,
        description="positions to be served, for the choice of pairs; the window length if not given",
    )
    calibration: DataRef = Field(default="wikitext2-valid", description="text to convert on; mix what will be served")
    tokens: int = Field(default=16_384, ge=1, description="calibration tokens")
    length: int = Field(default=512, ge=8, description="tokens per calibration window")
    allow_larger: bool = Field(default=False, description="convert although the cache does not get smaller")
    stream: bool | None = Field(
        default=None,
        description="one decoder layer in memory at a time; null: where the network would fill half of what is free",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> LatentAttention:
        if self.rope not in ("auto", "free", "grid", "rorope") and not re.fullmatch(r"freqfold:[1-9]\d*", self.rope):
            raise ValueError(f"rope is {self.rope!r}, but is one of auto, free, grid, rorope and freqfold:N")
        if self.rope == "free" and self.engine == "vllm":
            raise ValueError(
                "rope: free repeats frequencies, and vLLM computes them from one base; use rope: grid, or "
                "engine: transformers"
            )
        if self.norm == "bias" and self.engine == "vllm":
            raise ValueError("norm: bias needs a bias that vLLM does not read; use norm: functional")
        if self.rank is not None and self.rope_dim is None:
            raise ValueError("rank is given without rope_dim; give both, or a share of the cache")
        if self.cache >= 1 and self.rank is None and not self.allow_larger:
            raise ValueError(f"cache is {self.cache:g}, which is no less than the source's; give a share below 1")
        return self

    @property
    def rope_mode(self) -> str:
        """free, grid or folded."""
        if self.rope == "auto":
            return "grid" if self.engine == "vllm" else "free"
        return self.rope if self.rope in ("free", "grid") else "folded"

    @property
    def fold(self) -> int:
        """Frequencies that are pooled, for the published choices."""
        return int(self.rope.partition(":")[2] or 1)

    @property
    def extra(self) -> int:
        """Ranks of the latent that hold a constant."""
        return 0 if self.norm == "fold" else 1

    def total(self, config: Any) -> int:
        """Numbers to cache for a token and a layer, where a share is given."""
        from burnish.convert.latent_config import shared_total

        return shared_total(config, self.cache)

    def widths(self, config: Any) -> Widths | None:
        """The widths, where they are given or follow; None where they are to be chosen."""
        from burnish.arch import describe
        from burnish.convert.latent_config import Widths

        rope_dim = self.rope_dim
        if rope_dim is None and self.rope_mode == "folded":
            rope_dim = describe(config).head_dim
        if rope_dim is None:
            return None
        return Widths(self.total(config) - rope_dim if self.rank is None else self.rank, rope_dim)

    def plan(self, before: Plan) -> Plan:
        from burnish.convert.latent_plan import plan

        return plan(self, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run_mla

        return run_mla(self, model, ctx)


class LadderResidual(Stage):
    """Lets sub-blocks of some layers read the stream of one sub-block earlier, so that all-reduces can overlap."""

    name: ClassVar[str] = "ladder"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "layers that compute while all-reduces of tensor parallelism run; needs its own class"
    memory_settings: ClassVar[str] = "length"

    layers: str = Field(
        default="auto:4",
        description="auto:N, the N neighbouring ones that cost least on the calibration text, or last:N",
    )
    custom_code: bool = Field(
        default=False, description="write the class beside the weights, as no stock one computes this; required"
    )
    calibration: DataRef = Field(default="wikitext2-valid", description="text that the cost of layers is measured on")
    tokens: int = Field(default=1024, ge=1, description="of that text; every choice of layers reads all of them")
    length: int = Field(default=256, ge=8, description="tokens per window")

    @model_validator(mode="after")
    def _names_layers(self) -> LadderResidual:
        if re.fullmatch(r"(last|auto):[1-9]\d*", self.layers) is None:
            raise ValueError(f"layers is {self.layers!r}, but is last:N or auto:N, such as last:4")
        return self

    def plan(self, before: Plan) -> Plan:
        from burnish.convert.ladder import plan

        return plan(self, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run_ladder

        return run_ladder(self, model, ctx)


class SwiftKV(Stage):
    """Gives later layers keys and values of an earlier layer's output, so that a prompt need not run them."""

    name: ClassVar[str] = "swiftkv"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "later layers that a prompt does not run; needs its own class"

    from_layer: int | None = Field(
        default=None,
        ge=1,
        description="number of the layer, from 1, whose output all later ones take keys and values from; half of them "
        "if not given",
    )
    custom_code: bool = Field(
        default=False, description="write the class beside the weights, as no stock one computes this; required"
    )

    def plan(self, before: Plan) -> Plan:
        from burnish.convert.swiftkv import plan

        return plan(self, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.convert.run import run_swiftkv

        return run_swiftkv(self, model)
