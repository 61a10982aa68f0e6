"""Every parameter goes to exactly one rule, and to the right one."""

import pytest
import torch
import transformers

import small_models
from burnish.core.errors import SettingsError
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import NorMuon, explain, optimizer_class, route
from burnish.optim.routing import param_groups

CONFIGS = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "mixtral": ("mixtral", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    # Not in the architecture table: read from the types of their modules.
    "gpt_oss": ("gpt_oss", {}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {}),
}


def make(name):
    kind, changes = CONFIGS[name]
    return small_models.make(kind, **changes)


def by_name(name, **options):
    return {one.name: one for one in route(make(name), **options)}


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_is_routed_exactly_once(name):
    model = make(name)
    optimizer = NorMuon.for_model(model, lr=1e-3)
    stepped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(stepped) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_heads_routers_norms_and_biases_never_get_the_matrix_update(name):
    model = make(name)
    kept = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    parameters = dict(model.named_parameters())
    for one in route(model):
        special = id(parameters[one.name]) in kept or one.name.endswith("bias") or len(one.shape) < 2
        special = special or any(
            word in one.name for word in ("router", "mlp.gate.", "expert_gate.", "embed_positions", "wpe")
        )
        assert (one.algorithm == "adamw") == special, one


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_one_dimensional_parameters_do_not_decay(name):
    for one in route(make(name)):
        assert one.decays == (len(one.shape) > 1 and not one.name.endswith("bias"))


def test_a_vector_with_axes_of_one_is_a_vector():
    config = transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=16)
    routes = {one.name: one for one in route(transformers.AutoModelForCausalLM.from_config(config))}
    one = routes["rwkv.blocks.0.attention.time_mix_key"]
    assert (one.shape, one.algorithm, one.decays) == ((1, 1, 32), "adamw", False)


def test_a_tied_head_is_one_embedding():
    (embedding,) = [one for one in route(make("llama_tied")) if one.shape == (384, 64)]
    assert (embedding.algorithm, embedding.reason) == ("adamw", "embedding, tied to the output head")


def test_conv1d_is_stepped_along_its_output_axis():
    one = by_name("gpt2")["transformer.h.0.mlp.c_fc.weight"]
    assert one.shape == (64, 256) and one.layout == {"neuron_dim": -1}


def test_gpt_oss_experts_are_stored_transposed():
    one = by_name("gpt_oss")["model.layers.0.mlp.experts.gate_up_proj"]
    assert one.algorithm == "normuon" and one.layout == {"neuron_dim": -1}


def test_experts_are_a_stack_of_matrices():
    one = by_name("mixtral")["model.layers.0.mlp.experts.gate_up_proj"]
    assert one.reason == "gate and up of experts, 4 in a stack, fused, stepped as one matrix"


def test_fused_matrices_are_split_only_when_asked_for():
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert by_name("phi3")[name].layout == {}
    assert by_name("phi3", split=True)[name].layout == {"split_sizes": (64, 32, 32)}
    assert by_name("mixtral", split=True)["model.layers.0.mlp.experts.gate_up_proj"].layout["split_sizes"] == (96, 96)


def test_a_gate_of_one_row_goes_to_adamw():
    one = by_name("qwen2_moe")["model.layers.1.mlp.shared_expert_gate.weight"]
    assert one.shape == (1, 64) and one.algorithm == "adamw"


def test_frozen_parameters_are_left_out():
    model = make("llama")
    model.model.layers[0].requires_grad_(False)
    frozen = [one for one in route(model) if one.algorithm == "frozen"]
    assert len(frozen) == len(list(model.model.layers[0].parameters()))
    grouped = sum(len(group["params"]) for group in param_groups(model, route(model)))
    assert grouped == len(list(model.parameters())) - len(frozen)


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(SettingsError, match="no parameter of the model needs a gradient"):
        NorMuon.for_model(make("llama").requires_grad_(False), lr=1e-3)


def test_lora_goes_to_adamw_unless_asked_for():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make("llama"), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    trained = {one.algorithm for one in route(model) if one.algorithm != "frozen"}
    assert trained == {"adamw"}
    assert {one.algorithm for one in route(model, lora=True)} == {"normuon", "frozen"}


def test_plain_modules_are_routed_by_their_types():
    model = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(3, 8, 3),
            "depthwise": torch.nn.Conv1d(8, 8, 3, groups=8),
            "conv1d": torch.nn.Conv1d(8, 6, 3),
            "table": torch.nn.Embedding(5, 4),
            "hidden": torch.nn.Linear(4, 4),
        }
    )
    chosen = {one.name: one.algorithm for one in route(model) if one.name.endswith("weight")}
    assert chosen == {
        "conv.weight": "normuon",
        "depthwise.weight": "adamw",
        "conv1d.weight": "normuon",
        "table.weight": "adamw",
        "hidden.weight": "normuon",
    }


@pytest.mark.parametrize("algorithm", OPTIMIZER_CLASSES)
def test_every_optimizer_steps_a_mixture_of_experts(algorithm):
    model = make("mixtral")
    optimizer = optimizer_class(algorithm).for_model(model, lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # SOAP's first step only builds its bases
        optimizer.zero_grad()
        model(torch.arange(3, 67).view(2, 32), labels=torch.arange(3, 67).view(2, 32)).loss.backward()
        optimizer.step()
    unmoved = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unmoved == []


def test_explain_merges_layers():
    rows = {row["parameters"]: row for row in explain(make("llama"))}
    q = rows["model.layers.*.self_attn.q_proj.weight"]
    assert (q["count"], q["shape"], q["algorithm"], q["decay"]) == (2, "64 x 64", "normuon", "yes")
    assert sum(row["count"] for row in rows.values()) == len(list(make("llama").named_parameters()))
