"""`burnish reason serve` as a process: it says where it listens, is killed and goes on, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from burnish.cli import main
from burnish.core.engines import EngineProcess
from burnish.reason import JournalReader

CHAT: list[Any] = [{"role": "user", "content": "The licence"}]
COMMAND = [sys.executable, "-m", "burnish", "reason", "serve"]


def ask(url: str, model: str, **fields: Any) -> Any:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    return client.chat.completions.create(**{"model": model, "messages": CHAT, "max_tokens": 8, "seed": 1} | fields)


@pytest.mark.slow
@pytest.mark.real_process
def test_a_server_that_is_killed_goes_on_from_its_journal(tmp_path: Path, tiny_llama: Path):
    kept = tmp_path / "kept"
    command = [*COMMAND, "--local", str(tiny_llama), "--name", "tiny", "--port", "{port}", "--out", str(kept)]
    with EngineProcess(command, log=tmp_path / "log") as engine:
        whole = ask(engine.url, "self-consistency:4@tiny")
        first = ask(engine.url, "tiny", stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in first)
        os.killpg(next_group(engine), signal.SIGKILL)
    assert JournalReader(kept).paid()["tiny"].usage.calls == 4
    with EngineProcess(command, log=tmp_path / "log") as engine:
        again = ask(engine.url, "self-consistency:4@tiny")
        longer = ask(engine.url, "self-consistency:6@tiny")
    assert again.choices == whole.choices and again.usage == whole.usage
    assert longer.to_dict()["burnish"]["calls"] == 6
    assert JournalReader(kept).paid()["tiny"].usage.calls == 6  # four of them were there
    assert JournalReader(kept).problems() == []


def next_group(engine: EngineProcess) -> int:
    import psutil

    (found,) = [one for one in psutil.Process(os.getpid()).children(recursive=True) if "serve" in one.cmdline()[4:5]]
    return found.pid


@pytest.mark.slow
@pytest.mark.real_process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_quietly(number: int):
    options = ["--upstream", "http://127.0.0.1:1/v1", "--port", "0"]
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith("serving http://127.0.0.1:1/v1 at http://127.0.0.1:")
    with pytest.raises(openai.InternalServerError, match="cannot be reached"):
        ask(line.split()[-1], "m")
    process.send_signal(number)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --upstream or --local"),
        (["--upstream", "http://x/v1", "--local", "y"], "give either --upstream or --local"),
        (["--upstream", "127.0.0.1:8000"], "is no address of a server"),
        (["--upstream", "http://x/v1/chat/completions"], "ends with a route"),
        (["--upstream", "http://x/v1", "--port", "99999"], "port"),
        (["--upstream", "http://x/v1", "--timeout", "0"], "timeout"),
        (["--upstream", "http://x/v1", "--concurrency", "0"], "concurrency"),
        (["--upstream", "http://x/v1", "--host", "0.0.0.0"], "set BURNISH_SERVE_KEY"),
        (["--upstream", "http://x/v1", "--verifier", "none"], "there is no verifier"),
        (["--local", "/nowhere"], "/nowhere"),
        (["--local", "/nowhere", "--rows", "0"], "rows"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("BURNISH_SERVE_KEY", raising=False)
    with pytest.raises(SystemExit):
        main(["reason", "serve", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
