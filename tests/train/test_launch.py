"""One recipe, any number of processes, killed in between: the same losses, and one sentence about what died."""

import json
import signal

import psutil
import pytest
from safetensors.torch import load_file

import warm

pytestmark = pytest.mark.slow

RECIPE = """
start: {model}
nodes:
  - name: trained
    stage: train
    data: {data}
    context: 32
    batch: 12
    micro_batch: 1
    steps: 24
    lr: 0.003
    save_every: 2
    launch: {{processes: {processes}}}
"""
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 80
REDUCTION = 2e-4
"""Relative: what the order of sums in float32 makes of a loss in two dozen steps."""


@pytest.fixture
def start(tiny_llama, tmp_path):
    """Starts the recipe with a number of processes in a run directory."""
    data = tmp_path / "text.txt"
    data.write_text(TEXT)

    def begin(processes, run):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=tiny_llama, data=data, processes=processes))
        return warm.Command(tmp_path / "log", "run", recipe, "-o", run)

    return begin


def end(command):
    assert command.end() == 0, command.output
    return command.output


def losses(run):
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    (table,) = [row["rows"] for row in rows if row["row"] == "table" and row["name"] == "loss"]
    return [row["loss"] for row in table]


def kill_rank(command, rank, run):
    """Kills one process of a training with signal 9, once there is a state to go on from."""
    assert command.wait_until(lambda: list(run.glob("work/trained/states/step-*/.metadata"))), command.output
    for child in psutil.Process(command.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.send_signal(signal.SIGKILL)


@pytest.mark.timeout(900)
def test_one_recipe_on_1_2_3_and_4_processes_killed_and_resumed(start, tmp_path):
    end(start(1, tmp_path / "one"))
    expected = losses(tmp_path / "one")
    assert expected[-1] < 0.9 * expected[0]

    first = start(2, tmp_path / "killed")
    kill_rank(first, 1, tmp_path / "killed")
    assert first.end() != 0
    said = " ".join(first.output.split())
    assert "node 'trained'" in said
    assert "process 1 of 2 was killed by signal 9 (SIGKILL)" in said
    assert "the others were stopped" in said
    assert "run the same command again: it continues from the last saved state" in said.replace("Run", "run")
    assert "Traceback" not in said

    output = end(start(3, tmp_path / "killed"))
    assert "continuing after step" in output
    end(start(4, tmp_path / "four"))
    weights = load_file(tmp_path / "one" / "nodes" / "trained" / "model.safetensors")
    for run in (tmp_path / "killed", tmp_path / "four"):
        assert losses(run) == pytest.approx(expected, rel=REDUCTION)
        found = load_file(run / "nodes" / "trained" / "model.safetensors")
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            assert (found[name] - weight).norm() <= 0.02 * weight.norm(), name


def test_what_every_process_refuses_is_one_sentence(start, tmp_path):
    command = start(5, tmp_path / "run")
    assert command.end() != 0
    assert "a batch of 12 rows cannot be shared evenly by 5 processes" in command.output.splitlines()[-1]
