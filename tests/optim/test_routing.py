"""Every parameter goes to exactly one rule, and to the right one."""

import warnings

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
    apart = by_name("gpt_oss", split=True)["model.layers.0.mlp.experts.gate_up_proj"]
    assert apart.layout == {"neuron_dim": -1}, "rows of gate and up alternate, so they are no blocks"


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


# -- modules that do not say what they are made of ---------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 4 * width)


class Tower(torch.nn.Module):
    """A language model of one's own; the head is declared first, and called what it is called."""

    def __init__(self, head, *, tied=False, blocks=torch.nn.ModuleList, vocabulary=64, width=16):
        super().__init__()
        setattr(self, head, torch.nn.Linear(width, vocabulary, bias=False))
        self.table = torch.nn.Embedding(vocabulary, width)
        self.places = torch.nn.Embedding(width, width)
        layers = [Block(width), Block(width)]
        self.blocks = blocks(layers) if blocks is torch.nn.ModuleList else blocks(*layers)
        if tied:
            getattr(self, head).weight = self.table.weight


HIDDEN = [f"blocks.{number}.{name}.weight" for number in range(2) for name in ("out", "up")]


def stepped_as_matrices(model):
    return [one.name for one in route(model) if one.algorithm == "normuon"]


@pytest.mark.parametrize("head", ["out", "head", "prediction", "zzz"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blocks", [torch.nn.ModuleList, torch.nn.Sequential])
def test_the_head_of_a_plain_model_is_found_whatever_its_name_and_place(head, tied, blocks):
    model = Tower(head, tied=tied, blocks=blocks)
    assert stepped_as_matrices(model) == HIDDEN  # the up-projection has as many rows as the vocabulary here
    wrapper = torch.nn.ModuleDict({"inner": model})
    assert stepped_as_matrices(wrapper) == [f"inner.{name}" for name in HIDDEN]


def test_the_head_at_the_end_of_a_row_of_layers_is_found():
    model = torch.nn.Sequential(torch.nn.Embedding(64, 16), Block(16), Block(16), torch.nn.Linear(16, 64))
    assert stepped_as_matrices(model) == ["1.out.weight", "1.up.weight", "2.out.weight", "2.up.weight"]


def test_a_head_without_an_embedding_is_found_by_its_name_at_the_outside_only():
    model = torch.nn.ModuleDict({"body": Block(16), "out": torch.nn.Linear(16, 3)})
    assert stepped_as_matrices(model) == ["body.out.weight", "body.up.weight"]


def test_what_somebody_added_to_a_known_model_is_routed_by_its_type_and_the_table_says_so():
    model = make("llama")
    model.value = torch.nn.Linear(64, 64)
    model.strange = torch.nn.Parameter(torch.ones(64, 64))
    found = {one.name: one for one in route(model)}
    assert (found["value.weight"].algorithm, found["strange"].algorithm) == ("normuon", "adamw")
    assert "unknown to the table of llama" in found["value.weight"].reason
    assert "unknown to the table of llama" in found["strange"].reason
    assert found["model.layers.0.mlp.up_proj.weight"].reason == "up of mlp"


def test_a_model_without_its_head_is_routed_by_the_types_of_its_modules():
    assert {one.algorithm for one in route(make("llama").model)} == {"normuon", "adamw"}


# -- wrappers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled_layers(model):
    layers = model.get_decoder().layers
    for number in range(len(layers)):
        layers[number] = torch.compile(layers[number], backend="aot_eager")
    return model


def checkpointed_layers(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    layers = model.get_decoder().layers
    for number in range(len(layers)):
        layers[number] = checkpoint_wrapper(layers[number])
    return model


def sharded(model):
    return torch.distributed.fsdp.fully_shard(model)


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "compiled layers": compiled_layers,
    "checkpointed layers": checkpointed_layers,
    "DDP": torch.nn.parallel.DistributedDataParallel,
    "DDP, compiled": lambda model: torch.compile(torch.nn.parallel.DistributedDataParallel(model), backend="aot_eager"),
    "FSDP2": sharded,
}


def after_two_steps(model, *, train):
    """Names and groups of the parameters, and the weights after two steps."""
    optimizer = NorMuon.for_model(model, lr=0.01)
    groups = [(group["algorithm"], group["param_names"]) for group in optimizer.param_groups]
    inputs = torch.arange(24).reshape(2, 12)
    for _ in range(2 * train):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=inputs).loss.backward()
        optimizer.step()
    return groups, [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_routed_as_the_model(wrapper, alone):
    assert (
        after_two_steps(WRAPPERS[wrapper](make("llama")), train=False)[0]
        == after_two_steps(make("llama"), train=False)[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("wrapper", ["compiled", "DDP", "FSDP2"])
def test_a_wrapped_model_takes_the_steps_of_the_model(wrapper, name, alone):
    _, ours = after_two_steps(WRAPPERS[wrapper](make(name).eval()), train=True)
    _, theirs = after_two_steps(make(name).eval(), train=True)
    for one, other in zip(ours, theirs, strict=True):
        one = one.full_tensor() if hasattr(one, "full_tensor") else one
        # Float32 through graphs that add up in another order; an update has RMS 2e-3.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("lora", [False, True])
def test_an_adapter_is_trained_and_nothing_else(name, lora):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make(name), peft.LoraConfig(r=4, target_modules="all-linear"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = NorMuon.for_model(model, lr=0.01, lora=lora)
    inputs = torch.arange(24).reshape(2, 12)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=inputs).loss.backward()
        optimizer.step()
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and all(".lora_" in key for key in changed)


def test_fsdp1_is_refused_also_where_it_keeps_the_names(alone):
    with warnings.catch_warnings(action="ignore"):  # one process shards nothing
        model = torch.distributed.fsdp.FullyShardedDataParallel(
            make("llama"), use_orig_params=True, device_id=torch.device("cpu")
        )
    with pytest.raises(SettingsError, match="FSDP1 has flattened"):
        NorMuon.for_model(model, lr=1e-3)
