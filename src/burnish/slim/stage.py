"""`Slim`: a mixture made smaller, by narrower or fewer experts or pieces of them, or any model, by fewer layers.

    slim = burnish.Slim(target="20%")(model, calibration=texts)

With `rounds` it stands for several nodes of a recipe: cut, distil, cut, distil (`burnish.slim.rounds`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan
from burnish.core.settings import CheckpointRef, DataRef
from burnish.core.stage import VOLATILE, Context, Stage

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.recipe import Node

NEURON_SCORES = ("fisher", "taylor", "taylor_total", "energy", "act_l2", "wanda", "magnitude", "random")
EXPERT_SCORES = ("reap", "frequency", "magnitude", "random")
LAYER_SCORES = ("influence", "divergence", "random")
PIECE_SCORES = ("energy", "fisher", "taylor", "taylor_total", "random")
"""Those of neurons that are comparable from expert to expert, and the control."""
SCORES_OF = {"narrow": NEURON_SCORES, "split": PIECE_SCORES, "drop": EXPERT_SCORES, "best": ()} | {
    "depth": LAYER_SCORES
}
DEFAULT_SCORES = {"narrow": "fisher", "split": "energy", "drop": "reap", "best": "energy", "depth": "influence"}


class Slim(Stage):
    """Cuts a mixture of experts, or the layers of a dense model, to a target size, before any recovery."""

    name: ClassVar[str] = "slim"
    version: ClassVar[int] = 4
    summary: ClassVar[str] = "narrow, split or drop the experts of a mixture (SlimMoE, REAP), or leave out layers"
    memory_settings: ClassVar[str] = "tokens or length"

    method: Literal["narrow", "split", "drop", "best", "depth"] = Field(
        default="narrow",
        description="narrow: make all experts narrower (SlimMoE); split: make every expert several pieces and drop the "
        "worst pieces of a layer; drop: remove whole experts; where one alone would miss a target by over 2 %, a "
        "little of the other too; best: make each of these, and fewer and wider experts, and keep the nearest to the "
        "model; depth: remove whole layers, of dense models as well",
    )
    target: str | None = Field(
        default=None,
        description="size to reach: a share of the parameters (20%), their number (7.65B), or bytes in bfloat16 (24GB)",
    )
    width: int | None = Field(default=None, ge=1, description="width of each expert, instead of a target")
    num_experts: int | None = Field(
        default=None, ge=1, description="experts (split: pieces of them) to keep per layer, instead of a target"
    )
    pieces: int = Field(default=2, ge=2, description="pieces that method split makes of every expert")
    num_experts_per_tok: int | None = Field(
        default=None,
        ge=1,
        description="pieces that a token is sent to, by method split; null: half as much again, of those that are "
        "kept, as it was sent to of all experts",
    )
    num_layers: int | None = Field(
        default=None, ge=1, description="decoder layers to keep by method depth, instead of a target"
    )
    num_key_value_heads: int | None = Field(
        default=None, ge=1, description="attention groups to keep, each with its query heads; null keeps all"
    )
    multiple: int = Field(
        default=64, ge=8, multiple_of=8, description="a width is a multiple of this, and this of 8 (rows of 16 bytes)"
    )
    tp: int = Field(
        default=1, ge=1, description="devices that will share each expert: each gets a multiple of `multiple`"
    )
    score: str | None = Field(
        default=None,
        description=f"what is kept: {', '.join(NEURON_SCORES)} (narrow, default fisher); "
        f"{', '.join(EXPERT_SCORES)} (drop, default reap); {', '.join(LAYER_SCORES)} (depth, default influence)",
    )
    labels: Literal["sampled", "text", "teacher"] = Field(
        default="sampled",
        description="loss behind first-order scores: cross-entropy on labels drawn from the model or on the text, or "
        "the divergence from a teacher that is another model",
    )
    teacher: CheckpointRef | None = Field(default=None, description="the other model, for labels: teacher")
    refit: Literal["none", "alone", "behind"] | None = Field(
        default=None,
        description="refit down_proj of experts by least squares, alone: each on its own, behind layers as they were; "
        "behind: all of a layer together, behind layers that have been cut; null: behind by method split, else none",
    )
    calibration: DataRef = Field(default="wikitext2-valid", description="text to score on")
    tokens: int = Field(default=65_536, ge=1, description="calibration tokens")
    length: int = Field(default=256, ge=8, description="tokens per calibration window")
    allow_unseen: bool = Field(
        default=False, description="rank neurons of experts that saw no calibration token by the size of their weights"
    )
    stream: bool | None = Field(
        default=None,
        description="narrow, drop: text goes through a decoder layer at a time, from disk; null: where the network "
        "would fill half of what is free",
        json_schema_extra=VOLATILE,
    )
    rounds: int | None = Field(
        default=None,
        ge=1,
        description="cut and distil in turn, so many times, with the first model as the teacher; not given: cut only",
    )
    ratios: list[float] | None = Field(
        default=None,
        description="share of the width (or of the experts) that each cut but the last leaves; equal ones if not given",
    )
    data: DataRef | None = Field(default=None, description="texts or chats to distil on, with rounds")
    budgets: list[int] | None = Field(
        default=None, description="tokens to distil on in each round, or one number for all; else one pass over data"
    )
    recovery: dict[str, Any] = Field(default={}, description="further settings of the distill after each cut")

    @model_validator(mode="after")
    def _fits_together(self) -> Slim:
        known = SCORES_OF[self.method]
        if self.score is not None and self.score not in known:
            raise ValueError(
                f"score is {self.score!r}, but to {self.method} it is one of {', '.join(known)}"
                if known
                else "score does not go with method: best, which scores neurons by energy and experts by reap"
            )
        sizes = {"target": self.target, "width": self.width, "num_experts": self.num_experts}
        sizes["num_layers"] = self.num_layers
        given = [name for name, value in sizes.items() if value is not None]
        if self.target is not None and len(given) > 1:
            raise ValueError(f"{' and '.join(given)} all say how small; give the target or the others")
        if self.method == "depth":
            self._check_depth()
        elif self.num_layers is not None:
            raise ValueError("num_layers is a setting of method: depth")
        wrong, other = ("num_experts", "drop") if self.method == "narrow" else ("width", "narrow")
        if given == [wrong]:
            raise ValueError(f"{wrong} is a setting of method: {other}")
        if not given and self.num_key_value_heads is None:
            raise ValueError("nothing says how small: give target, width or num_experts, or num_key_value_heads")
        if self.method == "drop" and self.refit_name != "none":
            raise ValueError("refit repairs narrowed experts, and method: drop narrows none")
        self._check_pieces()
        self._check_best()
        if self.labels == "teacher" and self.teacher is None:
            raise ValueError(
                "labels: teacher needs a teacher that is another model: the divergence of a model from itself has no "
                "gradient, so every score would be rounding noise (use labels: sampled for the first cut)"
            )
        self._check_rounds()
        if self.stream and self.not_by_layer:
            raise ValueError(f"stream is true, but {self.not_by_layer}")
        return self

    def _check_depth(self) -> None:
        names = ("width", "num_experts", "num_key_value_heads", "refit", "teacher", "rounds")
        if given := [name for name in names if getattr(self, name)]:
            raise ValueError(f"{given[0]} does not go with method: depth, which leaves layers out and the others alone")

    def _check_best(self) -> None:
        if self.method == "best":
            if self.target is None:
                raise ValueError("method: best compares forms of one size; give a target")
            if given := [name for name in ("refit", "teacher", "rounds") if getattr(self, name)]:
                raise ValueError(f"{given[0]} does not go with method: best, which compares cuts that nothing trained")

    def _check_pieces(self) -> None:
        if self.method == "split" and self.refit_name == "alone":
            raise ValueError("refit: alone repairs experts that lost neurons, and pieces lose none; use refit: behind")
        for name in ("pieces", "num_experts_per_tok"):
            if self.method != "split" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of method: split")

    def _check_rounds(self) -> None:
        if self.rounds is None:
            given = [name for name in ("ratios", "data", "budgets", "recovery") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} says how to distil between cuts, but there are no rounds; give rounds: 1")
            return
        if self.data is None:
            raise ValueError("each round distils after its cut, and no data is named; give data: FILE, or --data FILE")
        if self.method == "split" and self.rounds > 1:
            raise ValueError("method: split makes pieces of experts once; give rounds: 1")
        if self.teacher is not None:
            raise ValueError("the teacher of every round is the first model, so there is no teacher to name")
        if self.ratios is not None and len(self.ratios) != self.rounds - 1:
            raise ValueError(f"ratios has {len(self.ratios)} entries, but {self.rounds} rounds have {self.rounds - 1}")
        if self.ratios is not None and not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"ratios is {self.ratios}, but each is a share between 0 and 1")
        if self.budgets is not None and len(self.budgets) not in (1, self.rounds):
            raise ValueError(f"budgets has {len(self.budgets)} entries, but there are {self.rounds} rounds")
        if self.budgets is not None and min(self.budgets) < 1:
            raise ValueError(f"budgets is {self.budgets}, but each is a number of tokens")

    @property
    def score_name(self) -> str:
        """The score, with the method's default."""
        return self.score or DEFAULT_SCORES[self.method]

    @property
    def refit_name(self) -> str:
        """The refit, with the method's default."""
        return self.refit or ("behind" if self.method in ("split", "best") else "none")

    @property
    def not_by_layer(self) -> str:
        """Why text cannot go through a layer at a time, "" where it can."""
        if self.method == "depth":
            return "method depth compares whole networks"
        if self.method == "best":
            return "method best compares whole networks"
        if self.refit_name == "behind":
            return "refit: behind takes text through two networks"
        return "labels: teacher compares two whole networks" if self.labels == "teacher" else ""

    @property
    def by_gradients(self) -> bool:
        return self.method in ("narrow", "split") and self.score_name in ("fisher", "taylor", "taylor_total")

    @property
    def reads_text(self) -> bool:
        return (
            self.method in ("split", "best")
            or self.refit_name != "none"
            or self.score_name not in ("random", "magnitude")
        )

    def expand(self, node: Node, before: Callable[[], Plan]) -> tuple[Node, ...]:
        if self.rounds is None:
            return (node,)
        from burnish.slim.rounds import expand

        return expand(self, node, before())

    def plan(self, before: Plan) -> Plan:
        from burnish.slim.plan import plan

        if self.rounds is not None:
            raise SettingsError(
                "rounds stands for several steps of a recipe, and here is only one",
                where="rounds",
                fix="use burnish slim or a recipe; in Python chain Slim and Distill",
            )
        return plan(self, before)

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.slim.plan import preflight

        preflight(self, start, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.slim.run import run

        return run(self, model, ctx)
