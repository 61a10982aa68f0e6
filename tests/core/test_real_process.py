"""How a node's process starts and ends: what only a real Python process, on a real terminal, can show."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from burnish.core.children import childs_environment
from burnish.core.runner.directory import locked

pytestmark = [pytest.mark.real_process, pytest.mark.slow, pytest.mark.timeout(900)]

BURNISH = [sys.executable, "-P", "-m", "burnish"]
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 40


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with modules that must not be taken for others of the same names."""
    (tmp_path / "text.txt").write_text(TEXT)
    for name in ("torch", "statistics"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    return tmp_path


def recipe(place: Path, model: Path, *, steps: int, launch: str = "") -> Path:
    settings = f"data: {place / 'text.txt'}, context: 32, batch: 4, steps: {steps}, save_every: 2{launch}"
    text = f"start: {model}\nnodes:\n  - {{name: tuned, stage: train, {settings}}}\n"
    (place / "recipe.yaml").write_text(text)
    return place / "recipe.yaml"


@pytest.mark.parametrize("launch", ["", ", launch: {processes: 2}"], ids=["one process", "torchrun"])
def test_nothing_in_the_working_directory_is_executed(tiny_llama: Path, place: Path, launch: str):
    command = [*BURNISH, "run", recipe(place, tiny_llama, steps=2, launch=launch), "-o", "run"]
    environment = os.environ | {"PYTHONPATH": os.environ["PYTHONPATH"].strip(os.pathsep)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert not (place / "executed").exists(), (place / "executed").read_text()
    assert done.returncode == 0, done.stderr
    assert (place / "run" / "nodes" / "tuned" / "model.safetensors").is_file()


GRADE = """
from burnish.verify import verifier
with verifier("math") as grader:
    assert grader.grade(r"\\frac12", {"answer": "0.5"}) == 1
"""


def test_processes_that_grade_execute_nothing_in_the_working_directory(place: Path):
    for name in ("json", "sympy", "math_verify"):
        shutil.copy(place / "torch.py", place / f"{name}.py")
    done = subprocess.run([sys.executable, "-P", "-c", GRADE], cwd=place, capture_output=True, text=True)
    assert not (place / "executed").exists(), (place / "executed").read_text()
    assert done.returncode == 0, done.stderr


def test_an_empty_entry_of_the_search_path_is_not_handed_on(monkeypatch: pytest.MonkeyPatch):
    """`PYTHONPATH=/some/where:$UNSET` ends with one, and it means the working directory."""
    monkeypatch.setenv("PYTHONPATH", "/some/where:")
    environment = childs_environment("burnish.train.stage")
    entries = environment["PYTHONPATH"].split(os.pathsep)
    assert entries[0] == "/some/where" and "" not in entries
    assert environment["PYTHONSAFEPATH"] == "1"


class Terminal:
    """A command on a terminal of its own, as its foreground process."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.output = b""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(cwd)
            os.execv(command[0], command)
        os.set_blocking(self.screen, False)

    def read(self) -> None:
        try:
            self.output += os.read(self.screen, 100_000)
        except (BlockingIOError, OSError):
            time.sleep(0.02)

    def read_until(self, text: bytes, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, self.output.decode(errors="replace")
            self.read()

    def press(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self.screen, key)
            time.sleep(0.05)

    def end(self) -> int:
        while True:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.read()
                return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("launch", ["", ", launch: {processes: 2}"], ids=["one process", "torchrun"])
def test_ctrl_c_on_a_terminal_is_one_sentence_and_the_same_command_continues(
    tiny_llama: Path, place: Path, launch: str
):
    command = [*BURNISH, "run", str(recipe(place, tiny_llama, steps=2000, launch=launch)), "-o", str(place / "run")]
    terminal = Terminal(command, place)
    states = place / "run" / "work" / "tuned" / "states"
    while not list(states.glob("step-*")):
        terminal.read()
    children = psutil.Process(terminal.pid).children(recursive=True)
    assert children
    os.write(terminal.screen, b"\x03")
    assert terminal.end() == 130
    said = terminal.output.decode(errors="replace")
    assert "Traceback" not in said and "site-packages" not in said, said
    assert "burnish: interrupted; the same command continues where it stopped" in said
    assert said.rstrip().count("interrupted") == 1
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l"), "the cursor is shown again"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive

    again = Terminal(command, place)
    again.read_until(b"continuing after step")
    os.write(again.screen, b"\x03")
    time.sleep(0.05)
    os.write(again.screen, b"\x03")  # twice, as people do
    again.end()
    assert "site-packages" not in again.output.decode(errors="replace")
    assert list(states.glob("step-*"))


def test_a_terminal_that_is_closed_leaves_no_process_and_loses_nothing(tiny_llama: Path, place: Path):
    command = [*BURNISH, "run", str(recipe(place, tiny_llama, steps=2000)), "-o", str(place / "run")]
    terminal = Terminal(command, place)
    states = place / "run" / "work" / "tuned" / "states"
    while not list(states.glob("step-*")):
        terminal.read()
    children = psutil.Process(terminal.pid).children(recursive=True)
    os.close(terminal.screen)  # SIGHUP
    os.waitpid(terminal.pid, 0)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    again = Terminal(command, place)
    again.read_until(b"continuing after step")
    os.kill(again.pid, signal.SIGTERM)
    again.end()


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run makes that nothing stops."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "text.txt").write_text(TEXT)
    return made(directory, tiny_llama)


def made(place: Path, model: Path) -> dict[str, bytes]:
    """Runs to the end, and reads the checkpoint."""
    command = [*BURNISH, "run", recipe(place, model, steps=STEPS), "-o", "run"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (place / "run" / "nodes" / "tuned").iterdir()}


STEPS = 100
ENDS = {
    "Ctrl-C": lambda terminal: terminal.press(b"\x03"),
    "Ctrl-C twice": lambda terminal: terminal.press(b"\x03", b"\x03"),
    "SIGTERM": lambda terminal: os.kill(terminal.pid, signal.SIGTERM),
    "SIGHUP": lambda terminal: os.close(terminal.screen),
}


@pytest.mark.parametrize("how", ENDS)
def test_whatever_ends_it_the_same_command_makes_the_same_bits(
    tiny_llama: Path, tmp_path: Path, undisturbed: dict[str, bytes], how: str
):
    (tmp_path / "text.txt").write_text(TEXT)
    terminal = Terminal([*BURNISH, "run", str(recipe(tmp_path, tiny_llama, steps=STEPS)), "-o", "run"], tmp_path)
    while not list((tmp_path / "run" / "work" / "tuned" / "states").glob("step-*")):
        terminal.read()
    children = psutil.Process(terminal.pid).children(recursive=True)
    assert children
    ENDS[how](terminal)
    assert terminal.end() == (-signal.SIGHUP if how == "SIGHUP" else 130)
    said = terminal.output.decode(errors="replace")
    assert "Traceback" not in said, said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not (tmp_path / "run" / "nodes" / "tuned").exists()
    with locked(tmp_path / "run"):
        pass
    assert made(tmp_path, tiny_llama) == undisturbed


@pytest.mark.parametrize("after", [0.15, 0.4, 1.5])
def test_ctrl_c_before_anything_has_begun_is_one_sentence(tiny_llama: Path, place: Path, after: float):
    """While libraries are imported, and while the recipe is planned."""
    terminal = Terminal([*BURNISH, "run", str(recipe(place, tiny_llama, steps=2000)), "-o", "run"], place)
    time.sleep(after)
    terminal.press(b"\x03", b"\x03")
    assert terminal.end() in (130, -signal.SIGINT)  # the latter where a library was just executing text
    said = terminal.output.decode(errors="replace")
    assert "Traceback" not in said and said.count("burnish: interrupted") == 1, said
