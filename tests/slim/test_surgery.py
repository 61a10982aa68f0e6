"""Cutting: exact where it must be, for every class with experts."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import describe, matrices
from burnish.core.checkpoint import Model
from burnish.slim import surgery
from burnish.slim.maths.keep import keep_highest
from burnish.slim.surgery import Kept
from burnish.slim.target import resized
from burnish.slim.uncut import Uncut

ALL = ["mixtral", "mixtral_tied", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]
DEEPSEEK = ["deepseek_v2", "deepseek_v3"]
GROUPED = ["mixtral", "mixtral_tied", "phimoe", "qwen2_moe", "qwen3_moe"]


def cut(module, config, kept):
    return surgery.cut(Uncut(Model(module=module)), config, kept)


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits


def some_neurons(module, width, seed=0):
    """Random neurons for every expert; for DeepSeek's shared experts too, whose width follows."""
    experts, generator = describe(module).experts, torch.Generator().manual_seed(seed)

    def choose(*shape):
        return keep_highest(torch.rand(*shape, generator=generator), width * shape[-1] // experts.intermediate_size)

    layers = experts.sparse_layers
    neurons = {layer: choose(experts.num_experts, experts.intermediate_size) for layer in layers}
    follows = describe(module).model_type in DEEPSEEK
    shared = {layer: choose(experts.shared_intermediate_size) for layer in layers} if follows else {}
    return Kept(neurons=neurons, shared=shared)


@pytest.mark.parametrize("name", ALL)
def test_keeping_everything_is_bit_exact(module_of, token_ids, name):
    module = module_of(name)
    new = cut(module, module.config, some_neurons(module, describe(module).experts.intermediate_size))
    assert torch.equal(logits(new, token_ids), logits(module, token_ids))


@pytest.mark.parametrize("name", ALL)
def test_slicing_neurons_equals_zeroing_their_down_columns(module_of, token_ids, all_float64, name):
    module = module_of(name, torch.float64)
    kept = some_neurons(module, 16)
    new = cut(module, resized(module.config, width=16), kept)
    for view in matrices(module):
        if view.role != "down" or view.layer not in kept.neurons:
            continue
        stays = kept.neurons[view.layer][view.expert] if view.part == "experts" else kept.shared.get(view.layer)
        if stays is not None:
            mask = torch.zeros(view.shape[1], dtype=torch.float64)
            mask[stays] = 1
            view.write_(view.tensor * mask)
    torch.testing.assert_close(logits(new, token_ids), logits(module, token_ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_a_cut_checkpoint_loads_with_the_stock_class_and_no_code(module_of, token_ids, tmp_path, name):
    module = module_of(name)
    new = cut(module, resized(module.config, width=16), some_neurons(module, 16))
    directory = Model(module=new).save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(directory, experts_implementation="eager")
    assert torch.equal(logits(read, token_ids), logits(new, token_ids))
    assert not list(directory.glob("*.py"))


READ = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
assert not any(name.startswith("burnish") for name in sys.modules)
for place in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(place / "expected.bin", weights_only=True)
    module = AutoModelForCausalLM.from_pretrained(place, experts_implementation="eager")
    with torch.no_grad():
        logits = module(input_ids=expected["ids"], use_cache=False).logits
    assert torch.equal(logits, expected["logits"]), place
    print(place.name)
"""


@pytest.mark.slow
@pytest.mark.real_process
def test_a_fresh_process_with_transformers_alone_computes_the_same_for_every_class(module_of, token_ids, tmp_path):
    for name in ALL:
        module = module_of(name)
        new = cut(module, resized(module.config, width=16), some_neurons(module, 16))
        place = Model(module=new).save(tmp_path / name)
        torch.save({"ids": token_ids, "logits": logits(new, token_ids)}, place / "expected.bin")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(ALL)


@pytest.mark.parametrize("name", GROUPED)
def test_cutting_attention_groups_equals_zeroing_their_output_columns(module_of, token_ids, all_float64, name):
    module = module_of(name, torch.float64)
    layers = range(module.config.num_hidden_layers)
    kept = Kept(groups={layer: torch.tensor([layer]) for layer in layers})
    new = cut(module, resized(module.config, num_key_value_heads=1), kept)
    for view in matrices(module):
        if view.role == "o":
            half = view.shape[1] // 2
            mask = torch.zeros(view.shape[1], dtype=torch.float64)
            mask[view.layer * half : (view.layer + 1) * half] = 1
            view.write_(view.tensor * mask)
    torch.testing.assert_close(logits(new, token_ids), logits(module, token_ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GROUPED)
def test_a_checkpoint_with_fewer_groups_loads_with_the_stock_class(module_of, token_ids, tmp_path, name):
    module = module_of(name)
    kept = Kept(groups={layer: torch.tensor([0]) for layer in range(module.config.num_hidden_layers)})
    new = cut(module, resized(module.config, num_key_value_heads=1), kept)
    read = AutoModelForCausalLM.from_pretrained(
        Model(module=new).save(tmp_path / "out"), experts_implementation="eager"
    )
    assert torch.equal(logits(read, token_ids), logits(new, token_ids))


@pytest.mark.parametrize(("groups", "length"), [(1, 5), (2, 5)])
def test_the_cache_shrinks_with_groups_only(module_of, token_ids, groups, length):
    module = module_of("mixtral")
    kept = some_neurons(module, 16)
    kept = Kept(neurons=kept.neurons, groups={layer: torch.arange(groups) for layer in range(2)})
    new = cut(module, resized(module.config, width=16, num_key_value_heads=groups), kept)
    cache = new(input_ids=token_ids[:, :length]).past_key_values
    assert cache.layers[0].keys.shape == (2, groups, length, 8)


@pytest.mark.parametrize("name", ["mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_experts_that_are_dropped_take_their_router_rows_along(module_of, token_ids, name):
    """The router of the smaller model gives the logits that it gave before, for those that stay."""
    module = module_of(name)
    experts = describe(module).experts
    stays = torch.tensor([1, 3])
    new = cut(module, resized(module.config, num_experts=2), Kept(experts=dict.fromkeys(experts.sparse_layers, stays)))
    layer = experts.sparse_layers[0]
    old_router, new_router = (
        next(view for view in matrices(m) if view.role == "router" and view.layer == layer) for m in (module, new)
    )
    assert torch.equal(new_router.tensor, old_router.tensor[stays])
    assert torch.isfinite(logits(new, token_ids)).all()


@pytest.mark.parametrize("name", DEEPSEEK)
def test_dropping_equally_from_each_group_of_experts(module_of, token_ids, tmp_path, name):
    module = module_of(name)
    stays = torch.tensor([0, 3, 5, 6])
    new = cut(module, resized(module.config, num_experts=4), Kept(experts={1: stays}))
    correction = getattr(module.model.layers[1].mlp.gate, "e_score_correction_bias", None)
    if correction is not None:
        assert torch.equal(new.model.layers[1].mlp.gate.e_score_correction_bias, correction[stays])
    read = AutoModelForCausalLM.from_pretrained(
        Model(module=new).save(tmp_path / "out"), experts_implementation="eager"
    )
    assert torch.equal(logits(read, token_ids), logits(new, token_ids))


def test_the_cut_model_shares_no_memory_with_the_input(module_of):
    module = module_of("mixtral_tied")
    new = cut(module, resized(module.config, width=16), some_neurons(module, 16))
    old = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    assert not old & {tensor.untyped_storage().data_ptr() for tensor in (*new.parameters(), *new.buffers())}
    assert new.lm_head.weight is new.model.embed_tokens.weight


def test_routing_at_the_first_sparse_layer_is_that_of_the_input(module_of, token_ids):
    module = module_of("olmoe")
    new = cut(module, resized(module.config, width=16), some_neurons(module, 16))
    routed = []
    for m in (module, new):
        m.model.layers[0].mlp.gate.register_forward_hook(lambda _m, _a, output: routed.append(output))
        logits(m, token_ids)
    assert torch.equal(routed[0][2], routed[1][2])
    assert torch.equal(routed[0][1], routed[1][1])
