"""Environments: problems with a difficulty each, and whether an answer is right.

    env = ChainEnv(size=2000, seed=1)
    env.rows[0]["prompt"], env.reward(completions=["a3+4=7;#7"], row=[0])
    env.apart_from(other)           # refuses questions that occur in both

Rows are those of a TRL data set; a reward is an instance and not a closure, so that it can be sent to other processes.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.align.tools import CALCULATOR, TOOLS, Tool
from burnish.core.checkpoint import text_digest
from burnish.core.errors import DataError, SettingsError, nearest
from burnish.data.chain import Chains, chain_rows
from burnish.data.gym import check_task, gym_rows
from burnish.data.table import Tables, table_rows
from burnish.verify import Verifier, verifier
from burnish.verify.adapter import CORRECT

if TYPE_CHECKING:
    from burnish.align.episodes import DrawnEpisode

FAILED_CALL = 0.1
"""What a turn loses for a call that fails, where advantages are by turn."""
LARGEST = 99
"""Operand of a sum."""
TRIES = 100
"""Draws of a new sum before there are said to be no more."""


class Environment(ABC):
    """Problems of one kind.

    Attributes:
        name: how the command line says it.
        problems: rows for a verifier.
        grader: the verifier.
        tools: that may be called, in episodes of several turns; none where an answer is one text.
    """

    name: str
    problems: list[dict[str, Any]]
    grader: Verifier
    tools: tuple[Tool, ...] = ()

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

    @property
    def readable(self) -> Readable:
        """1 for an answer in which the grader finds something to grade, right or wrong."""
        return Readable(self)

    @property
    def digest(self) -> str:
        """sha256 of what is asked and what is right, for keys."""
        return text_digest([self.name, self.problems])

    @abstractmethod
    def bin(self, number: int) -> str:
        """How hard a problem is, as a table's row names it."""

    def shortest(self, number: int) -> str | None:
        """The shortest answer that shows its steps, where that is known."""
        return None

    def score(self, text: str, number: int) -> float:
        """1 where the answer is correct."""
        return float(self.grader.score(text, self.problems[number]) >= CORRECT)

    def has_answer(self, text: str, number: int) -> float:
        """1 where the text has an answer that can be graded."""
        return float(self.grader.extract(text) is not None)

    def turn_rewards(self, episode: DrawnEpisode, earned: float) -> list[float]:
        """What every turn of an episode has earned: less than nothing for calls that failed, the last what it earned.

        Args:
            episode: with its turns.
            earned: by the whole.
        """
        rewards = [-FAILED_CALL * number for number in episode.failed_calls]
        rewards[-1] += earned
        return rewards

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

    def __call__(
        self, completions: Sequence[Any], row: Sequence[int], final: Sequence[str] | None = None, **_: object
    ) -> list[float]:
        return [self.env.score(text, number) for text, number in zip(_answers(completions, final), row, strict=True)]


@dataclass(frozen=True)
class Readable:
    """The reward of an answer's form, called as `Correct` is."""

    env: Environment
    __name__: ClassVar[str] = "format"

    def __call__(
        self, completions: Sequence[Any], row: Sequence[int], final: Sequence[str] | None = None, **_: object
    ) -> list[float]:
        answers = _answers(completions, final)
        return [self.env.has_answer(text, number) for text, number in zip(answers, row, strict=True)]


def _answers(completions: Sequence[Any], final: Sequence[str] | None) -> Sequence[str]:
    """`final` are the last answers of episodes; where there are none, completions are answers."""
    return [text_of(one) for one in completions] if final is None else final


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


class SumsEnv(Environment):
    """Sums of two or three numbers to 99, such as 47*86+19, worked out with a tool; as hard as they have operations.

    Args:
        size: how many problems, all different.
        seed: of all draws.
        tool: that may be called.
        apart_from: questions that must not occur.

    Raises:
        SettingsError: there are not so many.
    """

    def __init__(
        self, size: int, seed: int, tool: Tool = CALCULATOR, *, apart_from: set[str] | frozenset[str] = frozenset()
    ) -> None:
        self.name, self.tools, self.grader = tool.name, (tool,), verifier("last-integer")
        seen, draw = set(apart_from), random.Random(f"sums {seed}")
        self.problems = []
        for number in range(size):
            operations = 1 + number % 2
            question = next((one for one in (_sum(draw, operations) for _ in range(TRIES)) if one not in seen), None)
            if question is None:
                raise SettingsError(f"there are no {size:,} different sums", where="problems", fix="ask for fewer")
            seen.add(question)
            answer = CALCULATOR({"expression": question})
            self.problems.append(
                {"id": f"sum-{seed}-{number}", "question": question, "answer": answer, "operations": operations}
            )

    def bin(self, number: int) -> str:
        operations = self.problems[number]["operations"]
        return f"{operations} operation{'s' * (operations > 1)}"


def _sum(draw: random.Random, operations: int) -> str:
    numbers = [str(draw.randint(2, LARGEST)) for _ in range(operations + 1)]
    return numbers[0] + "".join(draw.choice("+-*") + one for one in numbers[1:])


class TableEnv(Environment):
    """Tables of `burnish data table`; all of one kind are as hard.

    Args:
        size: how many problems.
        seed: of all draws.
        kind: what they are made of.
        apart_from: questions that must not occur.
    """

    def __init__(
        self, size: int, seed: int, kind: Tables | None = None, *, apart_from: set[str] | frozenset[str] = frozenset()
    ) -> None:
        self.name, self.grader = "table", verifier("chain")
        self.problems = list(table_rows(kind or Tables(), size, seed=seed, apart_from=apart_from))

    def bin(self, number: int) -> str:
        return f"{self.problems[number]['asked'].count('+') + 1} cells"

    def shortest(self, number: int) -> str:
        return str(self.problems[number]["solution"])


class MixedEnv(Environment):
    """Problems of one environment and, behind them, some of others, each graded by its own.

    Args:
        first: whose problems are all there.
        others: (environment, numbers of its problems), which may occur again.
    """

    def __init__(self, first: Environment, others: Sequence[tuple[Environment, Sequence[int]]]) -> None:
        self.name, self.tools = "+".join([first.name, *(env.name for env, _ in others)]), first.tools
        self.parts = [(first, number) for number in range(len(first.problems))]
        self.parts += [(env, number) for env, numbers in others for number in numbers]
        self.problems = [env.problems[number] for env, number in self.parts]
        self.grader = first.grader

    @property
    def rows(self) -> list[dict[str, Any]]:
        prompts = {id(env): env.rows for env, _ in self.parts}
        return [prompts[id(env)][number] | {"row": place} for place, (env, number) in enumerate(self.parts)]

    def bin(self, number: int) -> str:
        env, own = self.parts[number]
        return env.bin(own)

    def shortest(self, number: int) -> str | None:
        env, own = self.parts[number]
        return env.shortest(own)

    def score(self, text: str, number: int) -> float:
        env, own = self.parts[number]
        return env.score(text, own)

    def has_answer(self, text: str, number: int) -> float:
        env, own = self.parts[number]
        return env.has_answer(text, own)

    @property
    def failures(self) -> dict[str, int]:
        """Of all of its environments together."""
        found: dict[str, int] = {}
        for env in {id(env): env for env, _ in self.parts}.values():
            for why, number in env.failures.items():
                found[why] = found.get(why, 0) + number
        return found

    def close(self) -> None:
        """Those that it is made of are closed by whoever made them."""


ENVIRONMENTS = ("chain", "table", *TOOLS, "reasoning_gym:TASK")
"""How they are named."""


def environment(
    name: str,
    size: int,
    seed: int,
    kind: Chains | None = None,
    *,
    tables: Tables | None = None,
    apart_from: set[str] | frozenset[str] = frozenset(),
) -> Environment:
    """The environment of a name, its problems drawn.

    Args:
        name: one of `ENVIRONMENTS`.
        size: how many problems.
        seed: of all draws.
        kind, tables: what chains, and what tables, are made of.
        apart_from: questions that must not occur.

    Raises:
        SettingsError: no such environment.
    """
    check_environment(name)
    if name == "chain":
        return ChainEnv(size, seed, kind, apart_from=apart_from)
    if name == "table":
        return TableEnv(size, seed, tables, apart_from=apart_from)
    if name in TOOLS:
        return SumsEnv(size, seed, TOOLS[name], apart_from=apart_from)
    return ReasoningGymEnv(name.partition(":")[2], size, seed, apart_from=apart_from)


def check_environment(name: str) -> None:
    """Refuses a name that none has.

    Raises:
        SettingsError: no such environment.
    """
    kind, _, task = name.partition(":")
    alone = [one for one in ENVIRONMENTS if ":" not in one]
    if name in alone:
        return
    if kind == "reasoning_gym" and task:
        return check_task(task)
    guess = nearest(kind, [*alone, "reasoning_gym"])
    fix = f"did you mean {guess!r}?" if guess and guess != kind else f"use one of {', '.join(ENVIRONMENTS)}"
    raise SettingsError(f"there is no environment {name!r}", where="env", fix=fix)


def text_of(completion: Any) -> str:
    """Of what TRL hands to a reward: a text, or a conversation whose last turn is the model's."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
