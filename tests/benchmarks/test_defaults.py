"""No default of quantization is contradicted by a table that we have published ourselves."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from burnish.core.statistics import interval
from burnish.quantize.stage import Quantize

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import low_bits  # noqa: E402

DRAWS = 3
"""Of calibration windows or labels that must agree before a table speaks about a default."""


def rows_of(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def of_refitting(method: str) -> dict[tuple, dict[int, tuple[list[float], list[float]]]]:
    """{(width, text): {draw: divergences with refitted scales, and without}}."""
    kl = {(row["bits"], row["method"], row["draw"]): row["kl"] for row in rows_of("low_bits")}
    cells: dict = {}
    for (bits, of_row, draw), refitted in kl.items():
        plain = kl.get((bits, method, draw))
        if of_row == f"{method}, refit" and plain:
            for text in refitted:
                cells.setdefault((bits, text), {})[draw] = refitted[text], plain[text]
    return cells


def of_sketch(which: str, other: str) -> dict[tuple, dict[int, tuple[list[float], list[float]]]]:
    """{(width, model, budget): {label seed: divergences with the other sketch, and with this one}}."""
    rows = [row for row in rows_of("yaqa") if row["task"] == "measure" and row["model"] == "smollm2"]
    kl = {(row["method"], row["bits"], row["calibration_tokens"], row["label_seed"]): row["kl"] for row in rows}
    cells: dict = {}
    for (method, bits, tokens, seed), of_other in kl.items():
        of_this = kl.get((f"yaqa-{which}", bits, tokens, seed))
        if method == f"yaqa-{other}" and of_this:
            cells.setdefault((bits, tokens), {})[seed] = of_other, of_this
    return cells


def contradicted(cells: dict[tuple, dict[int, tuple[list[float], list[float]]]], draws: int = DRAWS) -> list[int]:
    """Widths at which the other setting is better on average in every cell and draw, and all windows together say so
    with a paired interval."""
    found = []
    for width in sorted({cell[0] for cell in cells}):
        of_width = [pairs for cell, pairs in cells.items() if cell[0] == width]
        ratios = [[np.divide(*pair) for pair in pairs.values()] for pairs in of_width]
        every = np.log(np.concatenate([ratio for some in ratios for ratio in some]))
        enough = all(len(pairs) >= draws for pairs in of_width)
        if enough and all(np.mean(np.log(r)) < 0 for some in ratios for r in some) and interval(every).high < 0:
            found.append(width)
    return found


@pytest.mark.parametrize(("rule", "row"), [("gptq", "gptq"), ("yaqa", "yaqa-a")])
def test_refitting_is_on_where_every_draw_says_so_and_off_elsewhere(rule, row):
    says = contradicted(of_refitting(row))
    default = Quantize(method=rule).num_refits
    assert bool(default) == bool(says), f"refit is {default} by default, but low_bits shows a gain at {says} bits"


def test_what_no_table_has_is_not_refitted_unless_asked_for():
    for settings in ({"method": "rtn"}, {"method": "learned"}, {"method": "gptq", "scheme": "fp8-dynamic"}):
        assert Quantize(**settings).num_refits == 0
        assert Quantize(**settings, refit=2).num_refits == 2


def test_the_default_sketch_loses_at_no_width():
    default = Quantize.model_fields["sketch"].default
    if default is not None:
        other = {"a": "b", "b": "a"}[default]
        assert not contradicted(of_sketch(default, other), draws=1)


def test_learned_rounding_does_by_default_what_the_table_was_measured_with():
    measured = Quantize(**low_bits.OURS["learned, yaqa, sensitivity"])
    drawn = {row["draw"] for row in rows_of("low_bits") if row["method"] == "learned, yaqa, sensitivity"}
    default = Quantize(method="learned")
    assert len(drawn) >= DRAWS
    for name in ("start", "error", "optimizer", "num_iterations", "num_tokens"):
        assert getattr(default, name) == getattr(measured, name)


def test_a_default_that_the_tables_contradict_would_be_found():
    """Sketch B was one: at 3 bits sketch A is ahead at every budget."""
    assert contradicted(of_sketch("b", "a"), draws=1) == [3]


@pytest.mark.parametrize(("windows", "found"), [([0.8, 0.81, 0.79], [3]), ([0.8, 1.3, 0.79], [])])
def test_one_cell_that_does_not_agree_is_no_contradiction(windows, found):
    pair = windows, [1.0, 1.0, 1.0]
    assert contradicted({(3, "text"): dict.fromkeys(range(3), pair)}) == found
    assert contradicted({(3, "text"): dict.fromkeys(range(2), pair)}) == []
