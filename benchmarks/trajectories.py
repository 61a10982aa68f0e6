"""What do many long episodes cost to filter and mask, in processor time and in memory, and does a killed run go on?

    python benchmarks/trajectories.py --model models/smollm2 --work runs/trajectories --minutes 8    # again, until done

`burnish data trajectories` on made episodes of 50 turns, each turn a thought, a call and its answer (25 KB an episode),
of which half have one planted fault of six kinds; no episode's text is that of another. Messages alone, and token ids
with the vocabulary of SmolLM2 and a template that writes calls. Every run is a process of its own; its processor
seconds and its largest resident memory are those that the kernel counts, and its funnel must be what was planted. One
more run is killed when half of its rows are written, goes on, and must end with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import experiment
import numpy as np

TURNS = 5 if experiment.SMOKE else 50
MESSAGES = (20, 40) if experiment.SMOKE else (2_000, 5_000, 10_000)
MASKED = (20, 40) if experiment.SMOKE else (250, 500)
PROCESSES = 2
FAULTS = ("verified=1", "budget=0", "repeats=3", "patch", "tests")
"""What the filters call them; the sixth kind is a change that another episode of the task has made."""
GOAL = 100_000
KEPT, PART = 0.4, 64
"""Share of the episodes that is kept, and episodes that are written at once."""
TEXT = "the file has a line that fails when value is read from an empty list so it must be checked before use"
TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{%- for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}"
    "{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def episode(number: int) -> dict[str, Any]:
    """Of ten in a row five have a fault each, and the last makes the change of the one before it."""
    draw = random.Random(number)

    def words(count: int) -> str:
        return " ".join(draw.choices(TEXT.split(), k=count))

    fault = FAULTS[number % 10] if number % 10 < len(FAULTS) else ""
    task = number - 1 if number % 10 == 9 else number
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Mend task {task}: {words(20)}"}]
    for turn in range(TURNS - 1):
        same = fault == "repeats=3" and turn < 3
        arguments = {"command": "pytest" if same else f"grep -n {words(2)} src/part{turn}.py"}
        call = {"id": f"c{turn}", "function": {"name": "bash", "arguments": json.dumps(arguments)}}
        messages.append({"role": "assistant", "content": words(15), "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": words(50)})
    messages.append({"role": "assistant", "content": f"It is mended: {words(20)}"})
    file = "tests/test_a.py" if fault == "tests" else "src/a.py"
    patch = f"--- a/{file}\n+++ b/{file}\n@@ -1,1 +1,1 @@\n-    return 0\n+    return {task}\n"
    return {
        "id": f"e{number:07d}",
        "task": f"task {task}",
        "reward": 0.0 if fault == "verified=1" else 1.0,
        "patch": "" if fault == "patch" else patch,
        "exit_status": "exit_cost" if fault == "budget=0" else "submitted",
        "messages": messages,
    }


class Bench(experiment.Kept):
    """What is measured, by name: "messages; 2000; 0", "masked; 250; 2" (processes) and "killed"."""

    def __init__(self, work: Path, model: Path) -> None:
        super().__init__(work)
        self.work, self.model = work, model

    def names(self) -> Iterator[str]:
        yield from (f"messages; {number}; 1" for number in MESSAGES)
        yield from (f"masked; {number}; 1" for number in MASKED)
        yield f"masked; {MASKED[-1]}; {PROCESSES}"
        yield "killed"

    def measure(self, name: str) -> dict[str, Any]:
        if name == "killed":
            return self.killed()
        what, number, workers = name.split("; ")
        found = self.run_command(what, int(number), int(workers), self.work / "out")
        self.check(int(number))
        return found | {"sha256": self.rows()}

    def command(self, what: str, number: int, workers: int, out: Path) -> list[str]:
        options = ["--workers", str(workers), "-o", str(out), "--overwrite"]
        options += [] if what == "messages" else ["--tokenizer", str(self.tokenizer())]
        return [sys.executable, "-m", "burnish", "data", "trajectories", str(self.file(f"{number} episodes")), *options]

    def run_command(self, what: str, number: int, workers: int, out: Path) -> dict[str, Any]:
        """Processor seconds and the largest memory of one process, as the kernel tells when it has ended."""
        self.write_episodes(number)
        before = os.times()
        process = subprocess.Popen(self.command(what, number, workers, out), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"the command has failed with {process.returncode}")
        after = os.times()
        seconds = (after.children_user + after.children_system) - (before.children_user + before.children_system)
        return {"cpu_seconds": round(seconds, 1), "bytes": 1024 * usage.ru_maxrss}

    def killed(self) -> dict[str, Any]:
        number, out = MASKED[-1], self.work / "out"
        shutil.rmtree(out)
        parts = out.with_name("out.work") / "parts"
        half = max(1, round(number * KEPT / PART / 2))
        process = subprocess.Popen(self.command("masked", number, 1, out), stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(parts.glob("part*"))) < half:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = len(list(parts.glob("part*")))
        found = self.run_command("masked", number, 1, out)
        return found | {"sha256": self.rows(), "parts_there": there}

    def check(self, number: int) -> None:
        """Refuses a funnel that is not what was planted."""
        funnel = json.loads((self.work / "out" / "about.json").read_text())["funnel"]
        dropped = {step["filter"]: step["dropped"] for step in funnel if step["dropped"]}
        assert dropped == dict.fromkeys((*FAULTS, "duplicates"), number // 10), dropped

    def rows(self) -> str:
        with (self.work / "out" / "rows.jsonl").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write_episodes(self, number: int) -> None:
        path = self.file(f"{number} episodes")
        if not path.is_file():
            part = path.with_suffix(".part")
            with part.open("w") as file:
                file.writelines(json.dumps(episode(one)) + "\n" for one in range(number))
            part.rename(path)

    def file(self, name: str) -> Path:
        return super().file(name) if not name.endswith("episodes") else self.work / f"{name.replace(' ', '-')}.jsonl"

    def tokenizer(self) -> Path:
        """That of the model, with a template that writes calls."""
        place = self.work / "tokenizer"
        if not place.is_dir():
            part = self.work / "tokenizer.part"
            part.mkdir(exist_ok=True)
            for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
                shutil.copy(self.model / name, part / name)
            (part / "chat_template.jinja").write_text(TEMPLATE)
            part.rename(place)
        return place


def line(sizes: tuple[int, ...], values: list[float]) -> dict[str, float]:
    """Least squares: what an episode costs, and the value at the goal by that line."""
    each, base = np.polyfit(sizes, values, 1)
    return {"each": float(each), "at_goal": float(base + each * GOAL)}


def summary(bench: Bench) -> dict[str, Any]:
    runs = {name: bench.read(name) for name in bench.names()}
    same = {
        run["sha256"] for name, run in runs.items() if name == "killed" or name.startswith(f"masked; {MASKED[-1]};")
    }
    if len(same) > 1:
        raise SystemExit("rows differ between one process, several, and a run that was killed")
    found = {}
    for what, sizes in (("messages", MESSAGES), ("masked", MASKED)):
        of = [runs[f"{what}; {number}; 1"] for number in sizes]
        found[what] = {key: line(sizes, [run[key] for run in of]) for key in ("cpu_seconds", "bytes")}
    return {"turns": TURNS, "goal": GOAL, "runs": runs, "lines": found}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    lines = []
    for name, run in results["runs"].items():
        if name == "killed":
            cells = [f"token ids, killed at {run['parts_there']} parts, the rest", lines[-1][1], "1"]
        else:
            what, number, workers = name.split("; ")
            cells = ["messages" if what == "messages" else "token ids", f"{int(number):,}", workers]
        lines.append([*cells, f"{run['cpu_seconds']:.0f}", f"{run['bytes'] / 1e6:.0f}"])
    for what, title in (("messages", "messages"), ("masked", "token ids")):
        ends = results["lines"][what]
        seconds, size = ends["cpu_seconds"]["at_goal"], ends["bytes"]["at_goal"]
        lines.append([f"{title}, extrapolated", f"{results['goal']:,}", "1", f"{seconds:.0f}", f"{size / 1e6:.0f}"])
    columns = f"episodes of {results['turns']} turns as | how many: | processes: | CPU seconds: | peak MB:"
    return {"scale": experiment.table(columns, lines)}


if __name__ == "__main__":
    COMMAND = experiment.Command(__file__, __doc__)
    COMMAND.add_argument("--model", type=Path, default=Path("models/smollm2"))
    COMMAND.keeps()
    OPTIONS = COMMAND.read()
    BENCH = Bench(OPTIONS.work, OPTIONS.model)
    note = "CPU seconds of all processes, shared with other work; memory of the one that was started"
    experiment.answer(BENCH, OPTIONS, __doc__, lambda: summary(BENCH), tables, note=note)
