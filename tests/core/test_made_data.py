"""A node that makes data: the stage of the page on adding one, in recipes with nodes that read it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_stages import Scale

import burnish
from burnish import report
from burnish.core.checkpoint import Lineage
from burnish.core.errors import CheckpointError, DataError, RecipeError
from burnish.core.kinds import Kind
from burnish.core.made_data import ROWS_FILE, Data
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Rooms, Run
from burnish.data import data_hash, read_texts
from burnish.train.stage import Train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-stage.md"
TEXTS = [
    "It was the best of times, it was the worst of times. " * 4,
    "aaaa aaaa aaaa aaaa " * 12,
    "Call me Ishmael. " * 9,
]


@pytest.fixture(scope="module")
def hardest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of the page."""
    place = tmp_path_factory.mktemp("module")
    (code,) = re.findall(r'```python\n("""`Hardest`.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (place / "hardest_of_the_page.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        yield importlib.import_module("hardest_of_the_page").Hardest


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def run(hardest: Any, tiny_llama: Path, tmp_path: Path) -> Any:
    stages = {"hardest": hardest, "scale": Scale, "train": Train}

    def make(nodes: str) -> Run:
        text = f"start: {tiny_llama}\nnodes:\n{nodes}"
        rooms = Rooms(lambda name, where: stages[name], lambda: Scale, data_hash)
        return Run(parse_recipe(text, source="r.yaml"), tmp_path / "run", rooms, log=lambda message: None)

    return make


def recipe(texts: Path, share: float = 0.5) -> str:
    """The node that reads comes first in the file, so that order follows from what is named."""
    return (
        "  - {name: tuned, from: start, stage: train, data: hard, context: 16, batch: 2, steps: 2}\n"
        f"  - {{name: hard, from: start, stage: hardest, data: {texts}, share: {share}}}\n"
    )


def actions(work: Run) -> dict[str, str]:
    return {decision.node.name: decision.action for decision in work.execute()}


@pytest.mark.slow
def test_data_is_made_read_by_another_node_and_skipped_afterwards(run: Any, texts: Path, tmp_path: Path):
    work = run(recipe(texts))
    decisions = work.decide()
    work.plan(decisions)
    assert [decision.plan.kind for decision in decisions] == [Kind.DATA, Kind.CAUSAL_LM]
    assert actions(work) == {"hard": "run", "tuned": "run"}
    made, tuned = (tmp_path / "run" / "nodes" / name for name in ("hard", "tuned"))
    assert len(read_texts(str(made))) == 2 and set(read_texts(str(made))) < set(TEXTS)
    lineage, reader = Lineage.read(made), Lineage.read(tuned)
    assert lineage is not None and reader is not None
    assert lineage.kind is Kind.DATA and lineage.stage == "hardest"
    assert reader.parents["data"] == lineage.hash
    assert "hardest" in report.write(tmp_path / "run").read_text()
    assert actions(run(recipe(texts))) == {"hard": "skip", "tuned": "skip"}


def test_other_data_runs_what_reads_it_again_and_equal_data_does_not(run: Any, texts: Path):
    run(recipe(texts)).execute()
    assert actions(run(recipe(texts, share=0.7))) == {"hard": "run", "tuned": "skip"}  # the same two of three
    assert actions(run(recipe(texts, share=0.3))) == {"hard": "run", "tuned": "run"}


def test_data_that_was_edited_is_noticed(run: Any, texts: Path, tmp_path: Path):
    run(recipe(texts)).execute()
    (tmp_path / "run" / "nodes" / "hard" / ROWS_FILE).write_text('{"text": "edited"}\n')
    with pytest.raises(CheckpointError, match=r"rows.jsonl is not what the lineage file says"):
        run(recipe(texts)).execute()


def test_a_checkpoint_cannot_follow_data_and_data_is_no_teacher(run: Any, texts: Path):
    hard = f"  - {{name: hard, stage: hardest, data: {texts}}}\n"
    with pytest.raises(RecipeError, match=r"needs a causal-lm checkpoint, but is given data; give `from:` a node that"):
        run(hard + "  - {name: half, stage: scale}\n").execute()
    with pytest.raises(RecipeError, match="teacher must be a causal-lm checkpoint, but is a data"):
        run(hard + "  - {name: half, from: start, stage: scale, teacher: hard}\n").execute()


def test_a_word_that_names_a_checkpoint_is_not_data(run: Any, texts: Path):
    nodes = "  - {name: half, stage: scale}\n  - {name: tuned, stage: train, data: half, steps: 1}\n"
    with pytest.raises(DataError, match="no such file or text"):
        run(nodes).execute()


def test_in_python_the_rows_come_back(hardest: Any, tiny_llama: Path, tmp_path: Path):
    model = burnish.load(tiny_llama)
    rows = list(hardest(share=0.4)(model, data=TEXTS).rows)
    with torch.no_grad():
        ids = [model.tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
        losses = [float(model.module(input_ids=i, labels=i).loss) for i in ids]
    assert rows == [{"text": TEXTS[losses.index(max(losses))]}]
    Data(rows).save(tmp_path / "out")
    assert read_texts(str(tmp_path / "out")) == [row["text"] for row in rows]
    with pytest.raises(DataError, match="no row was made"):
        Data([]).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
