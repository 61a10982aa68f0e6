"""The stages `align`, preference pairs or a reward model made from them, and `grpo`, answers that can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.kinds import Kind, Plan, Weights, packing
from burnish.core.stage import VOLATILE, CheckpointRef, Context, DataRef, Stage
from burnish.data.chain import Chains
from burnish.data.table import Tables
from burnish.train.stage import OptimizerName

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

Loss = Literal[
    "dpo",
    "aps-dpo",
    "aps-quadratic-dpo",
    "r3m-dpo",
    "aps-r3m-dpo",
    "reward",
    "aps-reward",
    "aps-quadratic-reward",
    "r3m-reward",
    "aps-r3m-reward",
    "cdpo",
    "robust",
    "ipo",
    "hinge",
    "sigmoid_norm",
    "sft-mix",
    "kto",
]

STOCK_LOSSES: dict[str, list[str]] = {
    "robust": ["robust"],
    "ipo": ["ipo"],
    "hinge": ["hinge"],
    "sigmoid_norm": ["sigmoid_norm"],
    "sft-mix": ["sigmoid", "sft"],
}
"""Losses of the margin that are TRL's own, by its names; they are here to be compared with."""
SMOOTHED = ("cdpo", "robust")
"""Losses that are nothing without a probability that a label is wrong."""

SOURCES = {
    "cdpo": "cDPO: DPO with smoothed labels, A note on DPO with noisy preferences, 2023",
    "robust": "rDPO: Provably Robust DPO, 2024, arXiv:2403.00409",
    "ipo": "IPO: A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023, arXiv:2310.12036",
    "hinge": "SLiC: Sequence Likelihood Calibration with Human Feedback, 2023, arXiv:2305.10425",
    "sigmoid_norm": "DPO with log-ratios per token: Tulu 3, 2024, arXiv:2411.15124",
    "sft-mix": "DPO with a likelihood term: Iterative Reasoning Preference Optimization, 2024, arXiv:2404.19733",
    "kto": "KTO: Model Alignment as Prospect Theoretic Optimization, 2024, arXiv:2402.01306",
    "dpo": "DPO: Direct Preference Optimization, 2023, arXiv:2305.18290",
    "reward": "a reward model of the Bradley-Terry kind: Rank Analysis of Incomplete Block Designs, 1952",
    "aps": "APS: Adaptive Preference Scaling for RLHF, 2024, arXiv:2406.02764",
    "r3m": "R3M: Robust Reinforcement Learning from Corrupted Human Feedback, 2024, arXiv:2406.15568",
}
"""Parts of a loss's name: what they are called and where they are from, for model cards."""

ADAM_BYTES = 16
"""Bytes per trained parameter: float32 weight, gradient and AdamW's two moments."""

OF_SHORT_ARC = ("acc_target", "target_updates", "tolerance", "alpha", "alpha_max", "eta", "p_min", "token_scale")
"""Settings that only the rule of that name reads."""


class Align(Stage):
    """Train on preference pairs with a loss that adapts to each pair."""

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 4
    beside_packed: ClassVar[bool] = True
    summary: ClassVar[str] = "preference training with DPO or a reward model; APS and R3M for weak and wrong labels"
    changeable: ClassVar[frozenset[str] | None] = frozenset()
    memory_settings: ClassVar[str] = "micro_batch or max_length, or use lora_rank"

    loss: Loss = Field(
        default="aps-dpo",
        description="what is trained (reward: a reward model; others: the policy) and how; from cdpo on, baselines",
    )
    data: DataRef | None = Field(
        default=None, description="preference pairs: .jsonl, .jsonl.gz, .json, .parquet or a hub id; must be given"
    )
    reference: CheckpointRef | None = Field(
        default=None, description="the reference of DPO; the model itself when not given"
    )

    beta: float = Field(default=0.1, gt=0, description="DPO: how strongly the policy is held to the reference")
    rho0: float = Field(default=0.1, gt=0, description="APS: radius of the robust problem, in nats")
    tau0: float = Field(default=0.1, gt=0, description="APS: smallest scale of a pair")
    tau_max: float = Field(default=5.0, gt=0, description="APS: largest scale of a pair")
    lam: float = Field(default=0.75, gt=0, lt=1, description="R3M: largest weight of a pair")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="probability that a label is wrong; cdpo and robust need it"
    )
    sft_weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="sft-mix: of the chosen answer's cross-entropy, per token"
    )

    lr: float | None = Field(
        default=None,
        gt=0,
        description="learning rate; when not given 1e-6 (dpo), 5e-5 (dpo with LoRA) or 1e-4 (reward)",
    )
    optimizer: OptimizerName = Field(default="adamw", description="of burnish.optim")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data; max_steps overrides it")
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps")
    batch: int = Field(default=16, ge=1, description="pairs per optimizer step")
    micro_batch: int = Field(default=4, ge=1, description="pairs per forward pass; divides batch")
    max_length: int = Field(
        default=1024, ge=8, description="tokens of prompt and answer; dpo cuts the end, reward leaves out"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    lora_rank: int = Field(
        default=0,
        ge=0,
        description="train LoRA adapters of this rank and merge them, or leave them beside packed ones; 0 trains all "
        "weights",
    )
    holdout: float = Field(
        default=0.05, ge=0, lt=1, description="share of the pairs kept for measuring, not trained on"
    )
    columns: str | None = Field(
        default=None, description="names of the file's columns, as prompt=THEIRS,chosen=THEIRS,rejected=THEIRS"
    )
    on_bad_pair: Literal["refuse", "drop"] = Field(
        default="refuse", description="empty or identical pairs: refuse or drop"
    )
    save_every: int = Field(
        default=50,
        ge=1,
        description="steps between states that an interrupted run continues from",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Align:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch is {self.batch}, which micro_batch {self.micro_batch} does not divide")
        if self.tau0 > self.tau_max:
            raise ValueError(f"tau0 is {self.tau0:g}, above tau_max {self.tau_max:g}")
        if self.reference is not None and self.makes_reward:
            raise ValueError(f"loss {self.loss!r} trains a reward model, which has no reference")
        if self.loss in SMOOTHED and not self.label_smoothing:
            raise ValueError(f"loss {self.loss!r} is told how likely a label is wrong by label_smoothing, which is 0")
        if self.label_smoothing and self.loss not in SMOOTHED and (self.loss in STOCK_LOSSES or self.loss == "kto"):
            raise ValueError(f"loss {self.loss!r} does not read label_smoothing; cdpo and robust do")
        return self

    @property
    def takes_weights(self) -> frozenset[Weights]:
        return frozenset(Weights) if self.lora_rank and not self.makes_reward else self.accepts_weights

    @property
    def makes_reward(self) -> bool:
        return self.loss.endswith("reward")

    @property
    def pair_loss(self) -> str:
        """The name in `burnish.align.losses`: "aps-quadratic-dpo" -> "aps_quadratic", "dpo" and "cdpo" -> "bt"."""
        head, _, last = self.loss.rpartition("-")
        if last not in ("dpo", "reward"):
            return "bt"
        return head.replace("-", "_") or "bt"

    @property
    def methods(self) -> list[str]:
        """What is trained and by which loss, with sources, as a model card says it."""
        return [source for part, source in SOURCES.items() if part in (self.loss, *self.loss.split("-"))]

    @property
    def learning_rate(self) -> float:
        if self.lr is not None:
            return self.lr
        if self.makes_reward:
            return 1e-4
        return 5e-5 if self.lora_rank else 1e-6

    def plan(self, before: Plan) -> Plan:
        """The same model, or the same backbone with a reward head; memory of a training step without activations.

        A file of pairs is read and checked, so that a bad row stops a recipe before its first node and not in this one.
        """
        from burnish.data.attempt import check_length

        if self.data is None:
            raise SettingsError("no preference data is named", where="data", fix="give data: FILE, or --data FILE")
        file = Path(self.data).expanduser()
        if file.suffix and file.is_file():
            from burnish.data.preferences import read_pairs

            read_pairs(file, on_bad_pair=self.on_bad_pair, columns=self.columns)
        default = type(self).model_fields["max_length"].default
        check_length(self.max_length, default, before.config, name="max_length")
        after = before
        if before.weights is Weights.PACKED:
            from burnish.core.checkpoint.packed_integers import check_whole_numbers

            if found := packing(before.config):
                check_whole_numbers(found, purpose="adapters are trained beside")
            after = before.with_(adapter=True, notes=(*before.notes, "weights stay; an adapter comes beside them"))
        if self.makes_reward:
            from burnish.core.checkpoint import plan_config

            labels = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
            config = type(before.config).from_dict(before.config.to_dict() | labels)
            bytes_each = max(1, round(before.num_bytes / before.num_parameters))
            after = plan_config(config, kind=Kind.SEQUENCE_CLASSIFIER, bytes_per_parameter=bytes_each)
        trained = ADAM_BYTES * after.num_parameters if self.lora_rank == 0 else 5 * after.num_parameters
        reference = 4 * before.num_parameters if self.reference is not None else 0
        return after.with_(peak_memory_bytes=trained + reference)

    def preflight(self, start: Model, before: Plan) -> None:
        """Tokenises the first pairs of a file, conversations through the chat template; matches the adapters."""
        from burnish.data.preferences import try_pairs

        if self.data is not None and Path(self.data).expanduser().exists():
            try_pairs(self.data, start.tokenizer, on_bad_pair=self.on_bad_pair, columns=self.columns)
        if self.lora_rank:
            from burnish.core.checkpoint import without_memory
            from burnish.train.lora import check_adapters

            check_adapters(without_memory(before.config, before.kind), "all-linear", self.lora_rank)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.align.run import run

        return run(self, model, ctx)


class Grpo(Stage):
    """Train by GRPO on problems whose answers are checked; Short-ARC makes answers shorter while accuracy holds."""

    name: ClassVar[str] = "grpo"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "GRPO on verifiable problems, with length control"
    changeable: ClassVar[frozenset[str] | None] = frozenset()
    memory_settings: ClassVar[str] = "micro_batch, prompts or max_new_tokens"

    env: str = Field(
        default="chain",
        description="what is asked: chain, table, reasoning_gym:TASK, or calculator or python, sums in turns with that "
        "tool",
    )
    kind: Chains = Field(default=Chains(), description="chain: what chains are made of, as in `burnish data chain`")
    tables: Tables = Field(default=Tables(), description="table: what tables are made of, as in `burnish data table`")
    problems: int = Field(default=1000, ge=2, description="different problems to train on; they are gone through again")
    held_out: int = Field(default=320, ge=0, description="other problems, to measure on before and after; 0 for none")
    reward: Literal["correct"] = Field(default="correct", description="what an answer earns: 1 where it is right")
    format_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the reward that is for an answer of a form that can be graded, right or wrong",
    )
    shaping: str = Field(
        default="none", description="rule that looks at length: none, short_arc, or a published one such as kimi"
    )
    shaping_options: dict[str, Any] = Field(default={}, description="settings of a published rule, as {weight: 0.4}")
    floor: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="least sampled accuracy of the start at every difficulty; below, no RL",
        json_schema_extra=VOLATILE,
    )
    redundant: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="least share of redundant tokens that a length rule is begun with",
        json_schema_extra=VOLATILE,
    )

    acc_target: float | None = Field(
        default=None, ge=0, le=1, description="short_arc: accuracy to hold; that of the first updates if not given"
    )
    target_updates: int = Field(default=5, ge=1, description="short_arc: updates whose accuracy that is")
    tolerance: float = Field(default=0.01, gt=0, description="short_arc: what accuracy may lose")
    alpha: float = Field(default=0.5, ge=0, lt=1, description="short_arc: what a long answer loses, at the start")
    alpha_max: float = Field(default=0.9, ge=0, lt=1, description="short_arc: and at most")
    eta: float = Field(default=0.02, ge=0, description="short_arc: largest step of alpha upwards")
    p_min: float = Field(default=0.5, ge=0, lt=1, description="short_arc: solve rate from which there is pressure")
    token_scale: float | None = Field(
        default=None, gt=0, description="short_arc: tokens over which the reward falls; relative if not given"
    )

    updates: int = Field(default=60, ge=1, description="optimizer steps")
    prompts: int = Field(default=12, ge=1, description="problems per step")
    rollouts: int = Field(default=8, ge=2, description="answers to each")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="answers per forward pass of a process on the mean, fewer where they are long; all of its own if "
        "not given",
    )
    iterations: int = Field(default=1, ge=1, description="updates on the same answers, drawn before the first of them")
    refill: int = Field(
        default=0,
        ge=0,
        description="dynamic sampling: times that other problems are drawn in the places of those whose answers all "
        "earned the same",
    )
    replay: int = Field(
        default=0,
        ge=0,
        description="groups of earlier updates kept in each process, to learn from where a fresh one has no variance",
    )
    max_staleness: int = Field(default=4, ge=1, description="replay: updates since a group was drawn, at most")
    reuse: int = Field(default=1, ge=1, description="replay: how often a group may be learned from again")
    staleness: int = Field(
        default=0,
        ge=0,
        description="updates that the weights which draw answers are behind those that learn from them, always",
    )
    asynchronous: bool = Field(
        default=False,
        description="draw in a process of its own, which holds the model too, while updates are computed; without, in "
        "turn with them, and the same run comes out",
        json_schema_extra=VOLATILE,
    )
    correction: Literal["ratio", "truncated", "icepop"] = Field(
        default="ratio",
        description="what allows for other weights having drawn: the loss's own ratio, which its clip is around; or a "
        "factor beside it, held below a bound, or that leaves out tokens beyond",
    )
    correction_bound: float = Field(
        default=2.0, gt=1, description="truncated, icepop: largest ratio of the learner to the weights that drew"
    )
    packing: bool = Field(
        default=False,
        description="forward answers one after the other in full lines that keep them apart, not side by side",
    )
    share_prefixes: bool = Field(
        default=False,
        description="packing: forward what the answers to a problem begin with in common once, under a mask of all "
        "pairs of a line's tokens",
    )
    max_new_tokens: int = Field(
        default=256, ge=1, description="of an answer; of an episode in turns, what tools answer included"
    )
    max_turns: int = Field(default=4, ge=1, description="calculator, python: turns of an episode")
    credit: Literal["trajectory", "stepwise", "mixed"] = Field(
        default="trajectory",
        description="calculator, python: advantages of the whole episode, of each turn by its return, or their sum",
    )
    temperature: float = Field(default=1.0, gt=0, description="of sampling, in training and where sampled is measured")
    policy_loss: Literal["clip", "dual", "cispo", "importance", "gspo"] = Field(
        default="clip", description="loss of a token"
    )
    normaliser: Literal["token", "constant"] = Field(
        default="token", description="what a step's loss is divided by: its tokens, or answers times max_new_tokens"
    )
    divide_by_deviation: bool = Field(default=False, description="divide advantages by the group's deviation")
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["linear", "constant"] = Field(default="linear", description="learning rate over time")
    max_grad_norm: float = Field(default=0.1, gt=0, description="gradients are scaled down to this norm")
    save_every: int = Field(
        default=10,
        ge=1,
        description="steps between states that an interrupted run continues from",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Grpo:
        answers = self.prompts * self.rollouts
        if self.micro_batch is not None and answers % self.micro_batch:
            raise ValueError(f"a step has {answers} answers, which micro_batch {self.micro_batch} does not divide")
        if self.alpha > self.alpha_max:
            raise ValueError(f"alpha is {self.alpha:g}, above alpha_max {self.alpha_max:g}")
        from burnish.align.tools import TOOLS

        if self.credit != "trajectory" and self.env not in TOOLS:
            raise ValueError(
                f"credit is {self.credit}, but {self.env} has one turn; {' and '.join(TOOLS)} have several"
            )
        for owner, counts, names in (
            ("env chain", self.env == "chain", ("kind",)),
            ("env table", self.env == "table", ("tables",)),
            (f"env {' or '.join(TOOLS)}", self.env in TOOLS, ("max_turns",)),
            ("replay", self.replay > 0, ("max_staleness", "reuse")),
            ("packing", self.packing, ("share_prefixes",)),
            ("correction truncated or icepop", self.correction != "ratio", ("correction_bound",)),
            ("shaping short_arc", self.shaping == "short_arc", OF_SHORT_ARC),
        ):
            for name in () if counts else names:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} counts for nothing without {owner}")
        oldest = self.staleness + self.iterations
        if self.replay and self.max_staleness < oldest:
            behind = f" and staleness {self.staleness}" if self.staleness else ""
            raise ValueError(
                f"max_staleness is {self.max_staleness}, but with {self.iterations} iterations{behind} the groups of "
                f"the draw before are {oldest} updates old, so that none would be replayed"
            )
        if self.staleness % self.iterations:
            raise ValueError(
                f"staleness is {self.staleness}, no multiple of the {self.iterations} updates that share a draw"
            )
        if self.refill and (self.staleness or self.asynchronous):
            raise ValueError("refill draws when answers have been judged, and staleness or asynchronous before")
        if self.format_share and self.credit != "trajectory":
            raise ValueError(f"format_share is of the reward of a whole answer, which credit {self.credit} has not")
        if self.credit == "stepwise" and self.divide_by_deviation:
            raise ValueError("divide_by_deviation is for advantages of whole episodes, which credit stepwise has not")
        if self.problems < self.prompts:
            raise ValueError(f"problems is {self.problems}, fewer than the {self.prompts} prompts of a step")
        return self

    @property
    def methods(self) -> list[str]:
        """With sources, as a model card says it."""
        found = ["GRPO: DeepSeekMath, 2024, arXiv:2402.03300, centred as in Dr. GRPO, 2025, arXiv:2503.20783"]
        if self.refill:
            found.append("dynamic sampling: DAPO, 2025, arXiv:2503.14476")
        if self.correction == "icepop":
            found.append("IcePop: Every Step Evolves, 2025, arXiv:2510.18855")
        if self.shaping == "short_arc":
            found.append("Short-ARC: adaptive reasoning control, after a title submitted for ICLR 2026")
        elif self.shaping != "none":
            from burnish.align.maths.length_rules import RULES

            found.append(f"length rule {self.shaping}: {RULES[self.shaping].source}")
        return found

    def plan(self, before: Plan) -> Plan:
        """The same model; refuses an environment or a rule that is not there before anything runs."""
        from burnish.align.envs import check_environment
        from burnish.align.shaping import length_rule
        from burnish.data.attempt import check_length

        check_environment(self.env)
        default = type(self).model_fields["max_new_tokens"].default
        check_length(self.max_new_tokens, default, before.config, name="max_new_tokens")
        length_rule(self.shaping, self.shaping_options)
        # who draws has the model, and weights of every version that may still have to draw
        ahead = 4 * (self.staleness + 2) if self.asynchronous else 0
        return before.with_(peak_memory_bytes=(ADAM_BYTES + ahead) * before.num_parameters)

    def preflight(self, start: Model, before: Plan) -> None:
        """Writes out a question by the chat template, and a call of each tool that there is."""
        from burnish.align.tools import TOOLS
        from burnish.data.chat import check_questions

        check_questions(start.tokenizer)
        if self.env in TOOLS:
            from burnish.align.call_format import CallFormat

            CallFormat.of(start.tokenizer, [TOOLS[self.env]])
            TOOLS[self.env].ready()

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.align.run import run_grpo

        return run_grpo(self, model, ctx)
