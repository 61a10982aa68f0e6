import re
from pathlib import Path

import pytest

from burnish.core.checkpoint import Lineage, model_card
from burnish.core.kinds import Kind, Weights
from burnish.core.page.numbers import MINUS, SPACE
from burnish.report.metrics import METRICS, metric
from burnish.report.run import Value

ROOT = Path(__file__).resolve().parents[2]


def plain(text: str) -> str:
    return text.replace(SPACE, " ").replace(MINUS, "-")


def test_a_value_has_the_digits_that_its_interval_supports():
    assert METRICS["perplexity"].write(Value(25.1329, 24.61, 25.69)) == "25.13"


def test_a_share_is_written_in_per_cent():
    assert plain(METRICS["top1_agreement"].write(Value(0.7719, 0.766, 0.778))) == "77.19 %"


def test_an_unknown_metric_keeps_the_name_and_unit_of_the_ledger():
    unknown = metric("blimp_accuracy")
    assert (unknown.label, plain(unknown.write(Value(81.25, unit="points")))) == ("blimp accuracy", "81.25 points")


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_one_name_on_page_and_card(name: str):
    measured = {name: {"value": 0.5, "unit": "", "protocol": "a"}}
    card = model_card(Lineage(kind=Kind.CAUSAL_LM, weights=Weights.DENSE, measurements=measured))
    assert f"| {metric(name).label} | 0.5" in card


@pytest.mark.parametrize("words", [r"same (first|top)(?! tokens?\b)", r"top-?1 agreement", r"agreement of the top"])
def test_the_share_of_equal_top_tokens_has_no_other_name(words: str):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.j2")]
    assert [path.name for path in pages if re.search(words, path.read_text(), re.IGNORECASE)] == []
