"""What the benchmark of SwiftKV makes of its measurements, and the start that it compares with."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import swiftkv

from small_models import make


@torch.no_grad()
def test_with_one_norm_later_projections_give_what_they_gave_behind_the_first_later_norm():
    module, scaled = (make("llama", dtype=torch.float64, disturbed=True, num_hidden_layers=4) for _ in range(2))
    swiftkv.share_norm(scaled, 2)
    x = torch.randn(5, module.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(scaled.model.layers[2:], module.model.layers[2:], strict=True):
        expected = theirs.self_attn.k_proj(module.model.layers[2].input_layernorm(x))
        torch.testing.assert_close(ours.self_attn.k_proj(ours.input_layernorm(x)), expected, rtol=0, atol=1e-6)


def test_rows_of_prefill_have_the_ratio_of_products_and_of_seconds_in_turns():
    seconds = {"original": [2.0, 4.0], "15": [1.0, 2.0]}
    runs = {"prefill, 1024": {"products": {"original": 1000, "15": 532}, "seconds": seconds}}
    assert list(swiftkv.prefill_rows(runs)) == [["1024", "15", "0.532", "0.50 (0.50 to 0.50)"]]


def test_a_distillation_is_compared_with_its_start_window_by_window():
    quality = {kind: {"kl": [0.5, 1.0], "nats": [1.0, 1.0]} for kind in ("wikitext", "code")}
    start = {kind: {"kl": [1.0, 2.0], "nats": [1.0, 1.0]} for kind in ("wikitext", "code")}
    runs = {"distilled": quality, "start, 15": start, f"start, {swiftkv.ONE_NORM}": start}
    assert [row[1] for row in swiftkv.pair_rows(runs)] == ["0.50 (0.50 to 0.50)", "1.00 (1.00 to 1.00)"]
