"""Widths for a size: what a target means, what it makes, and what it refuses."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize.mixed import frontier_line
from burnish.quantize.stage import Quantize

SMALL = {"group_size": 32, "tokens": 512, "length": 32, "method": "gptq"}


def weights_bytes(directory):
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def run(stage, model, texts, work_dir):
    ctx = Context({"calibration": texts}, work_dir, "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
    return stage.run(model, ctx), {row["name"]: row["rows"] for row in ctx.ledger.rows if row["row"] == "table"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["3.4bits", "45%"])
def test_a_target_is_reached_and_loads_in_a_stock_loader(model, texts, ids, tmp_path, target):
    before = model.plan()
    quantized, tables = run(Quantize(target=target, **SMALL), model, texts, tmp_path)
    quantized.save(tmp_path / "out")
    allowed = Quantize(target=target, **SMALL).plan(before).num_bytes
    assert weights_bytes(tmp_path / "out") <= allowed
    if target.endswith("%"):
        assert allowed <= 0.45 * before.num_bytes
    assert len({row["bits"] for row in tables["widths"]}) > 1
    sizes = [row["bytes"] for row in tables["frontier"]]
    assert sizes == sorted(sizes) and len(sizes) > 3 and sum(row["chosen"] for row in tables["frontier"]) == 1
    assert max(sizes) > allowed > min(sizes)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, quantized.module(input_ids=ids).logits)


@pytest.mark.slow
def test_an_interrupted_search_ends_with_the_same_widths(model, texts, tmp_path):
    stage = Quantize(target="3.4bits", **SMALL)
    first, second = (run(stage, model, texts, tmp_path)[1] for _ in range(2))  # that finds what this has rounded
    assert first["widths"] == second["widths"] and first["frontier"] == second["frontier"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "1.5bits"}, r"target is 1.5bits, but the widths give .* \(2 bits\) to .* \(8 bits\)"),
        ({"target": "9bits"}, r"\(2 bits\) to .* \(8 bits\).*choose a target between"),
        (
            {"target": "10KB"},
            r"stay dense, of which model.embed_tokens alone takes .*, and no stock loader reads a packed embedding "
            r".transformers 5.17 stops, 5.24",
        ),
        ({"target": "400%"}, r"choose a target between"),
        ({"target": "3M parameters"}, r"a share of the weights' files .45%., a size .24GB, 100MB. or bits per weight"),
        ({"target": "3.5bits", "engine": "vllm"}, r"the widths that vllm has kernels for give .* \(4 bits\)"),
        ({"target": "3.5bits", "overrides": {"re:.*": {"bits": 8}}}, "use one of them"),
        ({"target": "3.5bits", "scheme": "fp8-dynamic"}, "fp8-dynamic has one alone"),
        ({"target": "3.5bits", "propagate": True}, "leave propagate and stream out"),
        ({"target": "3.5bits", "stream": True}, "leave propagate and stream out"),
    ],
)
def test_impossible_targets_are_refused_when_planned(model, settings, message):
    settings = SMALL | settings
    if "scheme" in settings:
        del settings["group_size"]
    with pytest.raises(SettingsError, match=message):
        Quantize(**settings).plan(model.plan())


def test_a_target_in_bits_is_the_size_of_that_width_and_both_counts_are_told(model):
    before = model.plan()
    told = [
        [note for note in Quantize(**settings, **SMALL).plan(before).notes if " with scales" in note]
        for settings in ({"target": "3.0bits"}, {"bits": 3})
    ]
    assert told[0] == told[1] and " matrices at 3.00 bits per weight, " in told[0][0]
    row = {"bits": 3.0, "bits_with_scales": 3.25, "bytes": 100_000_000, "kl": 0.5, "chosen": True}
    assert frontier_line(row).startswith("100 MB, 3.00 bits per weight, 3.25 with scales: KL 0.5000")


@pytest.mark.smollm2
def test_what_an_embedding_leaves_no_room_for_is_refused_with_the_loaders_that_cannot_read_it_packed(smollm2):
    before = load(smollm2).plan()
    settings = {"method": "yaqa", "sketch": "a", "damping": 0.1}
    with pytest.raises(SettingsError, match=r"75MB, .*embed_tokens alone takes 56.6 MB, .*5.17 stops, 5.24"):
        Quantize(target="75MB", **settings).plan(before)
    notes = " ".join(Quantize(target="100MB", **settings).plan(before).notes)
    assert "210 matrices at 3.00 bits per weight, 3.25 with scales" in notes


def test_an_engine_leaves_the_widths_that_it_has_kernels_for(model):
    notes = " ".join(Quantize(target="5bits", engine="vllm", **SMALL).plan(model.plan()).notes)
    assert "chosen among 4, 8 bits" in notes and "no built-in kernel" not in notes
    notes = " ".join(Quantize(target="5bits", **SMALL).plan(model.plan()).notes)
    assert "no built-in kernel for 2, 3, 5, 6, 7 bits" in notes
