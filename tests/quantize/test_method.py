"""Methods over a whole model: what they minimise, what the table says, and what experts fall back to."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.arch import matrices
from burnish.core.checkpoint import Model
from burnish.core.errors import SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize.stage import Quantize
from small_models import make

SMALL = {"group_size": 32, "tokens": 2048, "length": 64}


def run(model, texts, tmp_path, **settings):
    """The quantized model and the rows of its table."""
    stage = Quantize(**SMALL | settings)
    ctx = Context({"calibration": texts}, tmp_path, "cpu", seeded_generator(0), Progress(False), Ledger(None))
    quantized = stage.run(model, ctx)
    (table,) = [row for row in ctx.ledger.rows if row["row"] == "table" and row["name"] == "layers"]
    return quantized, table["rows"]


def total(rows, column):
    return sum(row[column] for row in rows)


def test_each_method_lowers_what_it_minimises(model, texts, tmp_path):
    """The signature of two-sided rounding: its own proxy falls, the one-sided proxy rises."""
    _, one_sided = run(
        model, texts, tmp_path / "a", method="yaqa", sketch="b", bits=3, damping=1e9
    )  # in effect nearest rounding
    _, gptq = run(model, texts, tmp_path / "b", method="gptq", bits=3, damping=0.03)
    _, yaqa = run(model, texts, tmp_path / "c", method="yaqa", sketch="b", bits=3, damping=0.03)
    assert total(gptq, "one_sided_proxy") < 0.8 * total(one_sided, "one_sided_proxy")
    assert total(yaqa, "two_sided_proxy") < 0.8 * total(one_sided, "two_sided_proxy")
    assert total(yaqa, "one_sided_proxy") > total(gptq, "one_sided_proxy")


def test_the_table_has_a_row_for_every_matrix_in_order(model, texts, tmp_path):
    _, rows = run(model, texts, tmp_path, method="yaqa", sketch="b", bits=3)
    names = [view.name for view in matrices(model.module) if view.layer is not None]
    assert [row["name"] for row in rows] == names
    assert {row["rounding"] for row in rows} <= {"two-sided", "one-sided"}
    assert all(row["num_tokens"] == 2048 for row in rows)


def test_the_gain_that_a_choice_promises_is_reported(model, texts, tmp_path):
    _, rows = run(model, texts, tmp_path, method="yaqa", sketch="b", bits=3)
    for row in rows:
        assert (row["output_damping"] is None) == (row["rounding"] == "one-sided")
        assert row["output_gain"] >= 0 and row["input_gain"] >= 0


def test_matrices_that_are_one_weight_on_disk_are_packed_as_one(texts, tmp_path):
    module = make("phi3", num_hidden_layers=1)
    quantized = Quantize(method="rtn", bits=3, group_size=32, symmetric=False)(Model(module=module))
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, quantized.module(ids).logits, rtol=0, atol=0)


@pytest.fixture
def mixtral(model):
    """Four experts, two per token."""
    return Model(module=make("mixtral"), tokenizer=model.tokenizer)


@pytest.mark.slow
def test_experts_that_saw_no_token_borrow_and_the_table_says_so(mixtral, texts, tmp_path, monkeypatch):
    import transformers.models.mixtral.modeling_mixtral as modeling

    original = modeling.MixtralTopKRouter.forward

    def never_the_last(self, hidden_states):
        logits, weights, _ = original(self, hidden_states)
        top_weights, top_index = logits[:, :3].softmax(-1).topk(2, dim=-1)
        return logits, (top_weights / top_weights.sum(-1, keepdim=True)).to(weights.dtype), top_index

    monkeypatch.setattr(modeling.MixtralTopKRouter, "forward", never_the_last)
    _, rows = run(mixtral, texts, tmp_path / "work", method="yaqa", sketch="b", bits=4)
    unseen = [row for row in rows if ".experts.3." in row["name"]]
    assert len(unseen) == 6 and all(row["num_tokens"] == 0 for row in unseen)
    assert {row["rounding"] for row in unseen} == {"one-sided, borrowed"}
    seen = [row for row in rows if ".experts." in row["name"] and row["num_tokens"] >= 256]
    assert seen and {row["rounding"] for row in seen} <= {"two-sided", "one-sided"}
    assert all(row["one_sided_proxy"] < 1 for row in unseen)


def test_packed_experts_load_in_transformers(mixtral, ids, tmp_path):
    quantized = Quantize(method="rtn", bits=4, group_size=32)(mixtral)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, quantized.module(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "olmoe", "deepseek_v3"])
@pytest.mark.parametrize("experts", [{}, {"experts_implementation": "eager"}])
def test_in_which_dtypes_a_packed_checkpoint_loads(model, ids, tmp_path, kind, experts):
    """All of them; with eager experts the stored one alone, and Mixtral's always, which the plan says. Where that
    changes, the note has to go."""
    stored = torch.bfloat16
    packed = Model(module=make(kind).to(stored), tokenizer=model.tokenizer, dtype=stored)
    stage = Quantize(method="rtn", bits=4, group_size=16)
    assert any("in the dtype that is stored" in note for note in stage.plan(packed.plan()).notes) == (kind != "llama")
    stage(packed).save(tmp_path / "out")
    stops = kind == "mixtral" or (kind != "llama" and bool(experts))
    for dtype in ("auto", torch.bfloat16, torch.float16, torch.float32):
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype, **experts)
        with torch.no_grad():
            if stops and dtype not in ("auto", stored):
                with pytest.raises(RuntimeError, match="same dtype"):
                    read(ids)
            else:
                assert read(ids).logits.dtype == (stored if dtype == "auto" else dtype)


def test_asymmetric_experts_are_refused(mixtral):
    with pytest.raises(SettingsError, match="only without zero points"):
        Quantize(symmetric=False, group_size=32).plan(mixtral.plan())


def test_propagated_statistics_are_those_of_the_quantized_model(model, texts, tmp_path):
    """The last layer's covariance is measured on the outputs of rounded layers, so its codes differ."""
    plain, _ = run(model, texts, tmp_path / "a", method="gptq", bits=2, damping=0.01)
    moved, rows = run(model, texts, tmp_path / "b", method="gptq", bits=2, damping=0.01, propagate=True)
    name = "model.layers.{}.mlp.up_proj.weight"
    same = [
        torch.equal(
            plain.packed[name.format(n)][name.format(n) + "_packed"],
            moved.packed[name.format(n)][name.format(n) + "_packed"],
        )
        for n in (0, 1)
    ]
    assert same == [True, False]
    assert len(rows) == 14
