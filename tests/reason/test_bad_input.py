"""What goes wrong outside is one sentence: what, where, what to do. No secret is in it, nor in any file."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.core.errors import BurnishError, OutputError, SettingsError
from burnish.reason import Endpoint, Journal, JournalReader, UpstreamError
from burnish.reason.journal import FILE
from exact_server import ExactServer, InProcess, completion
from reason_runs import run

CANARY = "sk-canary-5f2c"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "question": f"{i}?", "answer": "1"}) + "\n" for i in range(4)))
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(arguments)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("asking: ")]
    assert len(said) == 1
    assert said[0].startswith("burnish: error: ")
    return said[0]


def command(problems: Path, url: str, *more: str) -> list[str]:
    place = ["--base-url", url, "--model", "exact", "--verifier", "number", "-o", str(problems.parent / "run")]
    return ["reason", "run", str(problems), *place, "--strategy", "self-consistency:2", *more]


@pytest.mark.parametrize("key", ["", "sk-wrong-key"])
def test_a_key_that_is_missing_or_wrong(
    problems: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with ExactServer(key="another") as server:
        said = refused(command(problems, server.url), capsys)
        assert "status 401" in said
        assert "check the key" in said
        assert not key or key not in said
        assert sum(server.asked.values()) == 8  # none of them twice


def test_a_model_that_the_server_does_not_have(tmp_path: Path):
    with (
        ExactServer() as server,
        pytest.raises(UpstreamError, match=r"status 404.*the model's name 'exact'") as caught,
    ):
        run(tmp_path, ["direct"], endpoints=[Endpoint(server.url.replace("/v1", "/v2"), "exact")], transport="http")
    assert caught.value.status == 404


def test_a_server_that_is_too_slow(tmp_path: Path):
    with ExactServer(latency=30.0) as server, pytest.raises(UpstreamError, match=r"did not answer within 0\.05 s"):
        endpoint = Endpoint(server.url, "exact", timeout=0.05)
        run(tmp_path, ["direct"], endpoints=[endpoint], transport="http", attempts=2)
    assert JournalReader(tmp_path).paid()["exact"].retried == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("html", "answered with an HTML page; check that the address ends with /v1"),
        ("empty", "answered without choices"),
        ("null", "answered with an empty text"),
        ("break", "broke off"),
        ("500", "status 500"),
    ],
)
def test_a_server_that_answers_no_answer(tmp_path: Path, fault: str, sentence: str):
    with ExactServer(faults=((1.0, fault),)) as server, pytest.raises(UpstreamError, match=sentence):
        run(tmp_path, ["direct"], server=server, attempts=2)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": "1", "question": "x"}, "has no `answer`"),
        ({"id": "1", "question": "", "answer": "1"}, "has no `question`"),
        ([], "is no JSON object"),
    ],
)
def test_problems_without_what_is_needed(problems: Path, capsys: pytest.CaptureFixture[str], row: Any, sentence: str):
    problems.write_text(json.dumps(row) + "\n")
    assert sentence in refused(command(problems, "http://127.0.0.1:1/v1"), capsys)
    problems.write_text("")
    assert "holds no problems" in refused(command(problems, "http://127.0.0.1:1/v1"), capsys)


def test_a_journal_of_another_version(tmp_path: Path):
    Journal(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE meta SET value = '999' WHERE name = 'schema'")
    database.close()
    with pytest.raises(OutputError, match="another version"):
        Journal(tmp_path)
    with pytest.raises(BurnishError, match="another version"):
        JournalReader(tmp_path)


def test_a_disk_that_is_full_ends_a_run_which_then_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    specs, expected = ["rsa(n=4,k=2,loops=2)"], run(tmp_path / "whole", ["rsa(n=4,k=2,loops=2)"], 30)
    prepare = Journal._prepare

    def small(journal: Journal, facts: Any) -> None:
        prepare(journal, facts)
        journal._database.execute("PRAGMA max_page_count = 40")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_prepare", small)
        with pytest.raises(OutputError, match=r"cannot be written \(database or disk is full\); free the disk"):
            run(tmp_path / "full", specs, 30)
    assert 0 < len(list(JournalReader(tmp_path / "full").calls())) < 30 * 8
    assert run(tmp_path / "full", specs, 30) == expected


@pytest.mark.parametrize("field", ["n", "stream", "messages", "model"])
def test_fields_that_are_not_the_users_to_set(field: str):
    with pytest.raises(SettingsError, match=f"'{field}' is no sampling field"):
        Endpoint("http://127.0.0.1:1/v1", "m", sampling={field: 1})


def test_a_server_that_refuses_n_is_never_asked_for_it(tmp_path: Path):
    transport = InProcess()
    run(tmp_path, ["self-consistency:4", "gsa:3", "rsa(n=4,k=2,loops=2)"], 2, transport=transport)
    assert not [body for body in transport.bodies if "n" in body]


def test_no_secret_is_in_journal_log_report_probe_or_export(
    problems: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The server repeats the key in errors, in answers and in the reasons that a strategy notes."""

    class Repeats(ExactServer):
        said = CANARY

        def answer(self, body: Any, fault: str = "") -> Any:
            from aiohttp import web

            whole = completion(self.rule, body, self.num_tops)
            message = whole["choices"][0]["message"]
            message["content"] = f"{message['content']}, the key is {self.said}.\nFinal answer: {self.said}"
            return web.json_response(whole)

    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    place = problems.parent
    with Repeats(key="another", faults=((0.1, "500"),)) as server:
        refused(command(problems, server.url), capsys)
        server.key = ""
        main(["reason", "probe", server.url, "--model", "exact", "-o", str(place / "run" / "probe.json")])
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err
        main([*command(problems, server.url), "--strategy", "gsa:2"])
        server.said = "user-canary:word-canary"
        signed = server.url.replace("http://", "http://user-canary:word-canary@")
        monkeypatch.setenv("OPENAI_API_KEY", "")
        other = ["--verifier", "number", "--strategy", "direct", "-o", str(place / "other")]
        main(["reason", "run", str(problems), "--endpoint", f"a={signed},exact", *other])
    main(["reason", "journal", str(place / "run"), "--out", str(place / "calls.jsonl")])
    main(["reason", "report", str(place / "run")])
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {"journal.db", "report.html", "probe.json", "calls.jsonl"} <= {path.name for path in files}
    for path in files:
        assert b"canary" not in path.read_bytes(), path
