"""What `burnish reason` is given that is no journal, no probe or no address: one sentence, whatever reads it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.cli import main
from burnish.reason.journal import FILE, Journal

RUN = "reason run p.jsonl --base-url http://127.0.0.1:1/v1 --model m --strategy direct -o run"
RECORD = {"problem": "1", "strategy": "direct", "score": 1, "used": {}, "stopped": None, "error": "", "notes": []}


def executed(*statements: str) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        with sqlite3.connect(file) as database:
            for statement in statements:
                database.execute(statement)
        database.close()

    return spoil


def record(**changes: object) -> Callable[[Path], None]:
    kept = {key: value for key, value in (RECORD | changes).items() if value is not ...}
    return executed(f"INSERT INTO records VALUES ('a', '{json.dumps(kept)}')")


def page_of_nothing(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    file.write_bytes(content)


NONE, NO_RECORD = "is no journal or is damaged", "holds a record that no run keeps"
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file of words": (lambda file: file.write_bytes(b"garbage" * 100), NONE),
    "an empty file": (lambda file: file.write_bytes(b""), NONE),
    "a page of nothing": (page_of_nothing, NONE),
    "without its tables": (executed("DROP TABLE calls", "DROP TABLE records", "DROP TABLE flights"), NONE),
    "notes that are no JSON": (executed("INSERT OR REPLACE INTO meta VALUES ('about', '[')"), NONE),
    "a record that is no JSON": (executed("INSERT INTO records VALUES ('a', '[')"), NONE),
    "a record of brackets": (executed(f"INSERT INTO records VALUES ('a', '{'[' * 100_000}')"), NONE),
    "a record without use": (record(used=...), NO_RECORD),
    "a record of another use": (record(used={"m": {"calls": "many"}}), NO_RECORD),
    "a record of a score in words": (record(score="good"), NO_RECORD),
    "a strategy that is a number": (record(strategy=3), NO_RECORD),
}


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("burnish: error: ") and len(said) < 500
    return said


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "1", "question": "1 + 1?", "answer": "2"}) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", SPOILT)
def test_a_journal_that_is_none(capsys: pytest.CaptureFixture[str], place: Path, name: str):
    spoil, sentence = SPOILT[name]
    Journal(place / "run").close()
    spoil(place / "run" / FILE)
    assert sentence in refused(capsys, "reason report run")


@pytest.mark.parametrize("name", ["a file of words", "an empty file", "a page of nothing", "without its tables"])
@pytest.mark.parametrize("command", ["reason journal run", "reason journal run --out calls.jsonl"])
def test_a_journal_that_is_none_is_not_exported(
    capsys: pytest.CaptureFixture[str], place: Path, name: str, command: str
):
    Journal(place / "run").close()
    SPOILT[name][0](place / "run" / FILE)
    assert "damaged" in refused(capsys, command)
    assert not (place / "calls.jsonl").exists()


@pytest.mark.parametrize("name", ["a file of words", "a page of nothing"])
def test_a_journal_that_is_none_is_not_written_to(capsys: pytest.CaptureFixture[str], place: Path, name: str):
    Journal(place / "run").close()
    SPOILT[name][0](place / "run" / FILE)
    before = (place / "run" / FILE).read_bytes()
    assert f"{NONE}" in refused(capsys, RUN)
    assert (place / "run" / FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"findings": 3}', '{"findings": {}}'])
def test_a_probe_that_is_none(capsys: pytest.CaptureFixture[str], place: Path, text: str):
    (place / "probe.json").write_text(text)
    assert "probe.json: is no probe of a server" in refused(capsys, f"{RUN} --probe probe.json")


@pytest.mark.parametrize("address", ["http://[::1", "ftp://host", "file:///etc/passwd", "nonsense"])
def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str], place: Path, address: str):
    assert "is no address of a server" in refused(capsys, RUN.replace("http://127.0.0.1:1/v1", address))
