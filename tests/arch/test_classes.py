"""Every class of the table goes through every stage, and the stock class reads what comes out."""

import sys
from pathlib import Path

import pytest

from burnish.arch import known_model_types

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import architectures

NOT_PACKED = ("gpt2", "llama4_text")
"""What stock loaders could not read is refused: matrices stored (in, out), experts under other names."""
CORE = ("gpt_oss", "qwen3_5_moe_text", "glm4_moe", "gemma3")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in CORE else pytest.mark.long) for kind in known_model_types()],
)
def test_a_class_goes_through_every_stage(kind):
    found = architectures.outcome(kind)["steps"]
    wrong = {step: answer for step, answer in found.items() if answer not in ("yes", "")}
    assert wrong.keys() == {"quantize"} & wrong.keys() if kind in NOT_PACKED else not wrong, wrong
    if kind in NOT_PACKED:
        assert wrong["quantize"].startswith("refused: ")
