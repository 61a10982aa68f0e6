"""What the benchmark of low bits compares, and how it puts statistics together."""

import sys
from pathlib import Path

import pytest
import torch

from burnish.arch import matrices
from burnish.calibrate import Calibration, collect
from burnish.quantize.formats import FORMATS
from burnish.quantize.method import Rounding
from burnish.quantize.plan import select
from burnish.quantize.rule import Strength
from burnish.quantize.rules import RULES
from burnish.quantize.tuning import rounded_under
from small_models import small_llama

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import low_bits


def test_what_is_compared_can_be_measured():
    methods = {*low_bits.OURS, *low_bits.INPUTS, *low_bits.ROUNDED_EMBEDDINGS, *low_bits.CHECKPOINTS}
    assert {*low_bits.PARTS, *low_bits.PARTS.values()} <= methods
    assert {base for base, _ in low_bits.ROUNDED_EMBEDDINGS.values()} - {""} <= {*low_bits.OURS}


def test_widths_of_the_other_benchmark_are_found_in_its_results():
    assert {name for _, name in low_bits.of_mixed_widths()} == set(low_bits.WIDTHS)


def test_a_part_stands_beside_what_it_is_compared_with_on_the_draws_that_both_have():
    kl = {text: [0.2, 0.4] for text in low_bits.DOMAINS}
    half = {text: [0.1, 0.2] for text in low_bits.DOMAINS}
    rows = [{"bits": 3, "method": "yaqa-a, refit", "draw": draw, "kl": kl, "bytes": 99_800_000} for draw in (0, 1)] + [
        {"bits": 3, "method": "yaqa-a, refit 3 times", "draw": 1, "kl": half, "bytes": 99_800_000}
    ]
    rows.append(rows[0] | {"bits": 4, "bytes": 113_100_000})
    (line,) = low_bits.tables({"rows": rows})["parts"].splitlines()[2:]
    assert line.startswith(
        "| 3 | yaqa-a, refit 3 times | yaqa-a, refit | 1 | 0.150 | 0.150 | 0.150 | 0.50 (0.50 to 0.50)"
    )


def test_sizes_around_a_target_are_those_that_the_command_told_and_the_chosen_one_is_the_files():
    kl = {text: [0.2, 0.4] for text in low_bits.DOMAINS}
    size = {"bits": 2.5, "bytes": 93_400_000, "kl": 0.5, "low": 0.4, "high": 0.6, "chosen": False}
    told = {"frontier": [size, size | {"bits": 3.0, "bytes": 100_000_000, "kl": 0.3, "chosen": True}]}
    row = {"bits": 3, "method": "command-100MB", "draw": 0, "kl": kl, "bytes": 99_800_000, "told": told}
    others = [{"bits": bits, "method": "yaqa-a, refit", "draw": 0, "kl": kl, "bytes": 99_800_000} for bits in (3, 4)]
    found = low_bits.tables({"rows": [row, *others]})
    lines = found["frontier"].splitlines()[2:]
    assert [[part.strip() for part in line.split("|")[2:6]] for line in lines] == [
        ["93.4", "2.50", "0.500 (0.400 to 0.600)", ""],
        ["100.0", "3.00", "0.300 (0.400 to 0.600)", "the target"],
    ]
    assert any("--target 100MB" in line and "| 100.0 |" in line for line in found["main"].splitlines())


def test_other_inputs_are_the_covariance_of_one_collection_beside_the_sketches_of_another(tmp_path):
    module = small_llama()
    views = select(matrices(module), ())
    texts = [Calibration(torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(n))) for n in (0, 1)]
    inputs = collect(module, views, texts[0], tmp_path / "inputs", key={})
    sketches = collect(module, views, texts[1], tmp_path / "sketches", key={}, sketches=["a"])
    both = low_bits.OtherInputs(inputs, sketches).read(views[0], range(4))
    assert both.covariance is not None
    torch.testing.assert_close(both.covariance, inputs.read(views[0], range(4)).covariance, rtol=0, atol=0)
    for mixed, given in zip(both.sketches["a"], sketches.read(views[0], range(4)).sketches["a"], strict=True):
        torch.testing.assert_close(mixed, given, rtol=0, atol=0)


@pytest.mark.parametrize("changed", [False, True])
def test_layer_by_layer_is_rounding_at_once_but_for_inputs_behind_rounded_layers(tmp_path, changed):
    module = small_llama()
    views = select(matrices(module), ())
    text = Calibration(torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(0)))
    grid = FORMATS["int"](3, 32, True)
    rounding = Rounding(RULES["yaqa"], grid, torch.bfloat16, Strength(0.1, 0.1, 1.0), "a", refit=1)
    at_once = collect(module, views, text, tmp_path / "at-once", key={}, sketches=["a"])
    wanted = rounded_under(views, {"": rounding}, at_once)[""]
    low_bits.round_by_layer(views, rounding, text, module, tmp_path, changed=changed)
    same = [torch.equal(view.tensor.to(torch.bfloat16), wanted[view.name]) for view in views]
    first = [view.layer == 0 for view in views]
    assert same == (first if changed else [True] * len(views))
