"""Kill -9, signals, a full or broken disk, exhausted memory: the same command again gives the uninterrupted result, bit
for bit, makes nothing again that was finished, and leaves nothing half-made.

One recipe holds every stage that changes a model, and measures what each made. `burnish audit`, `burnish events fit`,
`burnish slim --rounds` and a node of several processes have their tests in their own rooms.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import warm
from burnish.core.ledger import read_rows
from small_models import PROSE
from warm import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PAIRS = Path(__file__).resolve().parents[2] / "examples" / "data" / "qa_feedback_120.jsonl"

FIRST = "auf 4 Bit gerundet grün"  # names may have spaces and more than ASCII
TWO = """
start: {model}
nodes:
  - {{name: auf 4 Bit gerundet grün, stage: quantize, method: rtn, bits: 4, group_size: 32}}
  - {{name: gptq, from: start, stage: quantize, method: gptq, bits: 3, group_size: 32, tokens: 2048}}
"""

EVERY_STAGE = """
start: {model}
evaluate: {{text: wikitext2-test, num_windows: 2, context: 64, speed: false}}
nodes:
  - {{name: tuned, stage: train, data: {text}, context: 64, batch: 4, steps: 6, save_every: 2}}
  - {{name: taught, from: start, stage: distill, teacher: tuned, data: {text}, context: 64, batch: 4, steps: 4,
      save_every: 2}}
  - {{name: liked, from: start, stage: align, loss: r3m-dpo, data: {pairs}, batch: 4, micro_batch: 2, max_steps: 4,
      max_length: 128, on_bad_pair: drop, save_every: 2}}
  - {{name: rounded, from: tuned, stage: quantize, method: yaqa, bits: 3, group_size: 32, tokens: 512, length: 64}}
  - {{name: experts, from: start, stage: upcycle, num_experts: 4, noise: 0.01}}
  - {{name: fewer, stage: slim, method: drop, num_experts: 3, tokens: 512, length: 64}}
"""
NODES = ("tuned", "taught", "liked", "rounded", "experts", "fewer")
KILLS_PER_NODE = 6
"""In `make test-long`: one in its saving, five at moments drawn over the whole time that it took. Else one of each."""


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def finished(run: Path) -> dict[str, int]:
    """{node: when its weights were written} of the checkpoints that are there under their names."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("nodes/[!.]*/model.safetensors")}


def measured(run: Path) -> list[tuple[str, str, object]]:
    """Every measurement of a run: node, checkpoint, values."""
    rows = [row for row in read_rows(run / "ledger.jsonl") if row["row"] == "measurement"]
    values = [{name: metric["value"] for name, metric in row["metrics"].items()} for row in rows]
    return [(row["node"], row["checkpoint"], value) for row, value in zip(rows, values, strict=True)]


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "two.yaml"
    path.write_text(TWO.format(model=tiny_llama))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    place = tmp_path_factory.mktemp("undisturbed")
    warm.run(place / "log", "run", recipe, "-o", place / "run")
    return place / "run"


def same(run: Path, reference: Path) -> bool:
    """Whether two runs made the same files and measured the same, and left nothing else."""
    contents = [
        ({path.name for path in place.iterdir()}, files(place / "nodes"), measured(place)) for place in (run, reference)
    ]
    return contents[0] == contents[1]


@dataclass(frozen=True)
class Undisturbed:
    """A run of every stage that nothing stopped, and how long each node took."""

    recipe: Path
    run: Path
    lengths: dict[str, float]


@pytest.fixture(scope="module")
def every_stage(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    place = tmp_path_factory.mktemp("every")
    recipe, text = place / "every.yaml", place / "prose.txt"
    text.write_text(PROSE.read_text())
    recipe.write_text(EVERY_STAGE.format(model=tiny_llama, text=text, pairs=PAIRS))
    begins: list[float] = []
    command = Command(place / "log", "run", recipe, "-o", place / "run")
    for name in NODES:
        assert command.wait_until(lambda name=name: f"{name}: " in command.output), command.output
        begins.append(time.monotonic())
    assert command.end() == 0, command.output
    lengths = [end - begin for begin, end in zip(begins, [*begins[1:], time.monotonic()], strict=True)]
    return Undisturbed(recipe, place / "run", dict(zip(NODES, lengths, strict=True)))


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS_PER_NODE, marks=pytest.mark.long)])
@pytest.mark.parametrize("node", NODES)
def test_killed_again_and_again_in_a_node_a_run_ends_with_the_same_bits(
    every_stage: Undisturbed, tmp_path: Path, node: str, kills: int
):
    """What was finished stays and is not made again; a kill that comes too late is repeated on a run begun anew."""
    run, log, moments, made = tmp_path / "run", tmp_path / "log", random.Random(node), {}

    def killed(wait: Callable[[Command], None]) -> bool:
        """Starts the command and kills it at some moment; False where it came to its end before."""
        command = Command(log, "run", every_stage.recipe, "-o", run)
        wait(command)
        in_time = command.is_running
        command.end(signal.SIGKILL)
        assert made.items() <= finished(run).items(), "what was finished stays, and is not made again"
        made.update(finished(run))
        return in_time

    def saving(command: Command) -> None:
        command.wait_until(lambda: any(run.glob(f"nodes/.{node}.*.tmp")))
        time.sleep(moments.uniform(0, 0.02))

    def at_some_moment(command: Command) -> None:
        command.wait_until(lambda: any(f"{name}: " in command.output for name in NODES[NODES.index(node) :]))
        time.sleep(moments.uniform(0, every_stage.lengths[node]))

    for attempt in range(kills):
        while not killed(at_some_moment if attempt else saving):
            assert same(run, every_stage.run)
            shutil.rmtree(run)
            made.clear()
    warm.run(log, "run", every_stage.recipe, "-o", run)
    assert made.items() <= finished(run).items()
    assert same(run, every_stage.run)


@pytest.mark.real_process
@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.long)])
def test_killed_as_a_group_of_real_processes_a_run_ends_with_the_same_bits(
    recipe: Path, undisturbed: Path, tmp_path: Path, kills: int
):
    """Commands as a shell starts them, killed with their nodes at moments drawn over the time that a run takes."""
    run, moments = tmp_path / "run", random.Random(1)
    command = [sys.executable, "-m", "burnish", "run", str(recipe), "-o", str(run)]

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    started = time.monotonic()
    assert begin().wait() == 0
    length = time.monotonic() - started
    shutil.rmtree(run)
    for _ in range(kills):
        made = finished(run)
        process = begin()
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, length))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        assert made.items() <= finished(run).items()
        if status == 0:  # it was quicker than its kill
            assert files(run / "nodes") == files(undisturbed / "nodes")
            shutil.rmtree(run)
    assert begin().wait() == 0
    assert files(run / "nodes") == files(undisturbed / "nodes")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_leaves_no_process_and_continues(
    recipe: Path, undisturbed: Path, tmp_path: Path, signum: signal.Signals
):
    run, log = tmp_path / "run", tmp_path / "log"
    command = Command(log, "run", recipe, "-o", run)
    assert command.wait_until(lambda: any(run.glob("work/gptq/statistics/*")))
    [node] = warm.children_of(command.pid)
    assert command.end(signum) == 130
    assert "the same command continues where it stopped" in command.output and "Traceback" not in command.output
    assert not warm.is_alive(node)
    warm.run(log, "run", recipe, "-o", run)
    assert files(run / "nodes") == files(undisturbed / "nodes")


@pytest.fixture(params=["by a signal", "by the kernel"])
def kill_for_memory(request: pytest.FixtureRequest) -> Iterator[Callable[[int], object]]:
    """What ends a process that takes too much memory: SIGKILL, sent here, or by a control group of 8 MB that it is put
    into; skipped where none can be made."""
    if request.param == "by a signal":
        yield lambda pid: os.kill(pid, signal.SIGKILL)
        return
    place = Path("/sys/fs/cgroup/memory") / f"burnish-test-{os.getpid()}"
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text("8000000")
    except OSError:
        pytest.skip("control groups of memory (version 1) cannot be made here")
    yield lambda pid: (place / "cgroup.procs").write_text(str(pid))
    place.rmdir()


def test_a_stage_killed_for_its_memory_says_what_to_lower_and_continues(
    recipe: Path, undisturbed: Path, tmp_path: Path, kill_for_memory: Callable[[int], object]
):
    run, log = tmp_path / "run", tmp_path / "log"
    command = Command(log, "run", recipe, "-o", run)
    assert command.wait_until(lambda: any(run.glob("work/gptq/statistics/*")))
    kill_for_memory(warm.children_of(command.pid)[0])
    assert command.end() == 1
    assert "most likely because memory ran out; lower " in command.output and "Traceback" not in command.output
    made = finished(run)
    warm.run(log, "run", recipe, "-o", run)
    assert set(made) == {FIRST} and made.items() <= finished(run).items()
    assert files(run / "nodes") == files(undisturbed / "nodes")


@pytest.mark.parametrize(("role", "number"), [("command", 1), ("command", 3), ("node", 1), ("node", 6)])
def test_a_failing_fsync_is_one_sentence_and_the_run_continues(
    recipe: Path, undisturbed: Path, tmp_path: Path, role: str, number: int
):
    """A disk that reports an error when it is told to keep what was written."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = Command(log, "run", recipe, "-o", run, fsync_fails=(role, number))
    assert command.end() == 1
    assert "Input/output error" in command.output and "Traceback" not in command.output, command.output
    assert all(json.loads((run / "nodes" / name / "burnish.json").read_text())["files"] for name in finished(run))
    warm.run(log, "run", recipe, "-o", run)
    assert files(run / "nodes") == files(undisturbed / "nodes")


def test_a_full_disk_is_one_sentence_and_the_run_continues_with_more_room(
    recipe: Path, undisturbed: Path, small_disk: Callable[[str], Path], tmp_path: Path
):
    run, log = small_disk("300k") / "run", tmp_path / "log"
    command = Command(log, "run", recipe, "-o", run)
    assert command.end() == 1
    assert "No space left on device" in command.output and "Traceback" not in command.output
    assert {path.name for path in run.glob("nodes/*")} <= {FIRST}, "a checkpoint is there whole or not at all"
    small_disk("50m")
    warm.run(log, "run", recipe, "-o", run)
    assert files(run / "nodes") == files(undisturbed / "nodes")


def test_a_read_only_place_is_one_sentence(recipe: Path, tmp_path: Path):
    place = tmp_path / "sealed"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a read-only file system is not allowed here")
    try:
        command = Command(tmp_path / "log", "run", recipe, "-o", place / "run")
        assert command.end() == 1
        assert "Read-only file system" in command.output and "Traceback" not in command.output
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)
