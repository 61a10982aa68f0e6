"""`burnish reason run --verifier code`: programs are graded from the command line, and never where nothing isolates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.verify import Wall, sandbox, walls
from exact_server import ExactServer, text_of

HUMANEVAL = {
    "task_id": "T/0",
    "prompt": "def twice(x):\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}
LIVECODEBENCH = {
    "question_id": "sum",
    "question_content": "Add two numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n"}]),
    "private_test_cases": json.dumps([{"input": "5 6\n", "output": "11\n"}]),
    "metadata": "{}",
}


def writes_programs(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
    body = "def twice(x): return x + x" if "twice" in text_of(messages) else "print(sum(map(int, input().split())))"
    return f"Here it is.\n```python\n{body}\n```"


@pytest.fixture
def command(tmp_path: Path) -> Any:
    data = tmp_path / "programs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (HUMANEVAL, LIVECODEBENCH)))
    with ExactServer(rule=writes_programs) as server:
        place = ["--base-url", server.url, "--model", "exact", "-o", str(tmp_path / "run"), "--strategy", "direct"]
        yield lambda *more: main(["reason", "run", str(data), *place, *more])


@pytest.mark.skipif(not all(wall.holds for wall in walls()), reason="no isolation here")
def test_files_in_both_published_shapes_are_graded(command: Any, capsys: pytest.CaptureFixture[str]):
    command("--verifier", "code")
    assert "direct: 1.000" in capsys.readouterr().out


def test_code_without_isolation_is_refused_and_the_advice_works(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sandbox, "walls", lambda: (Wall("network", False, "connected"),))
    with pytest.raises(SystemExit):
        command("--verifier", "code")
    assert "--unsafe-code" in capsys.readouterr().err
    command("--verifier", "code", "--unsafe-code")
    assert "direct: 1.000" in capsys.readouterr().out


def test_the_flag_means_nothing_to_another_verifier(command: Any, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command("--verifier", "exact", "--unsafe-code")
    assert "--unsafe-code: is of no use to the verifier 'exact'" in capsys.readouterr().err
