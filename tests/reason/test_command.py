"""`burnish reason`: run, report, journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.cli import main
from burnish.reason.probe import WORDS
from exact_server import ExactServer


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "question": f"What is {i} - {i} + 1?", "answer": "1"} for i in range(10)]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(problems: Path, server: ExactServer, out: Path, *more: str) -> list[str]:
    place = [str(problems), "--base-url", server.url, "--model", "exact", "-o", str(out)]
    return ["reason", "run", *place, "--verifier", "number", "--strategy", "self-consistency:3", *more]


def test_a_run_is_graded_reported_and_exported(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    main(command(problems, server, tmp_path / "run", "--strategy", "rsa(n=3,k=2,loops=2)"))
    said = capsys.readouterr().out
    assert "10 problems" in said
    assert "no vote of equal cost (needs" in said
    assert "prices unknown" in said
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said
    assert "paid to exact: 60 requests" in said
    main(["reason", "report", str(tmp_path / "run")])
    assert capsys.readouterr().out == said
    main(["reason", "journal", str(tmp_path / "run"), "--out", str(tmp_path / "calls.jsonl")])
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(calls) == 60
    assert {call["path"].split("/")[1] for call in calls} == {"sample", "rsa(n=3,k=2,loops=2,answer=majority)"}


def test_a_run_goes_on_where_a_budget_ended_it(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    main(command(problems, server, tmp_path / "run", "--max-calls", "7"))
    assert "problems unfinished" in capsys.readouterr().out
    main(command(problems, server, tmp_path / "run"))
    assert "unfinished" not in capsys.readouterr().out
    assert sum(server.asked.values()) == 30


def test_another_run_in_the_same_place_is_refused(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    main(command(problems, server, tmp_path / "run"))
    with pytest.raises(SystemExit):
        main(command(problems, server, tmp_path / "run", "--seed", "1"))
    assert "belongs to another run (what differs: seed)" in capsys.readouterr().err


def test_a_probe_is_printed_kept_and_refuses_what_the_server_does_not_do(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    server.num_tops = 0
    kept = tmp_path / "run" / "probe.json"
    main(["reason", "probe", server.url, "--model", "exact", "-o", str(kept)])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == list(WORDS)
    assert next(line for line in said if line.startswith("alternatives")).split()[1] == "no"
    with pytest.raises(SystemExit):
        main(command(problems, server, tmp_path / "run", "--strategy", "best-of-n(n=3,score=confidence)"))
    assert f"needs {WORDS['alternatives']}" in capsys.readouterr().err
    main(command(problems, server, tmp_path / "run", "--strategy", "direct"))
    elsewhere = ["--base-url", "http://127.0.0.1:1/v1", "--model", "exact", "-o", str(tmp_path / "other")]
    with pytest.raises(SystemExit):
        main(["reason", "run", str(problems), *elsewhere, "--strategy", "direct", "--probe", str(kept)])
    assert "which the run does not ask" in capsys.readouterr().err


def test_prompts_of_a_file_take_the_place_of_ours_and_are_what_a_run_is(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('gsa = "{number} tries: {candidates} Now, dearest, once more."\n')
    ask = command(problems, server, tmp_path / "run", "--strategy", "gsa:2", "--prompts", str(prompts))
    main(ask)
    main(["reason", "journal", str(tmp_path / "run"), "--out", str(tmp_path / "calls.jsonl")])
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    asked = [call["request"]["messages"][0]["content"] for call in calls if "/gsa(" in call["path"]]
    assert len(asked) == 10
    assert "Prompts of the user&#39;s own: gsa." in (tmp_path / "run" / "report.html").read_text()
    assert all("\n\n2 tries: Attempt 1:" in one and one.endswith("Now, dearest, once more.") for one in asked)
    prompts.write_text('gsa = "{candidates} Again."\n')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(ask)
    assert "belongs to another run (what differs: prompts)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gsa", "is no TOML"),
        ("gsa = 3", "'gsa' is no text"),
        ("gas = 'x'", "did you mean 'gsa'?"),
        ("gsa = 'x'", "has no {candidates}"),
        ("cue = ' '", "'cue' is empty"),
        (None, "prompts.toml"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "evolve", "serve"])
def test_prompts_that_cannot_be_are_refused_in_a_sentence(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str, verb: str
):
    prompts = tmp_path / "prompts.toml"
    if text is not None:
        prompts.write_text(text)
    nowhere = "http://127.0.0.1:1/v1"
    asked = ["--base-url", nowhere, "--model", "m", "-o", str(tmp_path / "run")]
    words = {
        "run": [str(problems), *asked, "--strategy", "direct"],
        "evolve": [str(problems), "--unseen", str(problems), *asked],
        "serve": ["--upstream", nowhere],
    }
    with pytest.raises(SystemExit):
        main(["reason", verb, *words[verb], "--prompts", str(prompts)])
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said


def test_two_models_with_prices_are_routed_from_the_command_line(
    tmp_path: Path, problems: Path, server: ExactServer, capsys: pytest.CaptureFixture[str]
):
    models = tmp_path / "models.toml"
    models.write_text(f'[strong]\nurl = "{server.url}"\nprice_in = 2.0\nprice_out = 8.0\n')
    named = ["--endpoint", f"cheap={server.url},small", "--price-in", "0.2", "--price-out", "0.8"]
    spec = "routed-rsa(models=cheap+strong,n=3,k=2,loops=2,fitness=diversity)"
    place = ["--verifier", "number", "--seeds", "2", "-o", str(tmp_path / "run")]
    main(["reason", "run", str(problems), "--endpoints", str(models), *named, "--strategy", spec, *place])
    said = capsys.readouterr().out
    assert "of money for a problem" in said
    assert "paid to strong: " in said
    assert "paid to cheap: " in said
    main(["reason", "report", str(tmp_path / "run"), "--prices", str(models)])
    again = capsys.readouterr().out
    assert again == said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "no model is named"),
        (["--base-url", "http://127.0.0.1:1/v1"], "give both --base-url and --model"),
        (["--endpoint", "a"], "write NAME=URL,MODEL"),
        (["--endpoints", "none.toml"], "none.toml"),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--price-in", "1"], "one of two prices is missing"),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--endpoint", "a=http://127.0.0.1:1/v1,m"], "a name of its own"),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--max-cost", "1"], "a price or the server's count of tokens"),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--probe", "none.json"], "none.json: no such file"),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--seeds", "0"], "asked 0 times"),
        (
            ["--endpoint", "a=http://127.0.0.1:1/v1,m", "--price-in", "nan", "--price-out", "1"],
            "a price of nan is none",
        ),
        (["--endpoint", "a=http://127.0.0.1:1/v1,m", "--price-in", "1", "--price-out", "-1"], "price of -1 is none"),
    ],
)
def test_a_command_that_cannot_run_says_why_in_a_sentence(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
):
    given = ["--verifier", "number", "--strategy", "direct", "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["reason", "run", str(problems), *given, *more])
    said = capsys.readouterr().err
    assert sentence in said
