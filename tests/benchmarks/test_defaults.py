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


def best_refits(method: str, rows: list[dict]) -> set[int]:
    """How often scales are refitted for the smallest divergence over texts, at every width, of the counts that enough
    draws have measured."""
    kl: dict[tuple[int, int], list[list[float]]] = {}
    counts = {method: 0, f"{method}, refit": 1, f"{method}, refit 3 times": 3}
    for row in rows:
        if row["method"] in counts:
            of_texts = [np.mean(row["kl"][text]) for text in low_bits.DOMAINS]
            kl.setdefault((row["bits"], counts[row["method"]]), []).append(of_texts)
    means = {cell: np.log(np.mean(draws, axis=0)).mean() for cell, draws in kl.items() if len(draws) >= DRAWS}
    widths = {bits for bits, _ in means}
    return {min((count for width, count in means if width == bits), key=lambda n: means[bits, n]) for bits in widths}


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
def test_scales_are_refitted_as_often_as_the_table_says(rule, row):
    assert best_refits(row, rows_of("low_bits")) == {Quantize(method=rule).num_refits}


def test_another_number_of_refits_would_be_found():
    once = [row for row in rows_of("low_bits") if "3 times" not in row["method"]]
    assert (best_refits("yaqa-a", once), best_refits("yaqa-a", rows_of("low_bits"))) == ({1}, {3})


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
