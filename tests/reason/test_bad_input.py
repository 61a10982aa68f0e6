"""What goes wrong outside is one sentence: what, where, what to do. No secret is in it, nor in any file."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.cli import main
from burnish.core.errors import BurnishError, OutputError, SettingsError
from burnish.reason import Endpoint, Journal, JournalReader, UpstreamError, Usage
from burnish.reason.journal import FILE
from burnish.reason.replies import read
from exact_server import ExactServer, InProcess, completion
from reason_runs import run

CANARY = "sk-canary-5f2c"
FIELDS = ("message", "content", "text", "reasoning", "finish_reason", "logprobs", "token", "logprob", "top_logprobs")
COUNTS = ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens")


def nested(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and objects whose names are those that replies have."""
    return st.lists(of, max_size=3) | st.dictionaries(st.sampled_from(FIELDS + COUNTS), of, max_size=4)


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


ANSWER: dict[str, Any] = {
    "choices": [{"message": {"content": "1"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3},
}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "none",
        {"prompt_tokens": "five", "completion_tokens": 3},
        {"prompt_tokens": -5, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": 10**400, "completion_tokens": 3},
        {"completion_tokens": 3},
    ],
)
def test_a_count_of_tokens_that_cannot_be_is_unknown(usage: Any):
    reply = read(json.dumps(ANSWER | {"usage": usage}).encode(), Endpoint("http://h/v1", "m"), "key")
    assert reply.usage == Usage(calls=1, unknown=1)


@pytest.mark.parametrize("details", ["many", [1], {"cached_tokens": "many"}, {"cached_tokens": -1}])
def test_a_count_of_cached_tokens_that_cannot_be_is_none(details: Any):
    usage = ANSWER["usage"] | {"prompt_tokens_details": details}
    reply = read(json.dumps(ANSWER | {"usage": usage}).encode(), Endpoint("http://h/v1", "m"), "key")
    assert reply.usage == Usage(calls=1, prompt=5, completion=3)


@pytest.mark.parametrize(
    "sent",
    [
        "x",
        {"content": "x"},
        {"content": [5]},
        {"content": [{"token": "a"}]},
        {"content": [{"token": "a", "logprob": None}]},
        {"content": [{"token": "a", "logprob": float("nan")}]},
        {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": "x"}]}]},
        {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": 5}]},
    ],
)
def test_log_probabilities_of_which_one_is_no_number_are_not_there(sent: Any):
    """A mean over the others would be a score of something else."""
    choice = ANSWER["choices"][0] | {"logprobs": sent}
    assert read(json.dumps({"choices": [choice]}).encode(), Endpoint("http://h/v1", "m"), "key").logprobs is None


@pytest.mark.parametrize("content", [42, {"a": 1}, True, None, [], [5]])
def test_a_content_that_is_no_text_is_no_answer(content: Any):
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    with pytest.raises(UpstreamError, match="answered with an empty text"):
        read(json.dumps(body).encode(), Endpoint("http://h/v1", "m"), "key")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), nested, max_leaves=30))
def test_whatever_json_a_server_sends_is_a_reply_or_a_sentence(value: Any):
    for body in (value, {"choices": [value]}, {"choices": [{"message": value, "logprobs": value}], "usage": value}):
        try:
            reply = read(json.dumps(body).encode(), Endpoint("http://h/v1", "m"), "key")
        except UpstreamError:
            continue
        json.dumps(asdict(reply), ensure_ascii=False).encode()


def test_half_of_a_surrogate_pair_in_an_answer_is_kept_as_a_question_mark(tmp_path: Path):
    async def said(endpoint: Endpoint, body: object, /) -> bytes:
        return b'{"choices": [{"message": {"content": "one \\ud800"}, "finish_reason": "stop"}]}'

    (result,) = run(tmp_path, ["direct"], transport=said).values()
    assert result.text == "one ?"


def test_a_journal_that_cannot_write_what_it_is_given_says_so_and_keeps_nobody_waiting(tmp_path: Path):
    async def go() -> None:
        with Journal(tmp_path) as journal:
            for _ in range(2):
                with pytest.raises(OutputError, match="cannot be written"):
                    await asyncio.wait_for(journal.record("name", {"text": "\ud800"}), 30)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-calls", "0"], "--max-calls"),
        (["--max-cost", "nan"], "--max-cost"),
        (["--max-cost", "-1"], "--max-cost"),
        (["--top-logprobs", "-1"], "--top-logprobs"),
    ],
)
def test_numbers_that_mean_nothing(
    problems: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
):
    assert sentence in refused(command(problems, "http://127.0.0.1:1/v1", *arguments), capsys)


def test_a_problem_with_the_name_of_anothers_repetition(problems: Path, capsys: pytest.CaptureFixture[str]):
    names = ("a", "a~2")
    problems.write_text("".join(json.dumps({"id": id_, "question": id_, "answer": "1"}) + "\n" for id_ in names))
    said = refused(command(problems, "http://127.0.0.1:1/v1", "--seeds", "2"), capsys)
    assert "the name 'a~2' is that of a problem and of another one's repetition" in said


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
