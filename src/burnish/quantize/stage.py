"""`Quantize`: weights rounded to 2-8 bits, written in the compressed-tensors format that stock loaders read.

quantized = burnish.Quantize(method="yaqa", bits=3)(model, calibration=texts)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from burnish.core.kinds import Plan, Weights
from burnish.core.settings import VOLATILE, DataRef
from burnish.core.stage import Context, Stage
from burnish.quantize.formats import FORMATS
from burnish.quantize.rules import RULES
from burnish.quantize.settings import BY_TEXT, RuleName, SchemeName, SchemeSettings, complete_scheme, count

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.quantize.rule import RoundingRule

REFIT_TOKENS = 16_384
"""Of calibration text, for a rule that takes none by itself."""
WITH_TARGET = "yaqa"
"""The rule where a size is asked for and no rule: of what needs no learning the nearest at every width, from gradients
that a target takes anyway."""


class Quantize(Stage):
    """Rounds the linear layers' weights: to nearest (rtn), one-sided (gptq) or two-sided (yaqa)."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 10
    summary: ClassVar[str] = "round weights to 2-8 bits (RTN, GPTQ, YAQA)"
    memory_settings: ClassVar[str] = "memory (bytes of statistics held at once) or length"

    method: RuleName = Field(
        default="gptq",
        description="; ".join(f"{name}: {rule.summary}" for name, rule in RULES.items())
        + f"; left out, it is {WITH_TARGET} with a target and else gptq",
    )
    scheme: SchemeName = Field(
        default="int", description="; ".join(f"{name}: {form.summary}" for name, form in FORMATS.items())
    )
    bits: int = Field(default=4, ge=2, le=8, description="bits per weight (scheme int)")
    group_size: int | None = Field(
        default=64, ge=1, description="inputs that share a scale; null for one scale per row (scheme int)"
    )
    symmetric: bool = Field(default=True, description="grid without zero points (scheme int)")
    target: str | None = Field(
        default=None,
        description="widths for a size, instead of bits: 3.0bits per rounded weight (as large as 3 bits in all), "
        "60MB or 45% of the weights' files",
    )
    overrides: dict[str, SchemeSettings] = Field(
        default_factory=dict,
        description="schemes of some matrices, {name or re:PATTERN: {bits: 8}}; first match",
    )
    calibration: DataRef = Field(
        default="wikitext2-valid", description="text to collect statistics from, where the method needs any"
    )
    tokens: Annotated[int | None, BeforeValidator(count)] = Field(
        default=None,
        ge=1,
        description="calibration tokens, 65536 or short 65k; null takes "
        + " and ".join(f"{rule.tokens:,} for {name}" for name, rule in RULES.items() if rule.tokens),
    )
    length: int = Field(default=256, ge=8, description="tokens per calibration window")
    damping: float | None = Field(
        default=None,
        ge=1e-4,
        description="multiple of the mean diagonal added to factors; null chooses on held-out windows",
    )
    scale_search: bool = Field(default=False, description="search a clipping ratio per group instead of the full range")
    refit: int | None = Field(
        default=None,
        ge=0,
        le=8,
        description="how often scales are fitted to the codes by the inputs' statistics (rtn then needs text too); "
        "each time but the last weights are rounded anew to them; null: with scheme int "
        + " and ".join(f"{rule.refits} for {name}" for name, rule in RULES.items() if rule.refits)
        + ", else 0",
    )
    sketch: Literal["a", "b"] | None = Field(
        default=None,
        description="yaqa's factors: b keeps the dependence between tokens, a does not; null measures which is better",
    )
    start: Literal["rtn", "gptq", "yaqa"] = Field(default="yaqa", description="learned only: whose codes it begins at")
    iterations: int | None = Field(
        default=None,
        ge=1,
        description="steps per layer, of 1,024 tokens each; null takes "
        + " and ".join(f"{rule.iterations} for {name}" for name, rule in RULES.items() if rule.iterations),
    )
    optimizer: Literal["sign", "adam"] = Field(default="sign", description="learned only: what follows the gradient")
    error: Literal["plain", "relative", "sensitivity"] = Field(
        default="sensitivity",
        description="learned only: of a layer, squared, or relative to tokens' sizes, or weighed by the model too",
    )
    folds: int = Field(
        default=4, ge=2, description="parts of the calibration text; the last is held out to choose shrinkage"
    )
    curve: bool = Field(
        default=False,
        description="also measure KL against the number of calibration tokens: a quarter, half and all of them",
    )
    outliers: bool = Field(
        default=False,
        description="also report what stands out: in every matrix's inputs on the calibration text, and in its weights",
    )
    propagate: bool = Field(
        default=False,
        description="gptq only: statistics from activations of the layers quantized so far, not the original's",
    )
    head_bits: int | None = Field(default=None, ge=2, le=8, description="also round an untied head to so many bits")
    quantize_embedding: Annotated[int, Field(ge=2, le=8)] | Literal["auto"] | None = Field(
        default=None,
        description="also round the embedding, and a head that is tied to it, to so many bits; auto chooses them for "
        "the target, together with the layers' widths; stock loaders do not read that as it is, burnish does",
    )
    low_rank: int = Field(
        default=0,
        ge=0,
        description="rank of factors beside each rounded matrix, an adapter in the checkpoint's dtype; 0 for none",
    )
    low_rank_init: Literal["corda", "corda-kpm", "pissa", "loftq"] = Field(
        default="corda",
        description="low_rank: what the inputs use most of a matrix, or least (kpm), or its largest part whatever they "
        "are, which is not rounded; or the largest part of what rounding has lost (loftq)",
    )
    ignore: tuple[str, ...] = Field(default=(), description="matrices to leave dense: names, or re:PATTERN")
    engine: Literal["vllm", "vllm-cpu"] | None = Field(
        default=None, description="refuse what this engine has no kernel for"
    )
    stream: bool | None = Field(
        default=None,
        description="one decoder layer in memory at a time; null: where all would fill half of what is free",
        json_schema_extra=VOLATILE,
    )
    memory: int | None = Field(
        default=None,
        ge=1,
        description="bytes of statistics held at once, else the text is read again; null: a quarter of what is free",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="before")
    @classmethod
    def _state_what_follows(cls, given: Any) -> Any:
        """Fills in what a scheme fixes, what overrides inherit, and a target's rule, so that settings read the same
        when written out."""
        if not isinstance(given, dict):
            return given
        complete = complete_scheme(given)
        if complete.get("target") is not None:
            complete.setdefault("method", WITH_TARGET)
        overrides = complete.get("overrides")
        if isinstance(overrides, dict):
            complete["overrides"] = {
                pattern: complete_scheme(part, complete, where=f"in overrides, {pattern}: ")
                if isinstance(part, dict)
                else part
                for pattern, part in overrides.items()
            }
        return complete

    @property
    def num_tokens(self) -> int:
        """Calibration tokens, with the method's default."""
        return (RULES[self.method].tokens or REFIT_TOKENS) if self.tokens is None else self.tokens

    @property
    def num_refits(self) -> int:
        """How often scales are fitted, with the method's default; that was measured for packed integers alone."""
        default = RULES[self.method].refits if self.scheme == "int" else 0
        return default if self.refit is None else self.refit

    @property
    def num_iterations(self) -> int:
        """Steps per layer, with the method's default."""
        return RULES[self.method].iterations if self.iterations is None else self.iterations

    @property
    def rounds_by(self) -> RoundingRule:
        """The rule that gives every matrix its first codes, and where nothing is learned its last."""
        rule = RULES[self.method]
        return RULES[self.start] if rule.by_block else rule

    @property
    def compares(self) -> bool:
        """Whether roundings are compared on windows that are kept back."""
        return bool(self.rounds_by.compared) and (self.damping is None or self.sketch is None)

    @property
    def needs(self) -> frozenset[str]:
        """What is collected from the calibration text, see `RoundingRule`."""
        wanted = RULES[self.method].needs | ({"covariance"} if self.num_refits else set())
        return wanted | ({"covariance", "sketch"} if self.target is not None else set())

    @property
    def statistics_bytes(self) -> int:
        """Bound on the statistics held at once."""
        from burnish.core.memory import for_statistics

        return self.memory or for_statistics()

    @property
    def reads(self) -> bool:
        """Whether calibration text is read at all."""
        return bool(self.needs) or self.outliers or (self.low_rank > 0 and self.low_rank_init in BY_TEXT)

    def plan(self, before: Plan) -> Plan:
        from burnish.quantize.plan import plan

        return plan(self, before).with_(weights=Weights.PACKED, adapter=self.low_rank > 0)

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.quantize.plan import preflight

        preflight(self, start, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.quantize.run import run

        return run(self, model, ctx)
