"""reasoning-gym: a hundred kinds of generated problems, each with a scorer of its own.

A row has `question`, `task` and `entry`, the library's own row, which its scorer reads; a row as the library makes it
(`question`, `answer`, `metadata` with `source_dataset`) is understood too.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from burnish.core.errors import DataError, MissingExtraError, nearest
from burnish.verify.adapter import TAGGED, Problem, Verifier, final_answer, visible
from burnish.verify.workers import Workers


class ReasoningGym(Verifier):
    """What the library's scorer of the task says, from 0 to 1; many give 0.01 to any answer that they can read.

    Scorers run in processes that read answers as data and never run them. One that takes longer than `seconds` on the
    wall is stopped and counted in `failures`, as one that cannot read an answer is; the answer earns nothing.

    Args:
        seconds: the clock of one score.
        processes: how many score at a time; they start when they are needed.

    Raises:
        MissingExtraError: without reasoning-gym.
    """

    name = "reasoning-gym"
    needs = ("question", "task", "entry")
    format = "Give the final answer between <answer> and </answer>."

    def __init__(self, seconds: float = 10.0, processes: int = 2) -> None:
        if find_spec("reasoning_gym") is None:
            raise MissingExtraError("reasoning-gym", "verify", "grading problems of reasoning-gym")
        self._workers = Workers("burnish.verify.gym_worker", number=processes, seconds=seconds)
        self._tasks: list[str] = []
        self._unread = 0

    @property
    def failures(self) -> dict[str, int]:
        """How many scores ran out of time ("timeout"), ended their process ("crash") or could not be made ("error")."""
        return {**self._workers.failures} | ({"error": self._unread} if self._unread else {})

    def adapted(self, row: Problem) -> dict[str, Any]:
        problem = super().adapted(row)
        facts = problem.get("metadata")
        if "entry" not in problem and isinstance(facts, dict) and "source_dataset" in facts:
            problem["entry"] = dict(row)
            problem.setdefault("task", facts["source_dataset"])
        return problem

    def check(self, problem: Problem, *, where: str = "problem") -> None:
        """Refuses an unknown task, and an entry that its scorer cannot read."""
        super().check(problem, where=where)
        task, entry = problem["task"], problem["entry"]
        if not isinstance(entry, dict):
            raise DataError("has an `entry` that is no object", where=where, fix="give the library's own row there")
        if not self._tasks:
            said, failure = self._workers.ask({})
            self._tasks = said["tasks"] if failure is None else []
        if self._tasks and task not in self._tasks:
            guess = nearest(str(task), self._tasks)
            fix = f"did you mean {guess!r}?" if guess else "install the version of reasoning-gym that made the file"
            raise DataError(f"is of a task {task!r} that reasoning-gym has not", where=where, fix=fix)
        if gold := entry.get("answer"):  # some tasks have none: their scorers play what is proposed
            said, failure = self._workers.ask({"task": task, "entry": entry, "answer": str(gold)})
            if failure is None and "error" in said:
                raise DataError(
                    f"has an `entry` that the scorer of {task!r} cannot read ({said['error']})",
                    where=where,
                    fix="give the library's own row there",
                )

    def prompt(self, problem: Problem) -> str:
        question = str(problem["question"]).rstrip()
        return question if "<answer>" in question else super().prompt(problem)

    def extract(self, text: str) -> str | None:
        """What stands in the last `<answer>`; a box in it, or elsewhere, may be part of the problem."""
        seen = visible(text)
        if seen is not None and (tags := TAGGED.findall(seen)):
            return tags[-1].strip() or None
        return final_answer(text)

    def equivalent(self, first: str, second: str) -> bool:
        return first.split() == second.split()

    def _grade(self, answer: str, problem: Problem) -> float:
        said, failure = self._workers.ask({"task": problem["task"], "entry": problem["entry"], "answer": answer})
        if failure is None and "error" in said:
            self._unread += 1
        return said["score"] if failure is None and "score" in said else 0.0

    def close(self) -> None:
        self._workers.close()
