"""Phases of GRPO: what their environments ask, apart from all that is measured, and one stretch of training on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from burnish.align.envs import Environment, MixedEnv
from burnish.align.grpo_run import held_out, run, to_train_on
from burnish.align.held_out import answers
from burnish.core.statistics import exact_share
from burnish.curriculum.held_out import shown
from burnish.curriculum.mixing import places, shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.align.stage import Grpo
    from burnish.core.checkpoint import Model
    from burnish.core.stage import Context
    from burnish.curriculum.phase import Phase
    from burnish.curriculum.stage import Curriculum
    from burnish.train.watch import Watch


@dataclass(frozen=True)
class AskedEnvironment:
    """The held-out questions of a phase with an environment."""

    name: str
    settings: Grpo
    env: Environment

    def measure(self, module: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """`value`, `low` and `high` of the solve rate of greedy answers."""
        found = answers(
            module,  # pyright: ignore[reportArgumentType]  # a language model
            tokenizer,
            self.env,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=0.0,
            max_turns=self.settings.max_turns,
        )
        share = exact_share(int(found.correct.sum()), len(found.correct))
        return {"value": share.value, "low": share.low, "high": share.high}


class Environments:
    """Those of all phases that have one.

    Args:
        settings: of the curriculum.
        trained_on: questions that phases of data train on, which no environment is measured on.
        measured_on: and those that they are measured on, which none trains on.

    Attributes:
        asked: {place of the phase: what it is measured on}.
        trained: {place of the phase: what it trains on}, without any question that any phase is measured on.
        questions: {phase: what its environment measures on}, as drawn.
    """

    def __init__(self, settings: Curriculum, trained_on: set[str], measured_on: set[str]) -> None:
        self.settings = settings
        phases = {place: phase for place, phase in enumerate(settings.phases) if phase.env is not None}
        grpo = {place: settings.rewarding(phase) for place, phase in phases.items()}
        found = {place: held_out(one, trained_on) for place, one in grpo.items()}
        measured = {place: env for place, env in found.items() if env is not None}
        self.questions = {phases[place].name: env.questions for place, env in measured.items()}
        taken = measured_on.union(*self.questions.values())
        self.trained = {place: _as_shown(phases[place], to_train_on(one, taken)) for place, one in grpo.items()}
        self.asked = {
            place: AskedEnvironment(phases[place].name, grpo[place], _as_shown(phases[place], env))
            for place, env in measured.items()
        }

    def train(self, place: int, steps: int, model: Model, ctx: Context, watch: Watch, *, mixed: bool) -> Model:
        """The model after at most so many updates on a phase, with questions of earlier ones where `mixed`."""
        phase, env = self.settings.phases[place], self.trained[place]
        if mixed:
            count = shares(len(env.problems), place, self.settings.share)
            others = [
                (self.trained[one], places(len(self.trained[one].problems), count, self.settings.seed + one))
                for one in range(place)
            ]
            env = MixedEnv(env, others)
        return run(self.settings.rewarding(phase, steps, held_out=0), model, ctx, env=env, watch=watch)

    def close(self) -> None:
        for env in (*self.trained.values(), *(one.env for one in self.asked.values())):
            env.close()


def _as_shown(phase: Phase, env: Environment) -> Environment:
    """The environment with its questions as the phase shows them."""
    env.problems = [shown(phase, problem, where=f"phase {phase.name!r}, env") for problem in env.problems]
    return env
