"""RULER's measures, on rows as its generators write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.verify import Ruler, RulerQuestions, read_problems, verifier

VARIABLES = {
    "index": 0,
    "input": "VAR ULZDX = 54131 ... Find all variables that are assigned the value 54131 in the text above.",
    "outputs": ["ULZDX", "EBLNU", "RYTFL", "YXQRD"],
    "length": 2029,
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("ulzdx, eblnu, rytfl and YXQRD", 1.0),
        ("They are ULZDX EBLNU.", 0.5),
        ("ULZDX\x00EBLNU", 0.5),
        ("none", 0.0),
        ("<think>ULZDX EBLNU RYTFL YXQRD</think>ULZDX", 0.25),
        ("<think>ULZDX EBLNU RYTFL YXQRD", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_of_texts_that_occur_after_the_reasoning(text: str, score: float):
    ruler = Ruler()
    assert ruler.score(text, ruler.adapted(VARIABLES)) == score


def test_any_way_to_say_an_answer_is_enough_for_a_question():
    row = {"question": "Which?", "outputs": ["New York", "NYC"]}
    assert RulerQuestions().score("It is nyc.", row) == Ruler().score("It is nyc.", {**row, "task": "qa_1"}) == 1.0
    assert Ruler().score("It is nyc.", row) == 0.5
    assert RulerQuestions().score("Boston", row) == 0.0


def test_a_file_of_rulers_generators_loads(tmp_path: Path):
    path = tmp_path / "validation.jsonl"
    path.write_text(json.dumps(VARIABLES) + "\n")
    with verifier("ruler") as ruler:
        (problem,) = read_problems(path, ruler)
        assert ruler.prompt(problem) == VARIABLES["input"]
        assert problem["id"] == "validation.jsonl:1"
        assert ruler.equivalent("a  b.", "A b")


@pytest.mark.parametrize("outputs", [[], "7374122", [""], {"a": 1}, None])
def test_a_row_without_a_list_of_texts_is_refused(outputs: Any):
    with pytest.raises(DataError, match="`outputs`"):
        Ruler().check({"question": "?", "outputs": outputs}, where="f:1")


def test_a_name_that_is_nearly_one():
    with pytest.raises(SettingsError, match="did you mean 'ruler'"):
        verifier("rules")
