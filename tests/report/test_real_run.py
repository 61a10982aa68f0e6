"""A run by the real runner, measured by the real evaluation, and what the page says of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from small_stages import Scale

from burnish.core.ledger import Ledger
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Run
from burnish.report import ledger_table, render
from burnish.report.compare import checkpoints
from burnish.report.paired import Pairing
from burnish.report.run import read_run
from burnish.stages import ROOMS

LICENCE = Path(__file__).resolve().parents[2] / "LICENSE"
RECIPE = """
start: {start}
evaluate: {{text: {text}, second_text: {text}, third_text: {text}, num_windows: 4, context: 64, prompt_tokens: 16,
  decode_tokens: 4, repeats: 2}}
nodes:
  - {{name: same, stage: scale, factor: 1.0}}
  - {{name: half, from: start, stage: scale, factor: 0.5}}
  - {{name: twin, from: start, stage: scale, factor: 0.5}}
"""


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "scaled"
    text = directory.parent / "text.txt"
    text.write_text(LICENCE.read_text())
    recipe = parse_recipe(RECIPE.format(start=tiny_llama, text=text), source="r.yaml", default_name="scaled")
    rooms = dataclasses.replace(ROOMS, stage_class=lambda name, where: Scale)
    Run(recipe, directory, rooms, log=lambda message: None).execute()
    return directory


pytestmark = pytest.mark.slow


def test_a_start_and_its_unchanged_copy_are_within_noise(finished: Path):
    page = render([finished])
    assert "<strong>same</strong>: the same size, perplexity within noise of the start (scale)" in page
    assert "from tiny-llama" in page and "nats per token" in page


def test_the_paired_change_of_the_loss_is_that_of_the_measured_perplexities(finished: Path):
    run = read_run(finished)
    start, half = (next(c for c in checkpoints([run]) if c.node == name) for name in ("start", "half"))
    pairing = Pairing()
    loss = pairing.loss(start, half)
    assert loss is not None
    protocol, change = loss
    before, after = start.value("perplexity", protocol), half.value("perplexity", protocol)
    assert before is not None and after is not None
    assert before.value is not None and after.value is not None
    assert change.value == pytest.approx(math.log(after.value / before.value), abs=1e-9)


def test_every_metric_of_the_evaluation_is_known_to_the_report(finished: Path):
    from burnish.evaluate.pairs import summary
    from burnish.report.metrics import METRICS

    measured = {name for row in Ledger(finished).rows if row["row"] == "measurement" for name in row["metrics"]}
    of_pairs = summary(np.array([1.0, -1.0]), np.array([1, -1]), ["a", "b"], ["", ""]).metrics
    of_long_contexts = {"longppl", "key_tokens"}  # a measurement of its own, see tests/evaluate/test_longppl.py
    assert measured | of_pairs.keys() | of_long_contexts == set(METRICS)


def test_every_node_of_the_run_is_drawn_as_finished(finished: Path):
    assert {node.name: node.status for node in read_run(finished).nodes} == {
        "same": "finished",
        "half": "finished",
        "twin": "finished",
    }


def test_versions_come_from_the_checkpoints(finished: Path):
    assert "<dt>transformers</dt>" in render([finished])


def test_the_terminal_table_has_every_checkpoint(finished: Path):
    assert ledger_table(read_run(finished)).row_count == 4


def test_nodes_with_equal_weights_are_measured_once_and_both_show_it(finished: Path):
    measured = [row["node"] for row in Ledger(finished).rows if row["row"] == "measurement"]
    assert "half" in measured and "twin" not in measured
    half, twin = ((finished / "nodes" / name / "README.md").read_text() for name in ("half", "twin"))
    assert "## Measured" in half and half.partition("## Measured")[2] == twin.partition("## Measured")[2]
