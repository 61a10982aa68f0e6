"""Verifiable chains: small sums whose every step can be checked, the task on which tiny models learn to reason.

    question   3a+4b*2c-5                  start 3, then step a adds 4, step b times 2, step c minus 5, all modulo 10
    solution   a3+4=7;b7*2=4;Wb7*2=4;c4-5=9;#9

A step carries its letter, so which step is next is a copy and not a count. `W` repeats the step before: a redundant
check, or, where a first derivation slipped, its correction. A row depends on the seed and its own number alone.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from burnish.core.errors import refuse
from burnish.data.draws import draws

LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Chains:
    """What chains are made of.

    Attributes:
        modulus: of all results; 10 or less keeps a result one digit.
        steps: fewest and most operations.
        operations: of `+-*`, drawn with equal chance.
        largest: operand; None for modulus - 1.
        repeat: chance that a step is repeated.
        again: chance that a repeated step is repeated once more.
        most_repeats: of one step.
        direct: chance of an answer without steps.
        slips: chance that a step's first derivation is wrong; its first repeat is right.
    """

    modulus: int = 10
    steps: tuple[int, int] = (1, 8)
    operations: str = "+-*"
    largest: int | None = None
    repeat: float = 0.4
    again: float = 0.5
    most_repeats: int = 3
    direct: float = 0.05
    slips: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.steps
        chances = {name: getattr(self, name) for name in ("repeat", "again", "direct", "slips")}
        wrong = {
            f"modulus is {self.modulus}, but at least 3 is needed": self.modulus < 3,
            f"steps are {low} to {high}, but 1 to {len(LETTERS)} have letters": not 1 <= low <= high <= len(LETTERS),
            f"operations are {self.operations!r}, but only + - * are known": not self.operations
            or not set(self.operations) <= set("+-*"),
            f"largest is {self.largest}, but an operand is 2 or more": self.largest is not None and self.largest < 2,
            f"most_repeats is {self.most_repeats}, and no step is repeated so often": self.most_repeats < 0,
            "slips need most_repeats of at least 1, for the repeat that corrects": self.slips > 0 == self.most_repeats,
        } | {
            f"{name} is {chance}, which is no chance from 0 to 1": not 0 <= chance <= 1
            for name, chance in chances.items()
        }
        refuse(wrong, where="chains")


@dataclass(frozen=True)
class Chain:
    """One problem with one worked solution.

    Attributes:
        question: "3a+4b*2".
        derivations: "a3+4=7;", one a step, all right.
        answer: as a number without sign.
        solution: what a model is to write, repeats and slips included.
        num_repeats: how many `W` the solution has.
        num_slips: how many first derivations in it are wrong.
    """

    question: str
    derivations: tuple[str, ...]
    answer: str
    solution: str
    num_repeats: int
    num_slips: int

    @property
    def shortest(self) -> str:
        """The solution without redundant checks."""
        return f"{''.join(self.derivations)}#{self.answer}"

    def row(self, name: str, modulus: int) -> dict[str, Any]:
        """As a line of a file: a problem for `burnish.verify`, and `messages` for `burnish train`."""
        facts = asdict(self)
        del facts["derivations"]
        return {
            "id": name,
            **facts,
            "num_steps": len(self.derivations),
            "modulus": modulus,
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.solution},
            ],
        }


def chain(kinds: Chains, random_: random.Random) -> Chain:
    """Draws one chain."""
    value = random_.randrange(kinds.modulus)
    question, derivations = str(value), []
    for letter in LETTERS[: random_.randint(*kinds.steps)]:
        operation = random_.choice(kinds.operations)
        operand = random_.randint(2 if operation == "*" else 1, kinds.largest or kinds.modulus - 1)
        result = computed(value, operation, operand, kinds.modulus)
        question += f"{letter}{operation}{operand}"
        derivations.append(f"{letter}{value}{operation}{operand}={result};")
        value = result
    written = _Written(kinds, random_)
    if random_.random() < kinds.direct:
        solution = f"#{value}"
    else:
        solution = "".join(map(written.step, derivations)) + f"#{value}"
    return Chain(question, tuple(derivations), str(value), solution, written.num_repeats, written.num_slips)


def computed(value: int, operation: str, operand: int, modulus: int) -> int:
    """One step."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operation] % modulus


@dataclass
class _Written:
    """How a solution is written: repeats and slips, and how many there were."""

    kinds: Chains
    random: random.Random
    num_repeats: int = field(default=0)
    num_slips: int = field(default=0)

    def step(self, derivation: str) -> str:
        slips, first = self.random.random() < self.kinds.slips, derivation
        if slips:
            known, result = derivation[:-1].split("=")
            other = (int(result) + self.random.randrange(1, self.kinds.modulus)) % self.kinds.modulus
            first = f"{known}={other};"
        repeats, chance = 0, 1.0 if slips else self.kinds.repeat
        while repeats < self.kinds.most_repeats and self.random.random() < chance:
            repeats, chance = repeats + 1, self.kinds.again
        self.num_repeats += repeats
        self.num_slips += slips
        return first + f"W{derivation}" * repeats


def chains(
    kinds: Chains,
    number: int,
    *,
    seed: int,
    apart_from: frozenset[str] | set[str] = frozenset(),
    distinct: bool = False,
) -> Iterator[Chain]:
    """Draws chains; number n depends on the seed and n, and on which questions are taken.

    Args:
        kinds: what they are made of.
        number: how many.
        seed: of all draws.
        apart_from: questions that must not occur; another seed alone does not keep small chains apart.
        distinct: no question occurs twice.

    Raises:
        DataError: no further question can be found.
    """
    return draws(
        lambda random_: chain(kinds, random_),
        number,
        kind="chain",
        seed=seed,
        apart_from=apart_from,
        distinct=distinct,
        fix="ask for fewer, or for longer chains",
    )


def chain_rows(
    kinds: Chains,
    number: int,
    *,
    seed: int,
    apart_from: frozenset[str] | set[str] = frozenset(),
    distinct: bool = False,
) -> Iterator[dict[str, Any]]:
    """The same as rows; see `Chain.row`."""
    drawn = chains(kinds, number, seed=seed, apart_from=apart_from, distinct=distinct)
    for index, one in enumerate(drawn):
        yield one.row(f"chain-{seed}-{index}", kinds.modulus)
