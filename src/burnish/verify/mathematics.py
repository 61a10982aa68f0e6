"""Mathematical answers in LaTeX, compared by math-verify in processes with a clock."""

from __future__ import annotations

from importlib.util import find_spec

from burnish.core.errors import MissingExtraError
from burnish.verify.adapter import Problem, Verifier
from burnish.verify.workers import Workers

MAX_LENGTH = 2000
"""Of an answer; a longer one is a text, not a formula."""


class Mathematics(Verifier):
    """The same value or set: `\\frac12` and `0.5`, `p - q` and `-q + p`, `(0, 1)` and `\\left(0, 1\\right)`.

    A comparison that takes longer than `seconds` on the wall is stopped, counted in `failures` and answered with no.

    Args:
        seconds: the clock of one comparison.
        processes: how many compare at a time; they start when they are needed.

    Raises:
        MissingExtraError: without math-verify.
    """

    name = "math"
    format = "Put the final answer in \\boxed{}."

    def __init__(self, seconds: float = 10.0, processes: int = 2) -> None:
        if find_spec("math_verify") is None:
            raise MissingExtraError("math-verify", "verify", "grading mathematics")
        self._workers = Workers("burnish.verify.math_worker", number=processes, seconds=seconds)
        self._known: dict[tuple[str, str], bool] = {}

    @property
    def failures(self) -> dict[str, int]:
        """How many comparisons ran out of time ("timeout") or ended their process ("crash")."""
        return {**self._workers.failures}

    def _grade(self, answer: str, problem: Problem) -> float:
        return float(self._says(str(problem["answer"]), answer))

    def equivalent(self, first: str, second: str) -> bool:
        return self._says(first, second) or self._says(second, first)

    def _says(self, gold: str, answer: str) -> bool:
        """math-verify is not symmetric: the gold answer goes first."""
        pair = (_bare(gold), _bare(answer))
        if pair[0] == pair[1]:
            return bool(pair[0])
        if not all(0 < len(text) <= MAX_LENGTH for text in pair):
            return False
        if pair not in self._known:
            answered, failure = self._workers.ask(pair)
            if failure is not None:  # not remembered: the next machine, or hour, may be faster
                return False
            self._known[pair] = bool(answered)
        return self._known[pair]

    def close(self) -> None:
        self._workers.close()


def _bare(text: str) -> str:
    """Without the dollars and spaces around it."""
    return text.strip().strip("$").strip()
