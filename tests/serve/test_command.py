"""`burnish serve sim`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from burnish import cli


def trace(tmp_path: Path, num: int = 120) -> Path:
    draw, time, rows = random.Random(0), 0, []
    for _ in range(num):
        time += draw.randrange(400)
        length = draw.randint(1, 3000)
        ids = [draw.randint(0, 3)] + [draw.randrange(10**6) for _ in range(-(-length // 512) - 1)]
        rows.append({"timestamp": time, "input_length": length, "output_length": draw.randint(1, 80), "hash_ids": ids})
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_two_policies_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fair = tmp_path / "fair.yaml"
    fair.write_text("name: fair\norder: shares\nweights: {tenant1: 1, tenant2: 3}\n")
    engine = tmp_path / "engine.yaml"
    engine.write_text("num_blocks: 40\nmax_num_seqs: 4\n")
    out = tmp_path / "out"
    words = ["serve", "sim", str(trace(tmp_path)), "--policy", "fcfs", "--policy", str(fair), "--tenants", "3"]
    cli.main([*words, "--engine", str(engine), "--check", "-o", str(out)])
    said = capsys.readouterr().out
    assert "synthetic: tenants are drawn" in said
    assert "fair: tenants without a weight are under `default`: tenant3" in said
    results = json.loads((out / "results.json").read_text())
    assert list(results["policies"]) == ["fcfs", "fair"]
    assert results["trace"]["requests"] == 120
    for one in results["policies"].values():
        assert one["requests"] == 120
        low, high = one["ttft"]["quantiles"]["0.5"][1:]
        assert low <= one["ttft"]["quantiles"]["0.5"][0] <= high
    page = (out / "report.html").read_text()
    assert "Synthetic: tenants are drawn." in page
    assert "fcfs and fair, side by side" in page


def test_steps_one_by_one_are_asked_for_and_give_the_same(tmp_path: Path):
    path, found = trace(tmp_path, 30), []
    for options in ([], ["--step-by-step"]):
        cli.main(["serve", "sim", str(path), *options, "-o", str(tmp_path / "out")])
        found.append(json.loads((tmp_path / "out/results.json").read_text()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--policy", "fair"], "fair: is no policy file; give a YAML file or one of fcfs, vtc"),
        (["--policy", "vtc", "--policy", "vtc"], "two policies are called 'vtc'"),
        (["--instances", "0"], "instances"),
        (["--engine", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--ttft", "0"], "ttft"),
        (["--tenants", "-1"], "tenants"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str):
    with pytest.raises(SystemExit, match="1"):
        cli.main(["serve", "sim", str(trace(tmp_path, 5)), *options, "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert told in said.replace("--", "")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_trace_whose_requests_fit_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine = tmp_path / "engine.yaml"
    engine.write_text("num_blocks: 1\nblock_size: 1\n")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["serve", "sim", str(trace(tmp_path, 5)), "--engine", str(engine), "-o", str(tmp_path / "out")])
    assert "no request fits into the pool" in capsys.readouterr().err


def test_help_tells_the_two_servers_apart(capsys: pytest.CaptureFixture[str]):
    for words in (["serve", "--help"], ["reason", "--help"]):
        cli.main(words)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "strategies: burnish reason serve" in said
    assert "policies of a shared server: burnish serve" in said


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_files_that_are_not_ours_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(SystemExit):
        cli.main(["serve", "sim", str(trace(tmp_path, 5)), "-o", str(tmp_path)])
    assert f"{name}: exists and is another kind of file; choose another place" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine\n"
    assert not {"results.json", "report.html"} - {name} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("engine", ["linear: {step: 1.0e+300}", "cost: roofline\nroofline: {flops: 1.0e-300}"])
def test_steps_of_years_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str):
    path = tmp_path / "engine.yaml"
    path.write_text(engine)
    with pytest.raises(SystemExit):
        cli.main(["serve", "sim", str(trace(tmp_path, 5)), "--engine", str(path), "-o", str(tmp_path / "out")])
    assert "the engine's costs: a step would take" in capsys.readouterr().err


def test_requests_that_are_centuries_apart_are_measured(tmp_path: Path):
    path = tmp_path / "far.jsonl"
    rows = [{"arrival_s": time, "prompt_tokens": 10, "output_tokens": 1} for time in (0, 9e11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["serve", "sim", str(path), "-o", str(tmp_path / "out")])

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "out/results.json").read_text(), parse_constant=refuse)["policies"]["fcfs"]
    assert found["seconds"] == pytest.approx(9e11)
    assert found["tpot"]["mean"] is None  # no answer has a second token
    assert 0 < found["ttft"]["mean"] < 1


def test_a_server_is_not_started_over_files_of_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, mine, keys = tmp_path / "m", tmp_path / "mine", tmp_path / "keys.yaml"
    model.mkdir()
    (model / "config.json").write_text("{}")
    mine.write_text("mine")
    keys.write_text("k: a\n")
    keys.chmod(0o600)
    begin = ["serve", "up", str(model), "--policy", "fcfs", "--python", str(tmp_path / "none")]
    for options, told in (
        (["--log", str(mine)], "mine: exists and is another kind of file"),
        (["--telemetry", str(mine)], "mine: exists and is another kind of file"),
        (["--keys", str(keys), "--log", str(keys)], "keys.yaml: is what is read"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*begin, *options])
        assert told in capsys.readouterr().err
    assert (mine.read_text(), keys.read_text()) == ("mine", "k: a\n")
    with pytest.raises(SystemExit):
        cli.main(["serve", "up", str(tmp_path), *begin[3:]])
    assert "has no config.json, so it is no checkpoint" in capsys.readouterr().err


def test_places_left_to_others_are_fewer_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fair, engine = tmp_path / "fair.yaml", tmp_path / "engine.yaml"
    fair.write_text("name: fair\norder: shares\nspare: 4\n")
    engine.write_text("num_blocks: 40\nmax_num_seqs: 4\n")
    words = ["serve", "sim", str(trace(tmp_path, 5)), "--policy", str(fair), "--engine", str(engine)]
    with pytest.raises(SystemExit, match="1"):
        cli.main([*words, "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "fair: spare is 4, but 4 requests run at a time; give a spare below 4" in said
    engine.write_text("num_blocks: 40\nmax_num_seqs: 5\n")
    cli.main([*words, "-o", str(tmp_path / "out")])
