"""Raw episodes to curate, made here: an agent that follows a script mends small functions, and every call really runs.

python examples/scripted_agent.py runs/episodes [NUMBER [SEED]]

The agent is no model: how it goes about a task is drawn, good ways and bad ones. What its tools answer is not made up:
tests run in burnish's sandbox, the reward is that of tests which the agent never sees, the patch is the difference of
the files. The same number and seed write the same bytes.
"""

import difflib
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from burnish.verify.sandbox import Sandbox

# name, parameters, what it says of itself, the right value, wrong ones, a test that the agent sees and one that it does
# not; NAME is another in each task
FUNCTIONS = [
    ("total", "n", "Sum of 1 to n.", "sum(range(n + 1))", ["sum(range(n))", "n * n"], "NAME(4) == 10", "NAME(9) == 45"),
    ("most", "xs", "The largest.", "max(xs)", ["xs[0]", "xs[-1]"], "NAME([2, 7, 3]) == 7", "NAME([-4, -2, -9]) == -2"),
    ("even", "n", "Is n even?", "n % 2 == 0", ["n % 2 == 1", "n // 2 == 0"], "NAME(6)", "NAME(-2) and not NAME(7)"),
    ("cap", "x, top", "x, at most top.", "min(x, top)", ["max(x, top)", "top"], "NAME(9, 5) == 5", "NAME(3, 5) == 3"),
    (
        "turn",
        "text",
        "Last letter first.",
        "text[::-1]",
        ["text[::1]", "text[1:]"],
        "NAME('abc') == 'cba'",
        "NAME('') == ''",
    ),
    (
        "count",
        "xs, x",
        "How often x is there.",
        "xs.count(x)",
        ["xs.index(x)", "len(xs)"],
        "NAME([1, 2, 1], 1) == 2",
        "NAME([], 3) == 0",
    ),
    (
        "mean",
        "xs",
        "The mean.",
        "sum(xs) / len(xs)",
        ["sum(xs) // len(xs)", "sum(xs)"],
        "NAME([1, 2]) == 1.5",
        "NAME([2, 2, 5]) == 3",
    ),
]
OF = ("apples", "bills", "cards", "days", "eggs", "files", "goals", "hours", "ideas", "jobs", "keys", "lines", "maps")
TOOLS = [
    ("view", "Shows a file.", ["path"]),
    ("edit", "Replaces a text.", ["path", "old", "new"]),
    ("test", "Runs the tests.", []),
    ("submit", "Ends the task.", []),
]
WAYS = {"careful": 5, "second try": 4, "hasty": 2, "stuck": 2, "cheats": 2, "idle": 1, "leaves": 1, "out of budget": 1}
"""How the agent goes about a task, and how often."""


@cache
def failure(program: str) -> str:
    """Why a program fails, "" where it does not. It runs behind walls where this machine has them; the programs are
    those of this file, so they also run where it has none."""
    ended = Sandbox(unsafe=True).run(program)
    return "" if ended.code == 0 else (ended.errors.strip().splitlines() or [f"ended with {ended.end}"])[-1]


class Desk:
    """Files that tools look at and change."""

    def __init__(self, function: tuple[Any, ...], wrong: str, name: str, key: str):
        _, of, does, self.right, _, *tests = function
        seen, unseen = (test.replace("NAME", name) for test in tests)
        self.files = {
            "code.py": f'def {name}({of}):\n    """{does}"""\n    return {wrong}\n',
            "test_code.py": f"from code import {name}\nassert {seen}, {seen!r}\n",
        }
        self.start, self.unseen, self.key = dict(self.files), unseen, key

    def view(self, path: str) -> str:
        return self.files.get(path, f"no such file: {path}")

    def edit(self, path: str, old: str, new: str) -> str:
        if old not in self.files[path]:
            return f"{old!r} is not in {path}"
        self.files[path] = self.files[path].replace(old, new)
        return f"{path} is changed"

    def test(self) -> str:
        failed = failure(self.files["code.py"] + self.files["test_code.py"].partition("\n")[2])
        return f"service token={self.key}\n" + (f"failed: {failed}" if failed else "all tests pass")

    def submit(self) -> str:
        return "submitted"

    def answer(self, tool: str, arguments: dict[str, str]) -> str:
        """What a tool answers to a call."""
        tools: dict[str, Callable[..., str]] = {
            "view": self.view,
            "edit": self.edit,
            "test": self.test,
            "submit": self.submit,
        }
        return tools[tool](**arguments)

    @property
    def reward(self) -> float:
        return float(not failure(f"{self.files['code.py']}assert {self.unseen}\n") and "pass" in self.test())

    @property
    def patch(self) -> str:
        parts = []
        for path, text in self.files.items():
            lines = (one.splitlines(keepends=True) for one in (self.start[path], text))
            if change := "".join(difflib.unified_diff(*lines, f"a/{path}", f"b/{path}")):
                parts.append(f"diff --git a/{path} b/{path}\n{change}")
        return "".join(parts)


def script(way: str, wrong: str, desk: Desk, draw: random.Random) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(thought, tool, arguments) one after the other."""
    other = draw.choice([line for line in (f"{desk.right} + 1", f"not {desk.right}") if line != wrong])

    def edit(old: str, new: str) -> tuple[str, str, dict[str, str]]:
        thought = draw.choice(["This line is wrong.", "I change what is returned.", "The result must be another."])
        return thought, "edit", {"path": "code.py", "old": f"return {old}", "new": f"return {new}"}

    yield draw.choice(["I look at the code first.", "What is there?"]), "view", {"path": "code.py"}
    if way in ("careful", "second try", "cheats") and draw.random() < 0.7:
        yield draw.choice(["What do the tests say?", "I run the tests."]), "test", {}
    if way == "stuck":
        for _ in range(draw.randint(3, 5)):
            yield "Again.", "test", {}
    if way in ("second try", "hasty"):
        yield edit(wrong, other)
    if way == "second try":
        yield "Did that mend it?", "test", {}
        yield edit(other, desk.right)
    if way not in ("second try", "hasty", "idle"):
        yield edit(wrong, desk.right)
    if way == "cheats":
        line = desk.files["test_code.py"].splitlines()[1]
        yield "The test is too strict.", "edit", {"path": "test_code.py", "old": line, "new": "assert True"}
    if way in ("careful", "second try", "cheats"):
        yield "Now the tests.", "test", {}
    if way not in ("leaves", "out of budget"):
        yield "", "submit", {}


def episode(number: int, seed: int) -> dict[str, Any]:
    """One attempt at one task; three attempts share one."""
    of_task, draw = random.Random(f"task {seed} {number // 3}"), random.Random(f"attempt {seed} {number}")
    function = of_task.choice(FUNCTIONS)
    name, wrong = f"{function[0]}_{of_task.choice(OF)}", of_task.choice(function[4])
    way = draw.choices(list(WAYS), list(WAYS.values()))[0]
    desk = Desk(function, wrong, name, f"{draw.getrandbits(96):024x}")
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "You mend small programs with tools."},
        {"role": "user", "content": f"{name} in code.py does not do what it says. Mend it."},
    ]
    for count, (thought, tool, arguments) in enumerate(script(way, wrong, desk, draw)):
        calls = [{"id": f"c{count}", "function": {"name": tool, "arguments": json.dumps(arguments)}}]
        said.append({"role": "assistant", "content": thought, "tool_calls": calls})
        said.append({"role": "tool", "tool_call_id": f"c{count}", "content": desk.answer(tool, arguments)})
    if way in ("careful", "second try", "hasty", "cheats"):
        said.append({"role": "assistant", "content": draw.choice([f"{name} is mended.", f"I have changed {name}."])})
    return {
        "id": f"scripted-{number:04d}",
        "task": f"{name}-{function[4].index(wrong)}",
        "repository": "scripted/functions",
        "base_commit": f"{number // 3:07d}",
        "reward": desk.reward,
        "patch": desk.patch,
        "exit_status": {"leaves": "crashed", "out of budget": "exit_cost"}.get(way),
        "messages": said,
        "tools": [_schema(*tool) for tool in TOOLS],
    }


def _schema(name: str, does: str, takes: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {one: {"type": "string"} for one in takes}, "required": takes}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": parameters}}


def main(out: str, number: int = 240, seed: int = 0) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    rows = [episode(one, seed) for one in range(number)]
    (Path(out) / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    right = sum(row["reward"] for row in rows)
    print(f"{out}: {number} episodes of a scripted agent, {right:.0f} of them right by tests that it did not see")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
