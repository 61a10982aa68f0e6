"""What the benchmark of the repair recipe makes of a run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import small_and_right


def found() -> dict[str, Any]:
    """Ten problems, of which rounding loses four and each later step wins back some."""
    right = {"start": 10, "small": 6, "tuned": 8, "longer": 8, "repaired": 9, "adapted": 9, "by_layer": 7}
    factor = {"start": 0.0, "small": 1.0, "text_alone": 0.9, "tuned": 0.5}
    return {
        "nodes": {
            node: {
                "kl": {text: [factor.get(node, 0.5) * kl for kl in (0.2, 0.4)] for text in small_and_right.TEXTS},
                "bytes": 100 if node != "start" else 800,
                "right": [number < right[node] for number in range(10)] if node in right else [],
            }
            for node in small_and_right.STEPS
        },
        "slices": {"tuning": ["a"], "reporting": ["b"]},
    }


def test_what_is_won_back_is_a_share_of_what_rounding_lost():
    rows = small_and_right.summary(found())["rows"]
    shares = {node: row["recovered"] for node, row in rows.items() if row.get("recovered") is not None}
    assert shares == pytest.approx(
        {"small": 0.0, "tuned": 0.5, "by_layer": 0.25, "longer": 0.5, "repaired": 0.75, "adapted": 0.75}
    )
    assert rows["repaired"]["before"]["right"]["mean"] == pytest.approx(0.1)
    assert rows["repaired"]["before"]["mcnemar_p"] == 1.0  # one of one could be chance
    assert rows["tuned"]["before"]["kl"]["text"]["mean"] == pytest.approx(0.5)
    assert rows["tuned"]["control"]["kl"]["text"]["mean"] == pytest.approx(0.5 / 0.9)
    assert "right" not in rows["tuned"]["control"]  # which is asked nothing


def test_tables_have_every_model_and_both_of_its_comparisons():
    made = small_and_right.tables({"tasks": {"chains": small_and_right.summary(found())}})
    steps = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made["chains-steps"].splitlines()[2:]]
    assert steps[0] == ["original", "800", "0.000", "0.000", "0.000", "100.0%", ""]
    assert steps[1] == ["rounded", "100", "0.300", "0.300", "0.300", "60.0%", "0%"]
    pairs = [[cell.strip() for cell in line.split("|")[1:3]] for line in made["chains-pairs"].splitlines()[2:]]
    assert ["repaired: scales", "tuned"] in pairs and ["repaired: scales", "tuned again on the same text"] in pairs
    assert not any(name == "rounded" for name, _ in pairs)  # the original diverges from itself by nothing


def test_a_task_stands_beside_those_that_were_recorded_before(tmp_path: Path):
    out, own = tmp_path / "it.json", small_and_right.summary(found())
    out.write_text(json.dumps(small_and_right.content(out, "chains", own)))
    other = own | {"slices": {"tuning": ["a"], "reporting": ["c"]}}
    both = small_and_right.content(out, "tables", other)
    assert list(both["tasks"]) == ["chains", "tables"]
    assert both["slices"] == {"tuning": ["a"], "reporting": ["b", "c"]}
