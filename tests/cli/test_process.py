"""The command as a process: how it starts in any locale, and how it ends when nobody reads it or somebody stops it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.core.checkpoint import Model, load
from burnish.core.errors import OutputError

pytestmark = pytest.mark.real_process

BURNISH = [sys.executable, "-P", "-m", "burnish"]
UNREAD = 141
"""What a shell says of a tool whose reader has left: 128 and the number of SIGPIPE."""

INTERRUPT_AT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from burnish.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["burnish.cli", "cyclopts", "burnish.methods", "burnish.cli.doctor"])
def test_ctrl_c_while_something_is_imported_is_one_sentence(module: str):
    script = INTERRUPT_AT.format(module=module)
    done = subprocess.run([sys.executable, "-c", script, "methods"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "burnish: interrupted\n")


STARTS_NATIVE_CODE = """
import ctypes, os, signal

@ctypes.PYFUNCTYPE(None)
def callback():
    os.kill(os.getpid(), {name})

callback()
with open({done!r}, "w") as file:
    file.write("imported")
"""

RUNS_A_STAGE = """
import os, signal
from burnish.core.interrupts import listen
from burnish.core.runner.process import terminated_like_interrupted

def work():
    import native

def node():
    try:
        return work()
    finally:
        print("cleaned up")

listen()
with terminated_like_interrupted():
    for press in range(2):
        try:
            node()
        except KeyboardInterrupt:
            print("interrupted", press)
"""


@pytest.mark.parametrize("name", ["signal.SIGINT", "signal.SIGTERM"])
def test_a_library_whose_native_code_has_begun_is_imported_to_its_end_and_the_signal_is_not_lost(
    name: str, tmp_path: Path
):
    """An exception in the callback would end the process (C++), or nobody would see it (C, as here)."""
    done = tmp_path / "done"
    (tmp_path / "native.py").write_text(STARTS_NATIVE_CODE.format(name=name, done=str(done)))
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{RUNS_A_STAGE}"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (said.returncode, said.stderr, said.stdout) == (0, "", "cleaned up\ninterrupted 0\ncleaned up\n")
    assert done.read_text() == "imported"


RUNS_WHERE_IT_IS_IMPORTED = """
import os, signal, time
from burnish.core.runner.process import terminated_like_interrupted

with terminated_like_interrupted():
    try:
        import native
        print("behind the import")
    except KeyboardInterrupt:
        print("interrupted")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("went on")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_script_that_is_imported_itself_can_be_ended_before_its_end(tmp_path: Path):
    (tmp_path / "native.py").write_text(STARTS_NATIVE_CODE.format(name="signal.SIGTERM", done=str(tmp_path / "done")))
    (tmp_path / "job.py").write_text(RUNS_WHERE_IT_IS_IMPORTED)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport job"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (said.returncode, said.stderr, said.stdout) == (0, "", "interrupted\ninterrupted\n")
    assert (tmp_path / "done").read_text() == "imported"


RUNS_A_COROUTINE = """
import asyncio, os, signal, sys
from burnish.core import interrupts

def press():
    os.kill(os.getpid(), signal.SIGINT)

async def work():
    try:
        press()
        await asyncio.sleep(60)
    finally:
        for _ in range({more}):
            press()
        await asyncio.sleep(0.01)
        print("closed")

interrupts.listen()
try:
    interrupts.run(work())
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is interrupts.interrupt)
"""


@pytest.mark.parametrize(("more", "said"), [(0, "closed\n"), (1, "closed\n"), (2, "")])
def test_a_coroutine_closes_what_it_has_open_unless_ctrl_c_is_pressed_three_times(more: int, said: str):
    """Raised in the loop, a second press left calls open: hundreds of lines, and not the one that says how to go on."""
    done = subprocess.run([sys.executable, "-c", RUNS_A_COROUTINE.format(more=more)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{said}interrupted True\n")
    assert more == 2 or done.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["methods"], ["quantize", "--help"]])
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*BURNISH, *arguments], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (UNREAD, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["methods"]])
def test_output_that_cannot_be_written_is_one_sentence(arguments: list[str]):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*BURNISH, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "burnish: error: No space left on device\n")


def test_without_any_output_the_command_still_works():
    assert subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *BURNISH, "methods"]).returncode == 0


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_names_of_files_are_utf8_in_any_locale(tiny_llama: Path, tmp_path: Path):
    """The libraries below take them so: the one of tokenizers, and the process of the node."""
    command = [*BURNISH, "quantize", tiny_llama, "--method", "rtn", "--group-size", "32", "-o", "größe"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ASCII, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "größe" / "tokenizer.json").is_file()


def test_what_a_terminal_cannot_show_is_shown_as_an_escape(tmp_path: Path):
    command = [*BURNISH, "data", "chain", "-n", "2", "-o", "größe.jsonl"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "gr\\xf6\\xdfe.jsonl" in done.stdout, done.stderr


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path):
    for place, argument in ((tmp_path, b"x\xff"), (Path(os.fsdecode(bytes(tmp_path) + b"/d\xff")), b"x")):
        place.mkdir(exist_ok=True)
        done = subprocess.run([*BURNISH, "plan", argument], cwd=place, capture_output=True, text=True)
        assert done.returncode == 1 and "is not in UTF-8; give the file or the directory another name" in done.stderr


def test_a_working_directory_that_was_deleted_is_named(tmp_path: Path):
    (tmp_path / "gone").mkdir()
    script = 'cd "$0" && rmdir "$0" && shift 0 && exec "$@"'
    command = ["sh", "-c", script, str(tmp_path / "gone"), *BURNISH, "run", "r.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    sentence = f"burnish: error: {tmp_path / 'gone'}: has been deleted while a shell was in it; cd to another\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_of_two_processes_with_one_place_the_first_to_end_has_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second says so, and what the first has made stays."""
    model, whole = load(tiny_llama), Model._write

    def slow(self: Model, directory: Path) -> None:
        whole(self, directory)
        faster = multiprocessing.get_context("fork").Process(target=_save, args=(whole, self, tmp_path / "out"))
        faster.start()
        faster.join()
        assert faster.exitcode == 0

    monkeypatch.setattr(Model, "_write", slow)
    with pytest.raises(OutputError, match="out: was made by another process in the meantime, and stays"):
        model.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    load(tmp_path / "out")


def _save(write: Callable[[Model, Path], None], model: Model, place: Path) -> None:
    Model._write = write
    model.save(place)
