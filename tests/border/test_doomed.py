"""A recipe that cannot end well is refused before any of its nodes starts, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from doomed import DOOMED
from malformed import NORM, tensors

from burnish.cli import main
from burnish.core.runner import run as runner
from small_models import PROSE

TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
ANSWER = {"prompt": "Why? ", "chosen": "Because.", "rejected": "No."}


@pytest.fixture
def place(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an input and data, in which no node may start."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "teacher"):
        shutil.copytree(tiny_llama, name)
    tensors(lambda state: {name: tensor for name, tensor in state.items() if name != NORM})(Path("teacher"))
    Path("text.txt").write_text(PROSE.read_text())
    Path("other.txt").write_text(PROSE.read_text()[1:])
    Path("short.txt").write_text("Too short. " * 5)
    Path("empty.txt").write_text(" ")
    Path("binary.txt").write_bytes(b"a\0b")
    Path("table.csv").write_text("text\nx\n")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("chats.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    Path("problems.jsonl").write_text(json.dumps({"id": "1", "question": "1 + 1?", "answer": "2"}) + "\n")
    Path("pairs.jsonl").write_text(json.dumps(ANSWER) + "\n")
    Path("same.jsonl").write_text(json.dumps(ANSWER | {"rejected": "Because."}) + "\n")
    Path("talks.jsonl").write_text(
        json.dumps({"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [{"role": "assistant", "content": "No."}]})
    )

    def spawn(*_: object, **__: object) -> None:
        raise AssertionError("a node was started")

    monkeypatch.setattr(runner, "spawn", spawn)
    return tmp_path


@pytest.mark.parametrize("name", DOOMED)
def test_it_is_refused_before_anything_starts(place: Path, capsys: pytest.CaptureFixture[str], name: str):
    nodes, sentence, *spoil = DOOMED[name]
    for change in spoil:
        change(Path("tiny"))
    body = nodes if nodes.startswith("evaluate:") else f"nodes: [{nodes}]"
    Path("r.yaml").write_text(f"start: tiny\n{body}\n")
    if name == "an output that is a link":
        Path("out/nodes").mkdir(parents=True)
        Path("out/nodes/quantize").symlink_to("nowhere")
        Path("out/run.json").write_text('{"format": 1, "nodes": {}, "files": {}}')
    with pytest.raises(SystemExit) as caught:
        main(["run", "r.yaml", "-o", "out"])
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("burnish: error: ")
    assert sentence in lines[0]
    assert not (place / "out" / "nodes" / "long").exists()


def test_the_list_is_long_enough():
    assert len(DOOMED) >= 60
