"""Episodes to begin with: sums that are worked out with a calculator, by a script that is often careless.

python examples/calculator_episodes.py runs/calculator [NUMBER [SEED]]

Six in ten episodes ask the calculator for the sum and give what it answers. The others call it with a digit changed,
change a digit of its answer, or guess without it. Every call is really run. A model that learns from them can use the
tool, and does so reliably only after training by rewards: `burnish align grpo MODEL --env calculator`.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from burnish.align.envs import SumsEnv
from burnish.align.tools import CALCULATOR

WAYS = {"careful": 6, "asks for another sum": 2, "misreads": 1, "guesses": 1}
"""How the script goes about a problem, and how often."""


def with_a_digit_changed(text: str, draw: random.Random) -> str:
    """The text with one of its digits replaced by another."""
    place = draw.choice([place for place, letter in enumerate(text) if letter.isdigit()])
    return text[:place] + draw.choice([digit for digit in "123456789" if digit != text[place]]) + text[place + 1 :]


def episode(problem: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One attempt at a problem, as a chat."""
    question, right = str(problem["question"]), str(problem["answer"])
    way = draw.choices(list(WAYS), list(WAYS.values()))[0]
    said: list[dict[str, Any]] = [{"role": "user", "content": question}]
    answer = with_a_digit_changed(right, draw)
    if way != "guesses":
        asked = with_a_digit_changed(question, draw) if way == "asks for another sum" else question
        arguments = {"expression": asked}
        found = CALCULATOR(arguments)
        call = {"id": "call-1", "type": "function", "function": {"name": CALCULATOR.name, "arguments": arguments}}
        said.append({"role": "assistant", "content": "", "tool_calls": [call]})
        said.append({"role": "tool", "tool_call_id": "call-1", "name": CALCULATOR.name, "content": found})
        answer = with_a_digit_changed(found, draw) if way == "misreads" else found
    said.append({"role": "assistant", "content": answer})
    return {"id": problem["id"], "messages": said, "tools": [CALCULATOR.schema]}


def main(out: str, number: int = 6000, seed: int = 1) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"ways {seed}")
    rows = [episode(problem, draw) for problem in SumsEnv(number, seed).problems]
    (Path(out) / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {number} episodes of a script with a calculator")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
