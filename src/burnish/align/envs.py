"""Environments: problems with a difficulty each, and whether an answer is right.

    env = ChainEnv(size=2000, seed=1)
    env.rows[0]["prompt"], env.reward(completions=["a3+4=7;#7"], row=[0])
    env.apart_from(other)           # refuses questions that occur in both

Rows are those of a TRL data set; a reward is an instance and not a closure, so that it can be sent to other processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.data.chain import Chains, chain_rows
from burnish.data.gym import gym_rows
from burnish.verify import Verifier, verifier
from burnish.verify.adapter import CORRECT


class Environment(ABC):
    """Problems of one kind.

    Attributes:
        name: how the command line says it.
        problems: rows for a verifier.
        grader: the verifier.
    """

    name: str
    problems: list[dict[str, Any]]
    grader: Verifier

    @property
    def questions(self) -> set[str]:
        return {str(problem["question"]) for problem in self.problems}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For a TRL trainer: the prompt as a conversation, and the problem's number, which the reward is told."""
        return [
            {"prompt": [{"role": "user", "content": self.grader.prompt(problem)}], "row": number}
            for number, problem in enumerate(self.problems)
        ]

    @property
    def reward(self) -> Correct:
        """1 for a correct answer, 0 for another."""
        return Correct(self)

    @abstractmethod
    def bin(self, number: int) -> str:
        """How hard a problem is, as a table's row names it."""

    def shortest(self, number: int) -> str | None:
        """The shortest answer that shows its steps, where that is known."""
        return None

    def score(self, text: str, number: int) -> float:
        """1 where the answer is correct."""
        return float(self.grader.score(text, self.problems[number]) >= CORRECT)

    @property
    def failures(self) -> dict[str, int]:
        """Answers whose judging failed, by reason; they earned nothing."""
        return dict(getattr(self.grader, "failures", {}))

    def apart_from(self, other: Environment) -> None:
        """Refuses a question that both have; another seed alone does not keep small generators apart.

        Raises:
            DataError: shared questions.
        """
        shared = self.questions & other.questions
        if shared:
            raise DataError(
                f"{len(shared):,} of {len(other.questions):,} held-out questions are trained on, such as "
                f"{min(shared)!r}",
                where=self.name,
                fix="draw one set apart from the other",
            )

    def close(self) -> None:
        self.grader.close()


@dataclass(frozen=True)
class Correct:
    """A reward as TRL calls it. `__name__` is how its metrics are called."""

    env: Environment
    __name__: ClassVar[str] = "correct"

    def __call__(self, completions: Sequence[Any], row: Sequence[int], **_: object) -> list[float]:
        return [self.env.score(text_of(one), number) for one, number in zip(completions, row, strict=True)]


class ChainEnv(Environment):
    """Verifiable chains of `burnish data chain`; as hard as they have steps.

    Args:
        size: how many problems.
        seed: of all draws.
        kind: what they are made of.
        apart_from: questions that must not occur.
        each: so many of every number of steps, one after the other, instead of drawn.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        kind: Chains | None = None,
        *,
        apart_from: set[str] | frozenset[str] = frozenset(),
        each: bool = False,
    ) -> None:
        kind = kind or Chains()
        self.name, self.grader, self.kind = "chain", verifier("chain"), kind
        if not each:
            self.problems = list(chain_rows(kind, size, seed=seed, apart_from=apart_from, distinct=bool(apart_from)))
            return
        low, high = kind.steps
        share = -(-size // (high - low + 1))
        self.problems = []
        for steps in range(low, high + 1):
            one = Chains(**{**vars(kind), "steps": (steps, steps)})
            self.problems += chain_rows(one, share, seed=seed, apart_from=apart_from)

    def bin(self, number: int) -> str:
        return f"{self.problems[number]['num_steps']} steps"

    def shortest(self, number: int) -> str:
        solution = str(self.problems[number]["solution"])
        steps = [step for step in solution.split(";")[:-1] if not step.startswith("W")]
        return "".join(f"{step};" for step in steps) + f"#{self.problems[number]['answer']}"


class ReasoningGymEnv(Environment):
    """One task of reasoning-gym, graded by the library's own scorer in processes with a clock.

    Args:
        task: such as chain_sum.
        size: how many problems, all different.
        seed: of all draws.
        apart_from: questions that must not occur.
        seconds: that a score may take; longer ones are counted in `failures` and earn nothing.

    Raises:
        MissingExtraError: without reasoning-gym.
        SettingsError: no such task, or too few different problems.
    """

    def __init__(
        self,
        task: str,
        size: int,
        seed: int,
        *,
        apart_from: set[str] | frozenset[str] = frozenset(),
        seconds: float = 10.0,
    ) -> None:
        self.name = f"reasoning_gym:{task}"
        self.problems = list(gym_rows([task], size, seed=seed, apart_from=apart_from))
        self.grader = verifier("reasoning-gym", seconds=seconds)

    def bin(self, number: int) -> str:
        return str(self.problems[number]["task"])


ENVIRONMENTS = ("chain", "reasoning_gym:TASK")
"""How they are named."""


def environment(
    name: str, size: int, seed: int, kind: Chains | None = None, *, apart_from: set[str] | frozenset[str] = frozenset()
) -> Environment:
    """The environment of a name, its problems drawn.

    Raises:
        SettingsError: no such environment.
    """
    check_environment(name)
    if name == "chain":
        return ChainEnv(size, seed, kind, apart_from=apart_from)
    return ReasoningGymEnv(name.partition(":")[2], size, seed, apart_from=apart_from)


def check_environment(name: str) -> None:
    """Refuses a name that none has.

    Raises:
        SettingsError: no such environment.
    """
    kind, _, task = name.partition(":")
    if (kind == "chain" and not task) or (kind == "reasoning_gym" and task):
        return
    guess = nearest(kind, ["chain", "reasoning_gym"])
    fix = f"did you mean {guess!r}?" if guess and guess != kind else f"use {' or '.join(ENVIRONMENTS)}"
    raise SettingsError(f"there is no environment {name!r}", where="env", fix=fix)


def text_of(completion: Any) -> str:
    """Of what TRL hands to a reward: a text, or a conversation whose last turn is the model's."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
