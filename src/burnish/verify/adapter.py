"""What every grader can do, and how an answer is found in what a model wrote.

A problem is one row of a JSON Lines file, with `question` and, for most graders, `answer`. An answer is a string. A
strategy that votes needs `extract` and `equivalent` and never sees the gold answer; only a harness calls `grade`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from burnish.core.errors import DataError

Problem = Mapping[str, Any]


CORRECT = 0.99
"""The score from which an answer is correct: many scorers give 0.01 to any answer that they can read."""


class Verifier(ABC):
    """One kind of answer.

    Every method may be called from any thread. A verifier that holds processes gives them back in `close`, which the
    end of a `with` block calls.

    Attributes:
        name: by which `burnish.verify.verifier` finds it.
        needs: the fields that a problem must have.
        format: what a prompt says about the form of the answer; empty where the question says it.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("question", "answer")
    format: ClassVar[str] = ""

    def adapted(self, row: Problem) -> dict[str, Any]:
        """A row of a published file with the names used here: `question` and `id` besides what it has."""
        problem = dict(row)
        for name, others in (("question", ("problem", "prompt", "input")), ("id", ("task_id", "unique_id"))):
            if name not in problem and (found := next((other for other in others if other in problem), None)):
                problem[name] = problem[found]
        return problem

    def check(self, problem: Problem, *, where: str = "problem") -> None:
        """Refuses a problem that cannot be graded, before anything is spent on it.

        Raises:
            DataError: a field that is missing or empty, naming it.
        """
        for field in self.needs:
            if field not in problem or problem[field] is None or not str(problem[field]).strip():
                has = ", ".join(problem) or "nothing"
                raise DataError(
                    f"has no `{field}`, which the verifier '{self.name}' needs (it has {has})",
                    where=where,
                    fix="use a file with that field, or another verifier",
                )

    def prompt(self, problem: Problem) -> str:
        """The question, followed by the form in which `extract` finds an answer."""
        question = str(problem["question"]).rstrip()
        return f"{question}\n\n{self.format}" if self.format else question

    def extract(self, text: str) -> str | None:
        """The answer in what a model wrote, or None where there is none: None wins no vote and earns nothing."""
        return final_answer(text)

    def grade(self, answer: str | None, problem: Problem) -> float:
        """What an answer deserves, from 0 to 1."""
        return 0.0 if answer is None else self._grade(answer, problem)

    def score(self, text: str, problem: Problem) -> float:
        """What a whole text deserves: `grade` of what `extract` finds."""
        return self.grade(self.extract(text), problem)

    @abstractmethod
    def equivalent(self, first: str, second: str) -> bool:
        """Whether two answers are the same vote; symmetric, and True for two equal strings."""

    @abstractmethod
    def _grade(self, answer: str, problem: Problem) -> float:
        """`grade` of an answer that is there."""

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Gives back what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def visible(text: str) -> str | None:
    """What follows the reasoning block, or None where the text ends inside it."""
    if "</think>" in text:
        return text.rsplit("</think>", 1)[1]
    return None if "<think>" in text else text


def final_answer(text: str) -> str | None:
    """The answer that a text declares, looked for after its reasoning block.

    In this order: the last balanced `\\boxed{...}`, the last `<answer>...</answer>`, the last line that starts with
    "final answer:", the last line that starts with "####". An empty answer is none.
    """
    seen = visible(text)
    if seen is None:
        return None
    found = boxed(seen)
    if found is None and (tags := TAGGED.findall(seen)):
        found = tags[-1].strip()
    if found is None and (lines := _LINE.findall(seen)):
        found = lines[-1].strip().strip("*").strip()
    return found or None


TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(  # nothing here goes back: a line of 50,000 spaces is a reply too
    r"^[ \t]*+(?:[*_#]*+[ \t]*+(?:the[ \t]++)?final[ \t]++answer[ \t]*+(?:is)?[*_]*+[ \t]*+:|####)(.+)$", re.M | re.I
)
_BRACES = re.compile(r"(\\f?boxed\s*\{)|\\(?!\\f?boxed\s*\{).|[{}]", re.DOTALL)
"""A box that opens, a character that is printed (`\\{`), a brace."""


def boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` with balanced braces holds."""
    open_braces: list[tuple[int, bool]] = []
    last: tuple[int, int] | None = None
    for found in _BRACES.finditer(text):
        if found[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and (last is None or start > last[0]):
                last = start, found.start()
        elif found[0] == "{" or found[1]:
            open_braces.append((found.end(), bool(found[1])))
    return None if last is None else text[last[0] : last[1]].strip()
