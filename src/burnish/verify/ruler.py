"""RULER: needles, variables, common and frequent words, and questions in a long context.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024, arXiv:2404.06654. Rows
as its generators write them: `input`, `outputs` (a list of texts), and `answer_prefix`, which a server that continues
an assistant's turn can be given. The measure is theirs: the share of the texts that occur in what the model wrote,
upper and lower case alike; for questions, whose texts are other ways to say one thing, whether any of them occurs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from burnish.core.errors import DataError
from burnish.verify.adapter import Problem, Verifier, visible
from burnish.verify.answers import plain_words


class Ruler(Verifier):
    """The share of the expected texts that occur in the answer; in a row whose `task` begins with "qa", any of them."""

    name = "ruler"
    needs = ("question", "outputs")

    def check(self, problem: Problem, *, where: str = "problem") -> None:
        super().check(problem, where=where)
        wanted = problem["outputs"]
        if not isinstance(wanted, list) or not wanted or not all(str(one).strip() for one in wanted):
            raise DataError("has `outputs` that are no list of texts", where=where, fix='write ["text", ...]')

    def extract(self, text: str) -> str | None:
        """All that follows the reasoning, since all of it is searched."""
        seen = visible(text)
        return None if seen is None else printed(seen) or None

    def equivalent(self, first: str, second: str) -> bool:
        return plain_words(first) == plain_words(second)

    def _grade(self, answer: str, problem: Problem) -> float:
        share = share_found(answer, [str(one) for one in problem["outputs"]])
        return float(share > 0) if self._is_question(problem) else share

    def _is_question(self, problem: Problem) -> bool:
        return str(problem.get("task", "")).startswith("qa")


class RulerQuestions(Ruler):
    """Whether any of the expected texts occurs: for RULER's files of questions, whose rows do not name their task."""

    name = "ruler-qa"

    def _is_question(self, problem: Problem) -> bool:
        return True


def printed(answer: str) -> str:
    """As RULER reads an answer: stripped, with line ends for what cannot be printed."""
    return _UNPRINTED.sub("\n", answer).strip()


def share_found(answer: str, wanted: Sequence[str]) -> float:
    """The share of what is wanted that the answer holds, whatever the case: `string_match_all` of one sample."""
    text = printed(answer).lower()
    return sum(one.lower() in text for one in wanted) / len(wanted)


_UNPRINTED = re.compile(r"[\x00-\x1f]")
