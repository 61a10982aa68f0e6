"""What `benchmarks/healing.py` reads from the ledger of a recipe, and the whole of it on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import healing


def stage(node: str, checkpoint: str, **settings: object) -> dict[str, object]:
    row = {"row": "stage", "node": node, "stage": "mla", "settings": settings, "checkpoint": checkpoint}
    return row | {"parents": {"calibration": "text"}, "peak_memory_bytes": 7}


def measured(node: str, checkpoint: str, kl: float) -> dict[str, object]:
    """Twice as much divergence on the second text."""
    metrics = {
        f"{name}{kind}": {"value": value, "low": 0.9 * value, "high": 1.1 * value}
        for kind, factor in (("", 1), ("_second", 2))
        for name, value in (("kl_divergence", factor * kl), ("perplexity", 20.0))
    }
    protocol = {"hash": "p", "num_windows": 8, "context": 256, "tokens_hash": "a", "second_tokens_hash": "b"}
    return {"row": "measurement", "node": node, "checkpoint": checkpoint, "protocol": protocol, "metrics": metrics}


def test_shares_are_of_the_whole_loss_and_a_node_that_changed_nothing_has_the_numbers_of_the_one_before(tmp_path: Path):
    rows = [
        measured("start", "0", 0.0),
        *(stage("converted", "1", context=None), measured("converted", "1", 0.4)),
        *(stage("healed", "2", heal_tokens=1024), measured("healed", "2", 0.3)),
        stage("distilled", "2", steps=3, batch=4, context=16),
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = healing.read_run(tmp_path)
    assert found["slices"] == {"tuning": ["text"], "reporting": ["a", "b"]}
    table = healing.tables({"runs": {"convert_mla": found}})["convert_mla"]
    made = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert made == [
        ["`converted`", "", "0.400 (0.360 to 0.440)", "1.00", "0.800 (0.720 to 0.880)", "1.00"],
        ["`healed`", "1,024", "0.300 (0.270 to 0.330)", "0.75", "0.600 (0.540 to 0.660)", "0.75"],
        ["`distilled`", "192", "0.300 (0.270 to 0.330)", "0.75", "0.600 (0.540 to 0.660)", "0.75"],
    ]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_both_recipes_run_small_and_every_node_has_its_row(tiny_llama: Path, tmp_path: Path):
    root, out = Path(healing.__file__).parent.parent, tmp_path / "healing.json"
    command = [sys.executable, healing.__file__, "--smoke", "--out", out, "--work", tmp_path / "work"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root / "benchmarks")])}
    command += ["--model", tiny_llama]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    tables = healing.tables(json.loads(out.read_text()))
    rows = {name: [line.split("`")[1] for line in table.splitlines()[2:]] for name, table in tables.items()}
    assert rows == {
        "convert_mla": ["converted", "healed", "distilled", "packed", "shorter", "refitted"],
        "convert_ladder": ["ladder", "healed"],
        "position": ["converted"],
    }
