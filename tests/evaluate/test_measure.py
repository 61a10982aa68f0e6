import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from burnish.core.checkpoint import Lineage, Model, load
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.kinds import Kind
from burnish.core.ledger import Ledger, protocol_hash
from burnish.data import cut, read_texts
from burnish.evaluate import Evaluate
from burnish.evaluate.measure import network
from burnish.evaluate.sizes import measure_sizes
from small_models import make

FAST = Evaluate(num_windows=4, context=64, max_chars=4000, speed=False)


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    return load(tiny_llama)


@pytest.fixture
def other(tiny_llama: Path) -> Model:
    """The same architecture and tokenizer with weights that differ a little; exists in memory only."""
    source = load(tiny_llama)
    changed = source.derive(module=source.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in changed.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return changed


@torch.inference_mode()
def test_perplexity_is_the_exponential_of_transformers_own_loss(model: Model):
    (text,) = read_texts("wikitext2-test")
    ids = torch.tensor(model.tokenizer(text[:4000], add_special_tokens=False).input_ids)[: 4 * 64].view(4, 64)
    losses = [model.module(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    assert FAST(model).metrics["perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)


def test_bits_per_byte_is_bits_over_the_bytes_of_predicted_tokens(model: Model):
    evaluation = FAST(model)
    (text,) = read_texts("wikitext2-test")
    tokens = cut(model.tokenizer, [text[:4000]], 64, num_windows=4).tokens
    num_bytes = sum(len(model.tokenizer.decode(row[1:]).encode()) for row in tokens)
    bits = sum(evaluation.sequences["nats"]) / math.log(2)
    assert evaluation.metrics["bits_per_byte"]["value"] == pytest.approx(bits / num_bytes, rel=1e-12)


@torch.inference_mode()
def test_divergence_and_agreement_equal_a_direct_computation(model: Model, other: Model):
    evaluation = FAST(other, reference=model)
    (text,) = read_texts("wikitext2-test")
    tokens = cut(model.tokenizer, [text[:4000]], 64, num_windows=4).tokens
    p, q = (part.module(tokens).logits[:, :-1].double().log_softmax(dim=-1) for part in (model, other))
    expected = (p.exp() * (p - q)).sum(dim=-1)
    agreeing = (p.argmax(dim=-1) == q.argmax(dim=-1)).sum(dim=1)
    assert evaluation.sequences["kl"] == pytest.approx(expected.sum(dim=1).tolist(), rel=1e-4)
    assert evaluation.sequences["agreeing"] == agreeing.tolist()
    assert evaluation.metrics["kl_divergence"]["value"] == pytest.approx(expected.mean().item(), rel=1e-4)


@torch.inference_mode()
def test_a_model_edited_in_memory_diverges_from_the_directory_it_came_from(model: Model, tiny_llama: Path):
    edited = load(tiny_llama)
    for parameter in edited.module.parameters():
        parameter.data.mul_(1.5)
    evaluation = FAST(edited, reference=model)
    (text,) = read_texts("wikitext2-test")
    tokens = cut(model.tokenizer, [text[:4000]], 64, num_windows=4).tokens
    p, q = (part.module(tokens).logits[:, :-1].double().log_softmax(dim=-1) for part in (model, edited))
    expected = (p.exp() * (p - q)).sum(dim=-1).mean().item()
    assert expected > 1e-3
    assert evaluation.metrics["kl_divergence"]["value"] == pytest.approx(expected, rel=1e-4)
    assert evaluation.metrics["kl_divergence"]["note"] == ""


def test_a_second_text_is_measured_as_the_first_would_be(model: Model, other: Model):
    alone = FAST.model_copy(update={"text": "wikitext2-valid"})(other, reference=model)
    both = FAST.model_copy(update={"second_text": "wikitext2-valid"})(other, reference=model)
    for name in ("perplexity", "bits_per_byte", "kl_divergence", "top1_agreement"):
        assert both.metrics[f"{name}_second"] == alone.metrics[name] != both.metrics[name]
    first = FAST(other, reference=model)
    assert both.metrics["perplexity"] == first.metrics["perplexity"]
    assert protocol_hash(both.protocol) != protocol_hash(first.protocol)


def test_a_third_text_stands_beside_two(model: Model, other: Model):
    texts = {"second_text": "wikitext2-valid", "third_text": "wikitext2-test"}
    three = FAST.model_copy(update=texts)(other, reference=model)
    assert three.metrics["kl_divergence_third"] == three.metrics["kl_divergence"]
    assert three.metrics["kl_divergence_second"] != three.metrics["kl_divergence"]
    assert {"second_text", "third_text"} <= three.protocol.keys()


def test_a_measurement_of_a_model_is_not_that_of_its_edited_copy(model: Model, tiny_llama: Path, tmp_path: Path):
    ledger = Ledger(tmp_path)
    first = FAST(model)
    first.record(ledger, model.identity, "somewhere")
    edited = load(tiny_llama)
    edited.module.model.norm.weight.data.mul_(3)
    assert FAST(edited, reference=model, ledger=ledger).sequences != first.sequences


def test_a_model_without_a_reference_is_its_own(model: Model):
    metrics = FAST(model).metrics
    assert metrics["kl_divergence"]["value"] == 0 and metrics["top1_agreement"]["value"] == 1
    assert metrics["kl_divergence"]["note"] == "it is its own reference"


def test_the_reference_shares_its_protocol_with_what_is_measured_against_it(model: Model, other: Model):
    assert FAST(model).protocol == FAST(other, reference=model).protocol


def test_other_text_or_context_is_another_protocol(model: Model):
    hashes = {
        protocol_hash(evaluate(model).protocol)
        for evaluate in (
            FAST,
            FAST.model_copy(update={"text": "wikitext2-valid"}),
            FAST.model_copy(update={"context": 32}),
            FAST.model_copy(update={"num_windows": 3}),
        )
    }
    assert len(hashes) == 4


def test_what_the_ledger_holds_is_not_measured_again(model: Model, tmp_path: Path):
    evaluate = FAST.model_copy(update={"speed": True, "prompt_tokens": 16, "decode_tokens": 2})
    ledger = Ledger(tmp_path)
    first = evaluate(model)
    first.record(ledger, model.hash, "somewhere")
    again = evaluate(model, ledger=Ledger(tmp_path))
    assert again.metrics == first.metrics  # speeds included, which no second measurement would repeat
    assert again.sequences == first.sequences


def test_one_window_has_values_without_bounds(model: Model):
    metrics = FAST.model_copy(update={"num_windows": 1})(model).metrics
    assert metrics["perplexity"]["low"] is None
    json.dumps(metrics, allow_nan=False)


def test_speed_has_the_spread_of_its_repeats(model: Model):
    evaluate = FAST.model_copy(update={"speed": True, "prompt_tokens": 16, "decode_tokens": 2, "repeats": 3})
    metrics = evaluate(model).metrics
    for name in ("prefill_speed", "decode_speed"):
        assert 0 < metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert metrics["peak_memory"]["value"] > metrics["bytes_on_disk"]["value"]


def test_speed_of_packed_weights_is_not_a_number(model: Model):
    name = "model.layers.0.mlp.up_proj.weight"
    quantized = model.derive(module=model.module, packed={name: {f"{name}_packed": torch.zeros(10, dtype=torch.int32)}})
    metrics = FAST.model_copy(update={"speed": True, "prompt_tokens": 16})(quantized).metrics
    assert metrics["decode_speed"]["value"] is None
    assert "decompresses packed weights" in metrics["decode_speed"]["note"]


def test_a_bfloat16_model_is_computed_in_float32_on_a_cpu_and_left_as_it_is(model: Model):
    model.module.to(torch.bfloat16)
    evaluation = FAST(model)
    assert evaluation.protocol["dtype"] == "float32"
    assert model.module.dtype is torch.bfloat16
    assert network(model, dtype=torch.float32, device="cpu").dtype is torch.float32


def test_the_result_does_not_depend_on_texts_given_as_a_list_or_by_name(model: Model):
    by_name, by_list = FAST(model), FAST(model, text=read_texts("wikitext2-test"))
    assert by_list.sequences == by_name.sequences
    assert by_list.protocol["text_hash"] == by_name.protocol["text_hash"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_short_text_is_refused_with_both_counts(model: Model, tmp_path: Path):
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(DataError, match=r"short.txt: has \d+ tokens, but 4 windows of 64 need 256"):
        FAST.model_copy(update={"text": str(tmp_path / "short.txt")})(model)


def test_context_beyond_the_models_positions_is_refused(model: Model):
    with pytest.raises(SettingsError, match="context is 512, but the model's positions end at 256"):
        FAST.model_copy(update={"context": 512})(model)


def test_prompt_beyond_the_models_positions_is_refused(model: Model):
    with pytest.raises(SettingsError, match="prompt_tokens and decode_tokens add up to 544"):
        Evaluate(num_windows=4, context=64)(model)


def test_missing_tokenizer_is_named(tiny_llama: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        FAST(load(tmp_path))


def test_reference_with_another_vocabulary_size_is_refused(model: Model):
    with pytest.raises(CheckpointError, match="vocabulary of 384 and the reference one of 380"):
        FAST(model, reference=Model(module=make("llama", vocab_size=380), tokenizer=model.tokenizer))
    with pytest.raises(CheckpointError, match="without a tokenizer in both"):
        FAST(model, reference=Model(module=make("llama", vocab_size=400)))


@pytest.mark.parametrize("padded", ["model", "reference"])
def test_rows_beyond_the_last_token_are_not_compared(model: Model, other: Model, padded: str):
    alike = FAST(model, reference=other).metrics["kl_divergence"]["value"]
    pair = {"model": copy.deepcopy(model.module), "reference": copy.deepcopy(other.module)}
    pair[padded].resize_token_embeddings(400)
    pair[padded].get_output_embeddings().weight.data[384:] = 5.0
    changed, reference = (Model(module=module, tokenizer=model.tokenizer) for module in pair.values())
    assert FAST(changed, reference=reference).metrics["kl_divergence"]["value"] == pytest.approx(alike, rel=1e-5)


def test_reference_that_numbers_its_tokens_differently_is_refused(model: Model, other: Model):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(CheckpointError, match="number their tokens differently"):
        FAST(model, reference=Model(module=other.module, tokenizer=tokenizer))


def test_what_predicts_no_text_is_refused(model: Model):
    with pytest.raises(CheckpointError, match="only a causal-lm predicts text"):
        FAST(Model(module=model.module, tokenizer=model.tokenizer, lineage=Lineage(kind=Kind.STEERING)))


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_tied_weights_are_read_whole(model: Model):
    sizes = measure_sizes(model, model.module)
    assert sizes.weight_bytes_per_token == 4 * sizes.num_parameters
    assert sizes.bytes_on_disk >= sizes.weight_bytes_per_token


def test_one_row_of_an_untied_embedding_is_read():
    module = make("llama", vocab_size=100, hidden_size=16)
    sizes = measure_sizes(Model(module=module), module)
    assert sizes.weight_bytes_per_token == 4 * (sizes.num_parameters - 99 * 16)


def test_experts_are_read_as_often_as_tokens_are_routed_to_them():
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    module = make("mixtral", num_experts_per_tok=1, tie_word_embeddings=True, **shape)
    sizes = measure_sizes(Model(module=module), module)
    idle = 3 * (3 * 16 * 24)
    assert sizes.num_active_parameters == sizes.num_parameters - idle
    assert sizes.weight_bytes_per_token == 4 * (sizes.num_parameters - idle)


def test_packed_tensors_count_in_their_stored_width(model: Model):
    name = "model.layers.0.mlp.up_proj.weight"
    packed = {
        name: {f"{name}_packed": torch.zeros(10, dtype=torch.int32), f"{name}_scale": torch.zeros(6, dtype=torch.half)}
    }
    quantized = model.derive(module=model.module, packed=packed)
    dense = model.module.state_dict()[name].numel() * 4
    before, after = (measure_sizes(part, part.module).weight_bytes_per_token for part in (model, quantized))
    assert after == before - dense + 10 * 4 + 6 * 2


# -- the real model ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_has_the_perplexity_that_others_measured(smollm2: Path):
    """25.82, measured with a plain transformers loop, in float32, on another machine, from the float32 weights."""
    metrics = Evaluate(num_windows=6, speed=False)(load(smollm2)).metrics
    assert metrics["perplexity"]["value"] == pytest.approx(25.82, rel=0.005)
