"""The harness of the benchmarks, and the cheapest of them run small."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import experiment  # noqa: E402

from small_models import untaught_reasoner  # noqa: E402

ALONE = ["optimizer_step", "train_loop", "intervals"]
WORKING = [
    "train_gpu",
    "steer_tiny",
    "steer_cost",
    "curriculum",
    "long_context",
    "sparse_attention",
    "trajectories",
    "moe_lora",
    "corda",
    pytest.param("activation", marks=pytest.mark.long),
]
"""Benchmarks that take --work."""
OF_SMOLLM2 = ("trajectories", "activation")
"""Those that read the embedded model, or its tokenizer."""
OF_A_REASONER = ("corda",)
"""Those that take --model, one that could learn chains."""


def test_sides_take_turns_and_the_first_round_is_not_counted():
    order = []
    clock = iter(range(100))
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = experiment.turns(sides, 2, clock=lambda: next(clock))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [1, 1], "b": [1, 1]}


def test_a_search_keeps_every_score():
    best, tried = experiment.search([1, 2, 3], lambda lr: (lr - 2) ** 2)
    assert best == 2
    assert tried == [{"settings": 1, "score": 1}, {"settings": 2, "score": 0}, {"settings": 3, "score": 1}]


def test_what_is_kept_is_not_measured_again(tmp_path: Path):
    asked = []

    def measure(name: str) -> dict[str, int]:
        asked.append(name)
        return {"length": len(name)}

    kept = experiment.Kept(tmp_path)
    assert not kept.run(lambda: ["one"], measure, minutes=-1)
    assert kept.run(lambda: ["one", "three"], measure)
    assert kept.run(lambda: ["one", "three"], measure)
    assert asked == ["one", "three"] and kept.read("three")["length"] == 5


def test_an_answer_is_recorded_and_shown_once_all_of_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture):
    class Bench(experiment.Kept):
        def names(self) -> list[str]:
            return ["one", "three"]

        def measure(self, name: str) -> dict[str, int]:
            return {"length": len(name)}

    bench, out = Bench(tmp_path), tmp_path / "it.json"

    def content() -> dict[str, int]:
        return {name: bench.read(name)["length"] for name in bench.names()}

    for minutes in (-1, 1):
        options = argparse.Namespace(out=out, minutes=minutes)
        experiment.answer(bench, options, "What?", content, lambda found: {"all": f"of {found['three']}"}, note="x")
        assert out.is_file() == (minutes > 0)
    assert json.loads(out.read_text())["three"] == 5
    assert capsys.readouterr().out == "of 5\n"


def test_a_record_has_what_the_check_asks_for_and_keeps_what_was_there(tmp_path: Path):
    out = tmp_path / "new" / "it.json"
    experiment.record(out, "What is it?\n\n    more", {"rows": [1]}, note="alone")
    experiment.record(out, "What is it?\n\n    more", {"more": 2}, note="alone")
    content = json.loads(out.read_text())
    assert content["question"] == "What is it?" and content["machine"].endswith("alone")
    assert content["rows"] == [1] and content["more"] == 2 and content["slices"] == {"tuning": [], "reporting": []}
    assert {"machine", "date", "versions"} <= set(content)


def test_a_table_sets_numbers_to_the_right_where_asked():
    assert experiment.table("name | size:", [["a", 1]]) == "| name | size |\n| --- | ---: |\n| a | 1 |"


def test_a_smoke_run_does_not_overwrite_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["it.py", "--smoke"])
    with pytest.raises(SystemExit):
        experiment.Command("benchmarks/it.py", "What is it?").read()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALONE, *WORKING])
def test_a_benchmark_runs_small_and_makes_its_tables(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    if name in OF_SMOLLM2:
        request.getfixturevalue("smollm2")
    out, script = tmp_path / f"{name}.json", ROOT / "benchmarks" / f"{name}.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])}
    command = [sys.executable, str(script), "--smoke", "--out", str(out)]
    command += ["--work", str(tmp_path / "work")] if name not in ALONE else []
    command += ["--model", str(untaught_reasoner().save(tmp_path / "model"))] if name in OF_A_REASONER else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    show = f"import json, {name}; print(*{name}.tables(json.load(open({str(out)!r}))).values(), sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.count("| --- |") >= 1


def test_measuring_some_fingerprints_leaves_the_others():
    import fingerprint

    kept = {"quantize a": "1", "train a": "2", "train gone": "3"}
    merged = fingerprint.merged({"train a": "4", "train new": "5"}, kept, "train *")
    assert merged == {"quantize a": "1", "train a": "4", "train new": "5"}


def test_a_part_is_not_written_among_the_fingerprints_of_another_machine(tmp_path: Path, monkeypatch):
    import fingerprint

    file = tmp_path / "fingerprint.json"
    file.write_text(json.dumps({"machine": "another", "versions": {}, "cases": {"quantize a": "1"}}))
    before = file.read_text()
    monkeypatch.setattr(sys, "argv", ["fingerprint.py", "--only", "train *", "--file", str(file)])
    monkeypatch.setattr(fingerprint, "measure", lambda pattern: {"train a": "2"})
    assert fingerprint.main() == 2
    assert file.read_text() == before
