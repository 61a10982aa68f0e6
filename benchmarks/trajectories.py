"""What do many long episodes cost to filter and mask, in processor time and in memory, and does a killed run go on?

    python benchmarks/trajectories.py --model models/smollm2 --work runs/trajectories --minutes 8    # again, until done

`burnish data trajectories` on made episodes of 50 turns, each turn a thought, a call and its answer (25 KB an episode),
of which half have one planted fault of six kinds; no episode's text is that of another. Messages alone, and token ids
with the vocabulary of SmolLM2 and a template that writes calls. Every run is a process of its own; its processor
seconds and its largest resident memory are those that the kernel counts, and its funnel must be what was planted. Two
more runs are killed and go on: one of token ids when half of its rows are written, which must end with the same bytes;
and one of 100,000 episodes' messages, when half of them have been looked at and again when half of its rows are there,
which must end with every episode that was planted without a fault, in order.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import experiment

TURNS = 5 if experiment.SMOKE else 50
MESSAGES = (20,) if experiment.SMOKE else (2_000, 5_000, 10_000)
MASKED = (20, 40) if experiment.SMOKE else (250, 500)
PROCESSES = 2
FAULTS = ("verified=1", "budget=0", "repeats=3", "patch", "tests")
"""What the filters call them; the sixth kind is a change that another episode of the task has made."""
GOAL = 3_000 if experiment.SMOKE else 100_000
KEPT, PART, LOOKED = 0.4, 64, 1024
"""Share of the episodes that is kept, episodes that are written at once, and those looked at that are kept together."""
KILLED, LARGEST = f"killed; masked; {MASKED[-1]}; 1", f"killed; messages; {GOAL}; 1"
TITLES = {"messages": "messages", "masked": "token ids"}
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
    """What is measured, by name: "messages; 2000; 1", "masked; 250; 2" (processes), and these with "killed" before."""

    def __init__(self, work: Path, model: Path) -> None:
        super().__init__(work)
        self.work, self.model = work, model

    def names(self) -> Iterator[str]:
        yield from (f"messages; {number}; 1" for number in MESSAGES)
        yield from (f"masked; {number}; 1" for number in MASKED)
        yield f"masked; {MASKED[-1]}; {PROCESSES}"
        yield from (KILLED, LARGEST)

    def measure(self, name: str) -> dict[str, Any]:
        what, number, workers = name.removeprefix("killed; ").split("; ")
        if name.startswith("killed"):
            half = max(1, round(int(number) * KEPT / PART / 2))
            moments = {"parts/part*": half}
            if name == LARGEST:
                moments = {"looked/*-*": max(1, int(number) // LOOKED // 2)} | moments
            found = self.killed(what, int(number), moments)
        else:
            found = self.run_command(what, int(number), int(workers), self.work / "out")
        self.check(int(number))
        return found | {"sha256": self.rows()}

    def command(self, what: str, number: int, workers: int, out: Path) -> list[str]:
        options = ["--workers", str(workers), "-o", str(out), "--overwrite"]
        options += [] if what == "messages" else ["--tokenizer", str(self.tokenizer())]
        return [sys.executable, "-m", "burnish", "data", "trajectories", str(self.file(f"{number} episodes")), *options]

    def run_command(
        self, what: str, number: int, workers: int, out: Path, until: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """Processor seconds and the largest memory of one process, as the kernel tells when it has ended.

        Args:
            what, number, workers, out: of the command.
            until: kills it as soon as this holds.
        """
        self.write_episodes(number)
        before = os.times()
        process = subprocess.Popen(self.command(what, number, workers, out), stdout=subprocess.DEVNULL)
        while until is not None and not until():
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                if experiment.SMOKE:  # so few episodes that it may have
                    break
                raise SystemExit("the command has ended before it was killed")
            time.sleep(0.02)
        if until is not None:
            os.kill(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and until is None:
            raise SystemExit(f"the command has failed with {process.returncode}")
        after = os.times()
        seconds = (after.children_user + after.children_system) - (before.children_user + before.children_system)
        return {"cpu_seconds": round(seconds, 1), "bytes": 1024 * usage.ru_maxrss}

    def killed(self, what: str, number: int, moments: dict[str, int]) -> dict[str, Any]:
        """Started anew after every moment at which it is killed: when so many entries of a kind are in its work."""
        out = self.work / "out"
        work = out.with_name("out.work")
        for place in (out, work):
            shutil.rmtree(place, ignore_errors=True)
        self.write_episodes(number)
        starts, there = [], []
        for kind, count in moments.items():

            def due(kind: str = kind, count: int = count) -> bool:
                return len(list(work.glob(kind))) >= count

            starts.append(self.run_command(what, number, 1, out, until=due))
            there.append(len(list(work.glob(kind))))
        starts.append(self.run_command(what, number, 1, out))
        seconds = [one["cpu_seconds"] for one in starts]
        return {"cpu_seconds": seconds[-1], "all_starts": seconds, "there": there} | {
            "bytes": max(one["bytes"] for one in starts)
        }

    def check(self, number: int) -> None:
        """Refuses a funnel that is not what was planted, and other rows than those without a fault, in order."""
        funnel = json.loads((self.work / "out" / "about.json").read_text())["funnel"]
        dropped = {step["filter"]: step["dropped"] for step in funnel if step["dropped"]}
        assert dropped == dict.fromkeys((*FAULTS, "duplicates"), number // 10), dropped
        with (self.work / "out" / "rows.jsonl").open() as file:
            ids = [json.loads(line)["id"] for line in file]
        assert ids == [f"e{one:07d}" for one in range(number) if len(FAULTS) <= one % 10 < 9], "other rows are kept"

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


def summary(bench: Bench) -> dict[str, Any]:
    runs = {name: bench.read(name) for name in bench.names()}
    same = {run["sha256"] for name, run in runs.items() if f"masked; {MASKED[-1]};" in name}
    if len(same) > 1:
        raise SystemExit("rows differ between one process, several, and a run that was killed")
    return {"turns": TURNS, "runs": runs}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    lines = []
    for name, run in results["runs"].items():
        what, number, workers = name.removeprefix("killed; ").split("; ")
        title, seconds = TITLES[what], run["cpu_seconds"]
        if name == KILLED:
            title += f", killed at {run['there'][0]} parts, the rest"
        elif name == LARGEST:
            title += ", killed twice, all starts"
            seconds = sum(run["all_starts"])
        lines.append([title, f"{int(number):,}", workers, f"{seconds:.0f}", f"{run['bytes'] / 1e6:.0f}"])
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
