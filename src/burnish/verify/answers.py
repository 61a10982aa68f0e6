"""Answers that are compared without algebra: words, numbers, the last integer of a text."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from burnish.verify.adapter import Problem, Verifier, final_answer, visible

MAX_LENGTH = 200
"""Of the digits of a number; longer ones are no answers but attacks on arithmetic."""


class Exact(Verifier):
    """The same words: case, spaces and a full stop at the end do not count."""

    name = "exact"
    format = "End with one line: Final answer: ..."

    def _grade(self, answer: str, problem: Problem) -> float:
        return float(self.equivalent(str(problem["answer"]), answer))

    def equivalent(self, first: str, second: str) -> bool:
        return plain_words(first) == plain_words(second)


class Number(Verifier):
    """The same number, exactly: 0.5, 1/2 and 50/100 are one answer; units and thousands separators do not count.

    Args:
        tolerance: relative difference from the gold answer that is still right.
    """

    name = "number"
    format = "End with one line: Final answer: ... (a number)"

    def __init__(self, tolerance: float = 0.0) -> None:
        self.tolerance = Fraction(tolerance)

    def _grade(self, answer: str, problem: Problem) -> float:
        gold, found = number_in(str(problem["answer"])), number_in(answer)
        if gold is None or found is None:
            return float(gold is None and self.equivalent(str(problem["answer"]), answer))
        return float(abs(found - gold) <= self.tolerance * abs(gold))

    def equivalent(self, first: str, second: str) -> bool:
        one, other = number_in(first), number_in(second)
        if one is None or other is None:
            return plain_words(first) == plain_words(second)
        return abs(one - other) <= self.tolerance * max(abs(one), abs(other))


class LastInteger(Verifier):
    """The last integer of a text: a lenient reader, for models that were taught no form."""

    name = "last-integer"
    _integer = re.compile(
        r"(?<![\d.])[-\u2212]?\d{1,3}(?:,\d{3}){1,66}+(?![\d,])(?!\.\d)|(?<![\d.])[-\u2212]?\d+(?!\d)(?!\.\d)"
    )

    def extract(self, text: str) -> str | None:
        seen = visible(text)
        found = self._integer.findall(seen) if seen is not None else []
        return found[-1].replace(",", "").replace("\u2212", "-") if found else None

    def _grade(self, answer: str, problem: Problem) -> float:
        gold = str(problem["answer"])
        return float(self.equivalent(final_answer(gold) or gold, answer))

    def equivalent(self, first: str, second: str) -> bool:
        one, other = number_in(first), number_in(second)
        return one == other if one is not None else plain_words(first) == plain_words(second)


def plain_words(text: str) -> str:
    """A text as `Exact` compares it."""
    return " ".join(text.split()).casefold().strip(" .\"'`*")


_GROUPED = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|[ \u00a0\u202f])(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_NUMBER = re.compile(
    r"(?<![\w./])[-+]?(?>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?(?:\s*/\s*\d+)?)(?!\d|[/.]\d|[eE][-+]?\d)"
)


def number_in(text: str) -> Fraction | None:
    """The one number of an answer, or None where it holds none, or several: "$1,250.50 a year" is 2501/2."""
    if len(text) > MAX_LENGTH:
        return None
    text = _GROUPED.sub("", _FRACTION.sub(r" \1/\2 ", text.replace("\u2212", "-").replace("$", " ")))
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return None
    numerator, _, denominator = found[0].partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(Decimal(numerator.strip())) / int(denominator or 1)
