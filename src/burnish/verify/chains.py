"""Verifiable chains (`burnish data chain`): the answer after `#`, and what the steps before it are worth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from burnish.core.errors import DataError
from burnish.verify.adapter import Problem, Verifier, visible

_QUESTION = re.compile(r"(\d+)((?:[a-z][-+*]\d+)+)")
_STEP = re.compile(r"(W?)([a-z])(\d+)([-+*])(\d+)=(\d+);")


@dataclass(frozen=True)
class Steps:
    """What a written solution does.

    Attributes:
        first: steps of the question that it derives.
        repeats: derivations that repeat one (`W`).
        right: derivations whose arithmetic is right, repeats included.
        rest: what is neither a step nor the answer.
    """

    first: int
    repeats: int
    right: int
    rest: str


class ChainAnswer(Verifier):
    """The number after the last `#`, at the end of the text; the steps may be anything.

    Args:
        from_question: compute the gold answer from the question instead of believing `answer`; needs `modulus`.
    """

    name = "chain"
    _answer = re.compile(r"#(\d+)\s*$")

    def __init__(self, *, from_question: bool = False) -> None:
        self.from_question = from_question

    def extract(self, text: str) -> str | None:
        seen = visible(text)
        found = self._answer.search(seen) if seen is not None else None
        return found.group(1) if found else None

    def _grade(self, answer: str, problem: Problem) -> float:
        gold = problem["answer"]
        if self.from_question:
            gold = solved(str(problem["question"]), int(problem["modulus"]))
        return float(self.equivalent(str(gold), answer))

    def equivalent(self, first: str, second: str) -> bool:
        one, other = (text.strip().lstrip("0") or "0" for text in (first, second))
        return one == other


def solved(question: str, modulus: int) -> int:
    """The answer of a chain.

    Raises:
        DataError: not a chain.
    """
    found = _QUESTION.fullmatch(question.strip())
    if found is None:
        raise DataError(f"{question!r} is no chain", fix="write 3a+4b*2c-5")
    value = int(found.group(1))
    for operation, operand in re.findall(r"[a-z]([-+*])(\d+)", found.group(2)):
        value = _result(value, operation, int(operand), modulus)
    return value


def steps(text: str, modulus: int) -> Steps:
    """Counts the derivations of a solution, and which of them are right."""
    first = repeats = right = 0
    for again, _, value, operation, operand, result in _STEP.findall(text):
        repeats += bool(again)
        first += not again
        right += _result(int(value), operation, int(operand), modulus) == int(result)
    return Steps(first, repeats, right, re.sub(r"#\d+\s*$", "", _STEP.sub("", text)))


def _result(value: int, operation: str, operand: int, modulus: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operation] % modulus
