"""Episodes with planted faults, each one of a kind, some of several."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FAULTS = ("verified", "finished", "budget", "repeats", "patch", "tests", "contaminated")


def patch(file: str, line: str) -> str:
    return (
        f"diff --git a/{file} b/{file}\nindex 1111111..2222222 100644\n--- a/{file}\n+++ b/{file}\n"
        f"@@ -3,2 +3,2 @@ def f():\n context\n-    return 0\n+    return {line}\n"
    )


def call(name: str, arguments: dict[str, Any], number: int, thought: str = "") -> list[dict[str, Any]]:
    """A turn with a call, and its result."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {"role": "assistant", "content": thought, "tool_calls": [{"id": f"c{number}", "function": function}]},
        {"role": "tool", "tool_call_id": f"c{number}", "content": f"result {number}"},
    ]


def made(name: str, faults: frozenset[str] = frozenset(), *, turns: int = 3, task: str = "") -> dict[str, Any]:
    """An episode with these faults and no other."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You mend programs."},
        {"role": "user", "content": f"Mend {name}."},
    ]
    for number in range(turns):
        messages += call("bash", {"command": f"ls {number}"}, number, f"I look at {number}.")
    if "repeats" in faults:
        for number in range(3):
            messages += call("bash", {"command": "pytest"}, 100 + number, f"Again, {number}.")
    if "finished" not in faults:
        messages.append({"role": "assistant", "content": "It is mended."})
    changed = patch("tests/test_a.py" if "tests" in faults else "src/a.py", repr(name))
    return {
        "id": name,
        "task": task or f"task of {name}",
        "reward": 0.0 if "verified" in faults else 1.0,
        "repository": "them/evaluated" if "contaminated" in faults else "us/program",
        "base_commit": "0123456789abcdef",
        "patch": "" if "patch" in faults else changed,
        "exit_status": "exit_cost" if "budget" in faults else None,
        "messages": messages,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def planted(number: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, frozenset[str]]]:
    """Episodes, a third of them clean, and the faults of each; a third of the others have several."""
    random_ = random.Random(seed)
    rows, faults = [], {}
    for index in range(number):
        count = random_.choice((0, 1, 1, 2, 3)) if index % 3 else 0
        # without a patch there is nothing that could edit tests
        chosen = frozenset(random_.sample(FAULTS, count)) - ({"tests"} if random_.random() < 0.5 else {"patch"})
        rows.append(made(f"e{index:05d}", chosen, turns=random_.randint(1, 5)))
        faults[f"e{index:05d}"] = chosen
    return rows, faults
