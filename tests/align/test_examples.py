"""The recipe, the commands and the examples, on a tiny model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import warm
from burnish.core.ledger import read_rows

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data" / "qa_feedback_120.jsonl"


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few_pairs(tmp_path):
    """The first 24 pairs, answers cut to 60 characters, so that byte tokens fit."""
    rows = [json.loads(line) for line in DATA.read_text().splitlines()[:24]]
    short = [row | {"chosen": row["chosen"][:60], "rejected": row["rejected"][-60:]} for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in short))
    return path


def test_best_of_n_orders_answers_by_the_reward(checkpoint, few_pairs, tmp_path, capsys):
    ranked = example("best_of_n").main(str(checkpoint), str(few_pairs), str(tmp_path / "reward"), steps=2)
    scores = [score for score, _ in ranked]
    assert len(ranked) == 4 and scores == sorted(scores, reverse=True)


def test_robust_dpo_example_reports_every_pair(checkpoint, few_pairs, tmp_path, capsys):
    order = example("robust_dpo").main(str(checkpoint), str(few_pairs), str(tmp_path / "out"), steps=2)
    assert sorted(order) == list(range(24))
    assert "margin" in capsys.readouterr().out


def test_example_data_is_clean():
    from burnish.data.preferences import read_pairs

    assert len(read_pairs(DATA)) == 120


@pytest.mark.slow
def test_recipe_runs_on_a_tiny_model(checkpoint, tmp_path):
    text = (ROOT / "recipes" / "align_robust.yaml").read_text()
    small = text.replace("max_steps: 8", "max_steps: 2").replace("num_windows: 12", "num_windows: 2")
    small = small.replace("context: 512", "context: 128").replace("prompt_tokens: 128", "prompt_tokens: 16")
    small = small.replace("max_length: 256", "max_length: 192\n    on_bad_pair: drop")
    small = small.replace("examples/data", str(ROOT / "examples" / "data"))
    (tmp_path / "align_robust.yaml").write_text(small)
    warm.run(tmp_path / "log", "run", "align_robust.yaml", "--start", checkpoint, "-o", "run", cwd=tmp_path)
    rows = read_rows(tmp_path / "run" / "ledger.jsonl")
    # at margin 0 all three losses pull alike, so after two steps the checkpoints may be one and the same, measured once
    assert {row["node"] for row in rows if row["row"] == "measurement"} >= {"start", "plain"}
    assert {row["node"] for row in rows if row["row"] == "stage"} == {"plain", "adaptive", "robust"}
    held = [row for row in rows if row["row"] == "table" and row["name"] == "preference_held_out"]
    assert len(held) == 3


@pytest.mark.slow
@pytest.mark.real_process
def test_the_command_says_nothing_of_its_libraries(checkpoint, few_pairs, tmp_path):
    options = ["--loss", "r3m-dpo", "--max-steps", "2", "--batch", "4", "--on-bad-pair", "drop", "--max-length", "192"]
    command = ["align", checkpoint, "--data", few_pairs, *options, "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "burnish", *map(str, command)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [noise for noise in ("[transformers]", "it/s]", "Warning", "trl") if noise in done.stderr] == []
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_audit_command_and_the_way_back(checkpoint, few_pairs, tmp_path):
    log, audit = tmp_path / "log", tmp_path / "audit"
    warm.run(log, "audit", few_pairs, "--model", checkpoint, "--repeats", "1", "-o", audit)
    assert (audit / "index.html").is_file()
    row = json.loads((audit / "pairs.jsonl").read_text().splitlines()[0])
    decision = {"key": row["key"], "row": row["row"], "decision": "drop"}
    (tmp_path / "decisions.json").write_text(json.dumps({"decisions": [decision]}))
    clean = tmp_path / "clean.jsonl"
    warm.run(log, "audit", few_pairs, "--decisions", tmp_path / "decisions.json", "-o", clean)
    assert len(clean.read_text().splitlines()) == 23
    refused = warm.Command(log, "align", checkpoint, "--lam", "1.5", "--data", few_pairs, "-o", tmp_path / "no")
    assert refused.end() == 1 and len(refused.output.strip().splitlines()) == 1


def test_importing_the_commands_costs_no_torch():
    code = "import burnish.cli.audit, sys; sys.exit('torch' in sys.modules or 'trl' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0
