"""The stage `train`: continued pre-training on texts, or fine-tuning on chats."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from burnish.core.cost import seconds_for
from burnish.core.errors import SettingsError, nearest
from burnish.core.kinds import PREDICTS_TEXT, Kind, Plan, Weights, packing
from burnish.core.stage import VOLATILE, Context, DataRef, Stage
from burnish.methods import OPTIMIZER_CLASSES
from burnish.train.attention import Attention
from burnish.train.objective import Objective
from burnish.train.rope import RopeScaling

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

    OptimizerName = str
else:
    OptimizerName = Literal[(*OPTIMIZER_CLASSES, "pstorm")]

LORA_BYTES_PER_PARAMETER = 5
MOST_STEPS, MOST_EPOCHS, MOST_ROWS = 10**9, 10**6, 10**8
"""What is beyond is a slip of the keyboard: a billion steps of a hundredth of a second take four months."""


class Train(Stage):
    """Train a model on texts (every token counts) or chats (what the assistant says counts)."""

    name: ClassVar[str] = "train"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "training on texts or chats with NorMuon, Muon, COSMOS, SOAP or AdamW; packed, resumable"
    memory_settings: ClassVar[str] = "micro_batch or context, or set activation_checkpointing"
    accepts: ClassVar[frozenset[Kind]] = PREDICTS_TEXT
    beside_packed: ClassVar[bool] = True
    changeable: ClassVar[frozenset[str] | None] = frozenset(
        {"steps", "epochs", "batch", "micro_batch", "lr", "adamw_lr", "schedule", "warmup", "decay", "final_lr"}
        | {"max_grad_norm", "on_nonfinite", "activation_checkpointing", "validation", "validation_rows", "keep_adapter"}
    )

    data: DataRef | None = Field(default=None, description="texts or chats to train on; must be given")
    validation: DataRef | None = Field(default=None, description="texts or chats to measure on during training")
    holdout: float = Field(default=0.0, ge=0, lt=1, description="share of the rows kept for measuring, the last ones")
    validation_rows: int | None = Field(
        default=None, ge=1, description="most rows that are measured on, spread over those held out; all if not given"
    )
    bound_data: DataRef | None = Field(
        default=None, description="other texts or chats whose loss must stay at or below a level"
    )
    bound_level: float | None = Field(default=None, gt=0, description="the largest loss on bound_data, nats a token")
    bound_rise: float | None = Field(
        default=None, ge=0, description="that level as nats above the loss at the start, compared row by row"
    )
    bound_penalty: float = Field(default=10.0, gt=0, description="how hard a broken bound pulls, per nat")
    bound_every: int = Field(default=10, ge=1, description="steps between two changes of the bound's multiplier")
    bound_batch: int | None = Field(
        default=None, ge=1, description="rows of bound_data per step; as many as batch when not given"
    )
    bound_holdout: float = Field(
        default=0.1, gt=0, lt=1, description="share of the rows of bound_data kept for measuring, the last ones"
    )
    context: int = Field(default=512, ge=2, description="tokens of a row")
    rope_scaling: str | None = Field(
        default=None,
        description="reach further than the model's positions: linear=4, yarn=4, llama3=4 (times), or a larger base, "
        "theta=1e6,positions=32768",
    )
    overlong: Literal["auto", "split", "truncate", "drop", "refuse"] = Field(
        default="auto", description="documents longer than the context; auto splits texts and refuses chats"
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse", description="rows that are no text or chat; skip leaves them out and names them"
    )

    steps: int | None = Field(
        default=None, ge=1, le=MOST_STEPS, description="optimizer steps; when not given, from epochs"
    )
    epochs: float = Field(default=1.0, gt=0, le=MOST_EPOCHS, description="passes over the data")
    batch: int = Field(default=16, ge=1, le=MOST_ROWS, description="rows per optimizer step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows per forward pass; all of the batch when not given"
    )

    optimizer: OptimizerName = Field(
        default="normuon", description="rule of the matrices; everything else takes AdamW (pstorm is a rule for all)"
    )
    lr: float = Field(
        default=3e-4, gt=0, description="peak learning rate; AdamW's rates work for normuon, muon and cosmos"
    )
    adamw_lr: float | None = Field(
        default=None, gt=0, description="peak rate of embeddings, heads and norms; lr if not given"
    )
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay; norms and biases have none")
    split_fused: bool = Field(
        default=False, description="step the parts of fused q, k, v and gate, up matrices on their own"
    )
    optimizer_options: dict[str, Any] = Field(default={}, description="further options of the optimizer's class")
    sharpness: float = Field(
        default=0.0, ge=0, lt=1, description="weight of the loss's sharpness (WSAM); a step then takes two gradients"
    )
    sharpness_rho: float = Field(default=0.05, ge=0, description="how far uphill the second of them is taken")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field(
        default="cosine", description="learning rate over time"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    decay: float = Field(default=0.2, gt=0, le=1, description="wsd: share of the steps in which it falls")
    final_lr: float = Field(default=0.0, ge=0, le=1, description="last learning rate, in units of the peak")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    on_nonfinite: Literal["stop", "skip"] = Field(default="stop", description="steps whose gradient is not finite")
    balance: float | None = Field(
        default=None, ge=0, description="weight of the experts' load-balancing loss; the model's own when not given"
    )

    only: str | None = Field(
        default=None,
        description="train parameters whose names fit one of these, '*.mlp.gate.*,lm_head.*', and no other; routers: "
        "those of a mixture",
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        description="train LoRA adapters of this rank and merge them, or leave them beside packed ones; 0 trains all "
        "weights",
    )
    lora_alpha: float | None = Field(
        default=None, gt=0, description="scale of the adapters; twice the rank when not given"
    )
    lora_targets: str = Field(default="all-linear", description="modules that get adapters, separated by commas")
    lora_experts: Literal["none", "each", "shared"] = Field(
        default="none",
        description="adapters on the routed experts of a mixture: for each its own; shared: one A for all of gate and "
        "up, one B for all of down",
    )
    lora_init: Literal["default", "gaussian", "pissa", "olora", "corda"] = Field(
        default="default", description="how the adapters start; corda looks at the data"
    )
    lora_matrix: bool = Field(default=False, description="give the adapters the matrix update instead of AdamW")
    keep_adapter: bool = Field(default=False, description="write the adapters alone too, beside the logs of the run")

    objective: str | None = Field(
        default=None,
        description="separated by commas: focal=1 and drop_top=0.99, by how likely the model finds a token; for long "
        "contexts view=skip|cyclic, weights=kl|lsd|js|longce|dense|sparse|ppmi|npmi, window=2048, sinks=4 ...",
    )

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the products; weights and state are float32. auto is bfloat16 on a GPU"
    )
    attention: Attention = Field(
        default="auto", description="sdpa, eager, flex or flash; auto is flash on a GPU where flash-attn is installed"
    )
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="processes that share the rows of a step, each with a stretch of every row; 1 gives each its own",
        json_schema_extra=VOLATILE,
    )
    activation_checkpointing: bool = Field(default=False, description="compute activations twice to save memory")
    compile: bool = Field(default=False, description="run the model through torch.compile")
    eval_every: int = Field(
        default=0,
        ge=0,
        description="steps between measurements on held-out rows; 0 measures at the end",
        json_schema_extra=VOLATILE,
    )
    keep_best: bool = Field(
        default=False,
        description="end with the weights of the lowest loss on held-out rows, measured at the start and by eval_every",
    )
    save_every: int = Field(
        default=100,
        ge=0,
        description="steps between states that an interrupted run continues from",
        json_schema_extra=VOLATILE,
    )
    save_async: bool = Field(
        default=False,
        description="with several processes, go on training while a state is written",
        json_schema_extra=VOLATILE,
    )

    report_to: str = Field(
        default="",
        description="programs that get the loss table too, separated by commas: tensorboard, wandb, mlflow, trackio",
        json_schema_extra=VOLATILE,
    )

    @classmethod
    def parse(cls, settings: dict[str, Any], *, where: str) -> Self:
        return super().parse(_with_bound(settings, where), where=where)

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                Objective.of(text)
            except SettingsError as error:
                raise ValueError(str(error).removeprefix("objective: ")) from None
        return text

    @field_validator("rope_scaling")
    @classmethod
    def _known_scaling(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                RopeScaling.of(text)
            except SettingsError as error:
                raise ValueError(str(error).removeprefix("rope_scaling: ")) from None
        return text

    @field_validator("optimizer_options")
    @classmethod
    def _typed(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The command line gives text: `--optimizer-options.betas "[0.9, 0.95]"`."""
        return {key: _literal(value) if isinstance(value, str) else value for key, value in options.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"batch is {self.batch}, which micro_batch {self.micro_batch} does not divide")
        if self.validation is not None and self.holdout:
            raise ValueError("validation and holdout are two ways of the same thing: give one of them")
        limits = [name for name in ("bound_level", "bound_rise") if getattr(self, name) is not None]
        if self.bound_data is not None and not limits:
            raise ValueError("bound_data needs a bound_level, the largest loss on it, or a bound_rise over the start")
        if len(limits) > 1:
            raise ValueError("bound_level and bound_rise are two ways of the same thing: give one of them")
        if self.optimizer == "pstorm":
            given = [name for name in ("adamw_lr", "split_fused", "lora_matrix", "sharpness") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} does not go with pstorm, which has one rule for all parameters")
        if self.sequence_parallel > 1:
            against = {
                "compile": self.compile,
                "attention": self.attention in ("eager", "flex"),
                "balance": self.balance,
            }
            if given := [name for name, value in against.items() if value]:
                raise ValueError(f"sequence_parallel does not go with {given[0]} {getattr(self, given[0])}")
        if self.objective is not None:
            against = {
                "compile": self.compile,
                "attention": self.attention == "flash" and Objective.of(self.objective).is_long,
                "sequence_parallel": self.sequence_parallel > 1,
            }
            if given := [name for name, value in against.items() if value]:
                raise ValueError(f"objective {self.objective} does not go with {given[0]} {getattr(self, given[0])}")
        if self.only is not None and self.lora_rank:
            raise ValueError("only and lora_rank both say what is trained: give one of them")
        if self.lora_rank == 0 and (self.lora_init != "default" or self.lora_matrix):
            raise ValueError("lora_init and lora_matrix need a lora_rank")
        if self.lora_experts != "none":
            if not self.lora_rank:
                raise ValueError("lora_experts needs a lora_rank")
            if self.lora_init not in ("default", "gaussian") or self.lora_matrix or self.compile:
                given = (
                    "compile" if self.compile else "lora_matrix" if self.lora_matrix else f"lora_init {self.lora_init}"
                )
                raise ValueError(f"lora_experts {self.lora_experts} does not go with {given}")
        if self.keep_adapter and self.lora_rank == 0:
            raise ValueError("keep_adapter needs a lora_rank")
        if self.keep_adapter and self.lora_init not in ("default", "gaussian"):
            raise ValueError(
                f"keep_adapter does not go with lora_init {self.lora_init}: it changes the weights below the adapters, "
                "which then fit no other copy of the model"
            )
        if self.keep_adapter and self.rope_scaling is not None:
            raise ValueError(
                "keep_adapter does not go with rope_scaling: adapters alone do not say at which positions they belong"
            )
        return self

    @property
    def takes_weights(self) -> frozenset[Weights]:
        beside = self.beside_packed and self.lora_rank
        return self.accepts_weights | {Weights.PACKED} if beside else self.accepts_weights

    @property
    def takes_adapter(self) -> bool:
        return self.beside_packed and self.lora_rank > 0

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps for that many rows."""
        return self.steps or max(1, math.ceil(self.epochs * num_rows / self.batch))

    def plan(self, before: Plan) -> Plan:
        """The same model; raises on a context or optimizer options that cannot be.

        Time is known where the number of steps is: 6 operations a weight and token, 4 where most weights stay as they
        are, 2 more where activations are computed twice, all of it twice where a step takes two gradients.
        """
        from burnish.arch import num_active_parameters

        if self.data is None:
            raise SettingsError("no data is named", where="data", fix="give data: FILE, or --data FILE")
        if self.keep_best and self.validation is None and not self.holdout:
            what = "keep_best needs held-out rows to measure on"
            raise SettingsError(what, where="keep_best", fix="give validation, or a holdout, or keep_best: false")
        if self.lora_rank and (before.weights is Weights.PACKED or before.adapter):
            before = self.beside(before)
        before = before.with_(config=self.scaled(before.config))
        self.check(before.config)
        each = LORA_BYTES_PER_PARAMETER
        if self.lora_rank == 0:
            each = self._try_optimizer(before.config)
        operations = (4 if self.lora_rank else 6) + 2 * self.activation_checkpointing
        operations *= 2 if self.sharpness or self.optimizer == "pstorm" else 1
        tokens = (self.steps or 0) * self.batch * self.context
        added, notes = self.added(before), before.notes
        if added is not None:
            notes = (*notes, f"its objective takes {added:.0%} more operations than the plain loss")
        return before.with_(
            peak_memory_bytes=each * before.num_parameters,
            seconds=seconds_for((1 + (added or 0.0)) * operations * num_active_parameters(before) * tokens),
            notes=notes,
        )

    def beside(self, before: Plan) -> Plan:
        """The plan of weights that stay as they are, with the adapter that is trained beside them.

        Raises:
            SettingsError: settings that would change the weights, or weights that are no whole numbers.
        """
        from burnish.core.checkpoint.packed_integers import check_whole_numbers

        if found := packing(before.config):
            check_whole_numbers(found, purpose="adapters are trained beside")
        changing = {
            "lora_init": self.lora_init not in ("default", "gaussian"),
            "lora_experts": self.lora_experts != "none",
            "keep_adapter": self.keep_adapter,
            "rope_scaling": self.rope_scaling is not None,
        }
        if given := [name for name, value in changing.items() if value]:
            raise SettingsError(
                f"{given[0]} {getattr(self, given[0])} does not go with an adapter that stays beside the weights",
                where=given[0],
                fix="leave it out",
            )
        return before.with_(adapter=True, notes=(*before.notes, "weights stay; an adapter comes beside them"))

    def scaled(self, config: Any) -> Any:
        """The configuration of the model that is trained, whose positions may reach further.

        Raises:
            SettingsError: they cannot be made to.
        """
        return config if self.rope_scaling is None else RopeScaling.of(self.rope_scaling).scaled(config)

    def added(self, plan: Plan, num_rows: int | None = None, *, of_whole_step: bool = False) -> float | None:
        """Operations that the objective adds, as a share of those of the plain loss; None without one.

        Args:
            plan: of the model.
            num_rows: of the data; without it, weights that are kept are taken to be computed in one pass of `epochs`,
                and in every step where `steps` are given.
            of_whole_step: of a step that has the view and computes weights, whatever share of the steps does.
        """
        if self.objective is None:
            return None
        import torch

        objective = Objective.of(self.objective)
        weighed = 1.0
        if of_whole_step:
            objective = objective.model_copy(update={"view_prob": 1.0})
        elif objective.cache and num_rows is not None:
            weighed = min(1.0, math.ceil(num_rows / self.batch) / self.num_steps(num_rows))
        elif objective.cache and self.steps is None:
            weighed = min(1.0, 1 / self.epochs)
        return objective.overhead(
            plan,
            self.context,
            skips=self.attention == "flex" or (self.attention == "auto" and torch.cuda.is_available()),
            checkpointing=self.activation_checkpointing,
            adapters=bool(self.lora_rank),
            weighed=weighed,
        )

    def check(self, config: Any) -> None:
        """Refuses what does not fit the model, before anything is loaded.

        Raises:
            SettingsError: a context beyond the model's, or an optimizer option or a tracker that does not exist.
        MissingExtraError: the package of a tracker is not installed.
        """
        from burnish.train.run import class_of
        from burnish.train.trackers import tracker_names

        tracker_names(self.report_to)
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and self.context > longest:
            raise SettingsError(
                f"context is {self.context:,}, but the model was made for {longest:,} positions",
                where="context",
                fix=f"use --context {longest}, or a rope_scaling that reaches further",
            )
        if self.objective is not None:
            Objective.of(self.objective).check(config, self.context)
        if self.sequence_parallel > 1:
            from burnish.train.sequence import check_config

            check_config(config, self.sequence_parallel)
            if self.balance is None and getattr(config.get_text_config(), "router_aux_loss_coef", None):
                raise SettingsError(
                    "the load-balancing loss is a mean over whole rows, which sequence_parallel cuts",
                    where="balance",
                    fix="set balance to 0, or leave sequence_parallel out",
                )
        own = ("weight_decay", "adamw_lr", "seed", "max_norm")  # settings of the stage already
        known = [name for name in class_of(self.optimizer).option_names() if name not in own]
        for option in self.optimizer_options:
            if option not in known:
                guess = nearest(option, known)
                advice = f"did you mean {guess!r}?" if guess else f"its options are {', '.join(known)}"
                raise SettingsError(f"{self.optimizer} has no option {option!r}", where="optimizer_options", fix=advice)

    def _try_optimizer(self, config: Any) -> int:
        """Makes the optimizer of a model without memory, so that options that do not fit it are refused by the plan.

        Returns:
            its bytes per parameter.
        """
        import torch

        from burnish.core.checkpoint import without_memory
        from burnish.train.run import make_optimizer

        with torch.device("meta"):
            return make_optimizer(self, without_memory(config).float()).bytes_per_parameter

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.data.attempt import try_rows

        for name in ("data", "validation", "bound_data"):
            if (data := getattr(self, name)) is not None:
                try_rows(start.tokenizer, data, before.config, where=name, skip_bad=self.bad_rows == "skip")
        if self.lora_rank:
            from burnish.core.checkpoint import without_memory
            from burnish.core.checkpoint.adapter import read_adapter_config
            from burnish.train.lora import check_adapters, check_goes_on

            network = without_memory(before.config, before.kind)
            check_adapters(network, self.lora_targets, self.lora_rank, experts=self.lora_experts != "none")
            if start.path is not None and (config := read_adapter_config(start.path)) is not None and before.adapter:
                check_goes_on(self, config)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.train.run import run

        return run(self, model, ctx)


def _with_bound(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """`constraints: [{loss_bound: {data: ..., level: ...}}]` of a recipe as `bound_data`, `bound_level` ...

    Raises:
        SettingsError: another constraint, more than one, or keys that a loss bound does not have.
    """
    if "constraints" not in settings:
        return settings
    found = settings["constraints"]
    form = "constraints: [{loss_bound: {data: FILE, level: NATS}}], or rise: NATS above the start"
    one = found[0] if isinstance(found, list) and len(found) == 1 else None
    if not isinstance(one, dict) or list(one) != ["loss_bound"]:
        raise SettingsError(f"constraints is {found!r}, but must be one loss bound", where=where, fix=f"write {form}")
    content = one["loss_bound"]
    known = ("data", "level", "rise", "penalty", "every", "batch", "holdout")
    keys = {name for name, value in content.items() if value is not None} if isinstance(content, dict) else set()
    if "data" not in keys or not keys <= set(known) or len(keys & {"level", "rise"}) != 1:
        raise SettingsError(
            f"loss_bound is {content!r}, but needs data and a level or rise, and may have {', '.join(known[3:])}",
            where=where,
            fix=f"write {form}",
        )
    rest = {name: value for name, value in settings.items() if name != "constraints"}
    lifted = {f"bound_{name}": value for name, value in content.items()}
    if twice := sorted(set(rest) & set(lifted)):
        raise SettingsError(f"{twice[0]} and constraints say the same thing twice", where=where, fix="leave one out")
    return rest | lifted


def _literal(text: str) -> Any:
    """A JSON value where the text is one, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
