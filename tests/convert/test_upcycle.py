"""Upcycling: the mixture computes what the dense model computed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import num_active_parameters
from burnish.convert.stage import Upcycle
from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.kinds import Plan
from small_models import make, small_config

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.3}
ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
DENSE = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "long rope": ("llama", {"rope_parameters": ROPE, "rms_norm_eps": 1e-3}),
    "wide heads": ("llama", {"head_dim": 16}),
    "sliding window": ("mistral", {"sliding_window": 6}),
}


def dense(name: str) -> Model:
    kind, changes = DENSE[name]
    return Model(module=make(kind, **SHAPE | changes))


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (3, 1), (2, 2)])
def test_at_step_zero_the_mixture_computes_what_the_dense_model_does(ids, name, num_experts, top_k):
    model = dense(name)
    mixture = Upcycle(num_experts=num_experts, top_k=top_k)(model)
    torch.testing.assert_close(logits(mixture.module, ids), logits(model.module, ids), rtol=0, atol=1e-4)


def test_it_is_a_stock_mixtral_on_disk(tmp_path, ids):
    mixture = Upcycle(num_experts=4)(dense("tied"))
    directory = mixture.save(tmp_path / "moe")
    read = AutoModelForCausalLM.from_pretrained(directory)
    assert type(read).__name__ == "MixtralForCausalLM"
    torch.testing.assert_close(logits(read, ids), logits(mixture.module, ids), rtol=0, atol=0)
    assert not list(directory.glob("*.py"))


def test_planned_parameters_are_those_of_the_result(tiny_llama):
    model = load(tiny_llama)
    planned = Upcycle(num_experts=4).plan(model.plan())
    made = Upcycle(num_experts=4)(model).plan()
    assert planned.num_parameters == made.num_parameters
    assert num_active_parameters(planned) == num_active_parameters(made) < made.num_parameters


def test_noise_makes_experts_differ_by_the_share_asked_for():
    model = dense("llama")
    experts = Upcycle(num_experts=2, noise=0.05)(model).module.model.layers[0].mlp.experts.down_proj
    copied = model.module.model.layers[0].mlp.down_proj.weight
    assert ((experts[0] - copied).std() / copied.std()).item() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(experts[0], experts[1])


def test_routers_differ_between_layers_and_come_from_the_seed():
    first, again, other = (
        [layer.mlp.gate.weight for layer in Upcycle(seed=seed)(dense("llama")).module.model.layers]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_the_dense_model_shares_no_memory_with_the_mixture():
    model = dense("tied")
    mixture = Upcycle(num_experts=2)(model).module
    old = {tensor.untyped_storage().data_ptr() for tensor in model.module.parameters()}
    assert not old & {tensor.untyped_storage().data_ptr() for tensor in mixture.parameters()}
    assert mixture.lm_head.weight is mixture.model.embed_tokens.weight


def plan_of(config) -> Plan:
    return dense("llama").plan().with_(config=config)


def test_biases_that_mixtral_lacks_are_refused():
    with pytest.raises(SettingsError, match="attention_bias is set"):
        Upcycle().plan(plan_of(small_config("llama", attention_bias=True)))


def test_more_chosen_experts_than_there_are_is_refused():
    with pytest.raises(SettingsError, match="top_k is 4, but there are only 2 experts"):
        Upcycle(num_experts=2, top_k=4).plan(plan_of(small_config("llama")))


def test_other_dense_models_are_refused():
    with pytest.raises(SettingsError, match="this one is a qwen3"):
        Upcycle().plan(plan_of(small_config("qwen3")))


def test_unknown_model_types_are_refused():
    with pytest.raises(CheckpointError, match="does not know model_type 'gpt_neox'"):
        Upcycle().plan(plan_of(small_config("gpt_neox")))


@pytest.mark.slow
def test_the_embedded_model_computes_the_same_as_a_mixture(smollm2):
    model = load(smollm2, dtype=torch.float32)
    ids = model.tokenizer("The first transatlantic cable was laid in", return_tensors="pt").input_ids
    before = logits(model.module, ids)
    mixture = Upcycle(num_experts=2, top_k=1)(model)
    assert (logits(mixture.module, ids) - before).abs().max() < 1e-4
