"""The stage `curriculum`: phases of training, what ends each, and a guard over what earlier ones have taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from burnish.core.errors import BurnishError, SettingsError, located
from burnish.core.kinds import Plan
from burnish.core.stage import VOLATILE, Context, Stage
from burnish.curriculum.phase import Phase, Until
from burnish.verify.registry import known

if TYPE_CHECKING:
    from burnish.align.stage import Grpo
    from burnish.core.checkpoint import Model
    from burnish.train.stage import Train

OWN = (
    "data",
    "validation",
    "validation_rows",
    "holdout",
    "steps",
    "epochs",
    "seed",
    "device",
    "keep_best",
    "eval_every",
)
"""Settings of a training that a phase decides itself."""
OWN_GRPO = ("env", "updates", "held_out", "floor", "redundant", "seed", "device")
"""And of GRPO."""
OTHER = ("bound_data", "bound_level", "bound_rise", "sequence_parallel", "report_to", "keep_adapter")
"""Settings of a training that are for one on its own."""


class Curriculum(Stage):
    """Train in phases, measure the held-out rows of all of them on the way, and guard what was learned before."""

    name: ClassVar[str] = "curriculum"
    version: ClassVar[int] = 3
    summary: ClassVar[str] = "phases of training with rules that end them, and a guard against forgetting"
    memory_settings: ClassVar[str] = "train.micro_batch or train.context"

    phases: list[Phase] = Field(default=[], description="in their order; must be given")
    verifier: Annotated[str, AfterValidator(known)] | None = Field(
        default=None, description="what says whether an answer is right; without it values are losses"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="most tokens of an answer to a held-out problem")
    held_out_rows: int = Field(default=200, ge=2, description="most rows of each held-out set, spread over it")
    every: int = Field(default=20, ge=1, description="steps between two looks at the own and all earlier held-out sets")
    guard: Literal["mix", "stop", "none"] = Field(
        default="mix",
        description="where an earlier phase is being forgotten: mix its rows in, stop with the weights of before this "
        "phase, or go on",
    )
    fall: float = Field(default=0.05, gt=0, description="how far below its best an earlier phase may be")
    share: float = Field(default=0.25, gt=0, lt=1, description="share of rows of earlier phases once they are mixed in")
    reset_optimizer: bool = Field(default=True, description="begin every phase with an optimizer without a past")
    train: dict[str, Any] = Field(
        default={},
        description="settings of `train` for all phases: context, batch, lr; the schedule is constant if none",
    )
    grpo: dict[str, Any] = Field(
        default={},
        description="settings of `align grpo` for all phases with an environment; the schedule is constant if none",
    )
    batch_size: int = Field(default=64, ge=1, description="answers at a time", json_schema_extra=VOLATILE)

    @classmethod
    def parse(cls, settings: dict[str, Any], *, where: str) -> Self:
        """Phases as the recipe has them become settings first, so that a slip in one is told with its name."""
        given = settings.get("phases")
        if isinstance(given, list):
            settings = settings | {"phases": [_phase(one, number, where) for number, one in enumerate(given)]}
        return super().parse(settings, where=where)

    @model_validator(mode="after")
    def _fits_together(self) -> Curriculum:
        names = [phase.name for phase in self.phases]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two phases are called {twice!r}; give every phase its own name")
        rewarded = [phase.env is not None for phase in self.phases]
        for phase in self.phases:
            if said := _wrong(phase, has_values=self.verifier is not None):
                raise ValueError(f"phase {phase.name!r} {said}")
        if any(rewarded) and not all(rewarded):
            if self.verifier is None:
                raise ValueError("phases of data have solve rates beside those of environments only with a verifier")
            if not self.reset_optimizer:
                raise ValueError("optimizers of data and of GRPO do not go on from each other; set reset_optimizer")
            if self.guard == "mix":
                raise ValueError("guard mix has no common rows of data and environments; use stop or none")
        if self.guard == "mix" and len({_tool(phase.env) for phase in self.phases}) > 1:
            raise ValueError("guard mix cannot mix episodes of different tools, or of none; use stop or none")
        return self

    def training(self, phase: Phase, steps: int | None = None) -> Train:
        """The settings of the training of a phase.

        Raises:
            SettingsError: one that does not exist, that a phase decides itself, or that fits nothing.
        """
        from burnish.train.stage import Train

        given, where = {"schedule": "constant"} | self.train | phase.train, f"phase {phase.name!r}, train"
        if taken := next((name for name in given if name in (*OWN, *OTHER)), None):
            fix = "say it of the phase" if taken in ("data", "steps") else "leave it out"
            raise SettingsError(f"{taken} is no setting that a phase gives to its training", where=where, fix=fix)
        own = {"steps": steps or phase.steps, "seed": self.seed, "device": self.device, "data": phase.data}
        return Train.parse(given | own, where=where)

    def rewarding(self, phase: Phase, steps: int | None = None, held_out: int | None = None) -> Grpo:
        """The settings of the GRPO of a phase.

        Args:
            phase: with an environment.
            steps: of this stretch; those of the phase if None.
            held_out: problems to measure on; those of the curriculum if None.

        Raises:
            SettingsError: see `training`.
        """
        from burnish.align.stage import Grpo

        common = {"schedule": "constant", "max_new_tokens": self.max_new_tokens}
        given, where = common | self.grpo | phase.grpo, f"phase {phase.name!r}, grpo"
        if taken := next((name for name in given if name in OWN_GRPO), None):
            fix = "say it of the phase" if taken == "env" else "leave it out"
            raise SettingsError(f"{taken} is no setting that a phase gives to its GRPO", where=where, fix=fix)
        own = {"env": phase.env, "updates": steps or phase.steps, "seed": self.seed, "device": self.device}
        return Grpo.parse(given | own | {"held_out": self.held_out_rows if held_out is None else held_out}, where=where)

    def plan(self, before: Plan) -> Plan:
        """The same model, trained so long; raises where a phase is incomplete or its training cannot be."""
        if not self.phases:
            raise SettingsError("no phases are named", where="phases", fix="give phases: [{name, data, held_out}, ...]")
        plans = []
        for phase in self.phases:
            for name in ("data", "held_out") if phase.env is None else ():
                if getattr(phase, name) is None:
                    fix = f"give {name}: FILE, or env: ENVIRONMENT for GRPO"
                    raise SettingsError(f"has no {name}", where=f"phase {phase.name!r}", fix=fix)
            how = self.training(phase) if phase.env is None else self.rewarding(phase)
            try:
                plans.append(how.plan(before))
            except BurnishError as error:
                raise located(error, f"phase {phase.name!r}") from None
        known = [plan.seconds for plan in plans if plan.seconds is not None]
        return before.with_(
            peak_memory_bytes=max(plan.peak_memory_bytes for plan in plans),
            seconds=sum(known) if known else None,
        )

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.curriculum.held_out import check_phases

        check_phases(self, {place: value for place, _, value in self.named()}, start, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.curriculum.run import run

        return run(self, model, ctx)


def _wrong(phase: Phase, *, has_values: bool) -> str:
    """What does not fit together in a phase, or nothing."""
    if phase.env is None:
        if phase.grpo:
            return "has settings of GRPO but no env"
        return "" if has_values or phase.until.solve_rate is None else "ends by a solve rate, which needs a verifier"
    if phase.data is not None or phase.held_out is not None:
        return "has an env, which brings its own data and held_out"
    if phase.train:
        return "has an env, whose settings are those of grpo and not of train"
    return "" if phase.until.loss is None else "has an env, where no loss could end it; use solve_rate or plateau"


def _tool(env: str | None) -> str:
    """The tool of an environment's episodes, or nothing where an answer is one text."""
    if env is None:
        return ""
    from burnish.align.tools import TOOLS

    return env if env in TOOLS else ""


def _phase(given: Any, number: int, where: str) -> Any:
    if not isinstance(given, dict):
        return given
    name = f"{where}, phase {given.get('name', number + 1)!r}"
    until = given.get("until")
    if isinstance(until, dict):
        given = given | {"until": Until.parse(until, where=f"{name}, until")}
    return Phase.parse(given, where=name)
