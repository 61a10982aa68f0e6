"""SwiftKV: the path that skips later layers is the full one, exact limits, what is written and what is refused."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import StaticCache
from transformers.masking_utils import create_causal_mask

import burnish
from burnish.arch.head import Head, head_of
from burnish.convert.stage import SwiftKV
from burnish.convert.swiftkv import TYPES, prefill_share, swiftkv
from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.kinds import Kind
from fresh_process import IDS, read_afresh
from small_models import PROSE, make, small_tokenizer

KINDS = ("llama", "mistral", "qwen2", "qwen3")
LAYERS = 4


def source(kind: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any):
    return make(kind, dtype=dtype, disturbed=True, **{"num_hidden_layers": LAYERS} | changes)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 380, (2, 20), generator=torch.Generator().manual_seed(1))


def logits(module, ids, **given):
    with torch.no_grad():
        return module(input_ids=ids, **given).logits


class Given(nn.Module):
    """What it was made with, whatever it is asked."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.value


def by_definition(module: Any, ids: torch.Tensor, number: int) -> torch.Tensor:
    """Stock attention of what stands behind the first layers, but for its queries, which are of the stream."""
    decoder = module.model
    x = decoder.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    how = {
        "position_embeddings": decoder.rotary_emb(x, position_ids=places),
        "attention_mask": create_causal_mask(
            config=module.config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=places
        ),
    }
    behind = x
    for place, layer in enumerate(decoder.layers):
        if place <= number:
            behind = x
        attention, projection = layer.self_attn, layer.self_attn.q_proj
        attention.q_proj = Given(projection(layer.input_layernorm(x)))
        x = x + attention(hidden_states=layer.input_layernorm(behind), **how)[0]
        attention.q_proj = projection
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return module.lm_head(decoder.norm(x))


# -- exact limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_with_one_layer_behind_or_none_it_is_the_standard_model_bit_for_bit(ids, kind):
    module = source(kind, torch.float32)
    converted = swiftkv(module, LAYERS - 1)
    assert torch.equal(logits(converted, ids), logits(module, ids))
    converted.set_key_value_layers(LAYERS)
    assert type(converted.model.layers[-1]) is type(module.model.layers[-1])
    assert torch.equal(logits(converted, ids), logits(module, ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 3])
@torch.no_grad()
def test_keys_and_values_are_of_what_the_first_layers_give(ids, kind, number):
    module = source(kind)
    expected = by_definition(module, ids, number)
    torch.testing.assert_close(logits(swiftkv(module, number), ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("kept", [1, 3])
def test_skipping_later_layers_changes_neither_logits_nor_cache(ids, kind, kept):
    module = swiftkv(source(kind), 2)
    with torch.no_grad():
        full, short = (module(input_ids=ids, use_cache=True, logits_to_keep=number) for number in (0, kept))
    assert short.logits.shape[1] == kept
    torch.testing.assert_close(short.logits, full.logits[:, -kept:], rtol=0, atol=1e-10)
    for ours, theirs in zip(short.past_key_values.layers, full.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kept", [1, 3])
def test_it_does_so_for_padded_rows_windows_and_static_caches(ids, attention, kept):
    module = source("mistral", sliding_window=6)
    module.set_attn_implementation(attention)
    module = swiftkv(module, 1)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    full = logits(module, ids, attention_mask=mask, use_cache=False)
    cache = StaticCache(module.config, max_cache_len=32)
    for given in ({"use_cache": True}, {"past_key_values": cache}):
        found = logits(module, ids, attention_mask=mask, logits_to_keep=kept, **given)
        torch.testing.assert_close(found, full[:, -kept:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_from_the_cache_of_a_prompt_in_pieces_is_the_full_forward(ids, kind):
    module = swiftkv(source(kind), 2)
    cache = module(input_ids=ids[:, :7], use_cache=True, logits_to_keep=1).past_key_values
    cache = module(input_ids=ids[:, 7:12], past_key_values=cache, logits_to_keep=1).past_key_values
    rest = module(input_ids=ids[:, 12:], past_key_values=cache).logits
    torch.testing.assert_close(rest, logits(module, ids)[:, 12:], rtol=0, atol=1e-12)


def test_gradients_are_those_of_its_definition(ids):
    module = source()
    made = swiftkv(module, 2)
    made(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    by_definition(module, ids, 2).logsumexp(-1).sum().backward()
    for (name, ours), theirs in zip(made.named_parameters(), module.parameters(), strict=True):
        # Norms are in float32, and what comes back to the boundary is added up in another order.
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6, msg=name)


# -- what is saved -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_generation_runs_later_layers_for_the_last_token_of_a_prompt_alone(ids):
    module = swiftkv(source(), 2)
    seen: list[list[int]] = [[] for _ in range(LAYERS)]
    for layer, lengths in zip(module.model.layers, seen, strict=True):
        layer.mlp.register_forward_hook(lambda _, __, output, lengths=lengths: lengths.append(output.shape[1]))
    made = module.generate(ids, max_new_tokens=4, do_sample=False)
    assert seen == [[20, 1, 1, 1]] * 2 + [[1, 1, 1, 1]] * 2
    for length in range(20, 24):
        assert torch.equal(logits(module, made[:, :length], use_cache=False)[:, -1].argmax(-1), made[:, length])


@torch.no_grad()
def test_counted_products_of_a_prompt_are_the_predicted_share(ids):
    module = source()
    prompt = ids[:1, :1].expand(1, 512)  # so long that the last token's share is small

    def products(network: Any) -> int:
        with FlopCounterMode(display=False) as counted:
            network.model(input_ids=prompt, use_cache=True, **({"num_queries": 1} if network is not module else {}))
        counts = counted.get_flop_counts()["Global"]
        return sum(number for what, number in counts.items() if "attention" not in str(what))

    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    for number in (1, 2, 3):
        share = products(swiftkv(module, number)) / products(module)
        assert share == pytest.approx(
            prefill_share(shapes, number) + (1 - prefill_share(shapes, number)) / 512, rel=2e-3
        )


def test_half_of_smollm2s_layers_leave_the_published_share_of_products():
    layer = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}
    shapes = {f"model.layers.{n}.self_attn.{p}_proj.weight": shape for n in range(30) for p, shape in layer.items()}
    for n in range(30):
        shapes |= {f"model.layers.{n}.mlp.{p}.weight": (1536, 576) for p in ("gate_proj", "up_proj", "down_proj")}
    assert prefill_share(shapes, 15) == pytest.approx(0.53125)
    assert prefill_share(shapes, 30) == 1.0


def test_losses_and_hidden_states_see_all_positions(ids):
    module, plain = swiftkv(source(), LAYERS - 1), source()
    head = head_of(module)
    assert isinstance(head, Head)
    _, hidden = head.last_hidden(module, input_ids=ids, use_cache=False)
    torch.testing.assert_close(head.logits(hidden), logits(module, ids), rtol=0, atol=1e-12)
    ours, theirs = (one(input_ids=ids, output_hidden_states=True).hidden_states for one in (module, plain))
    assert len(ours) == LAYERS + 1 and all(map(torch.equal, ours, theirs))


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory, and the model that it was made of."""
    model = Model(module=source(dtype=torch.float32), tokenizer=small_tokenizer())
    return SwiftKV(custom_code=True)(model).save(tmp_path_factory.mktemp("swiftkv") / "made"), model


def test_a_saved_one_is_read_again_with_its_own_kind(made, ids, tmp_path):
    directory, model = made
    again = load(directory)
    assert again.lineage.kind is again.plan().kind is Kind.CUSTOM_CAUSAL_LM
    assert torch.equal(logits(again.module, ids), logits(swiftkv(model.module, 2), ids))
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (directory / "config.json").read_text()
    config = json.loads((directory / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_layers"]) == ("swiftkv_llama", 2)
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_swiftkv.SwiftKVLlamaForCausalLM"
    assert "trust_remote_code=True" in (directory / "README.md").read_text()


@pytest.mark.parametrize("number", [0, 5, "'half'"])
def test_a_configuration_with_another_boundary_is_refused_in_a_sentence(made, tmp_path, number):
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"num_key_value_layers": number if number != "'half'" else "half"})
    )
    with pytest.raises(CheckpointError, match=f"num_key_value_layers is {number}, "):
        load(tmp_path).plan()


def test_a_configuration_without_a_boundary_is_not_read_as_a_plain_model(made, tmp_path):
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_key_value_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no num_key_value_layers"):
        load(tmp_path).plan()


@pytest.mark.slow
def test_transformers_reads_it_by_the_files_beside_it_and_gives_the_same(made, tmp_path):
    directory, _ = made
    name, found = read_afresh(directory, tmp_path, trusted=True)
    expected = logits(load(directory).module, IDS)
    assert name == "SwiftKVLlamaForCausalLM"
    assert all(torch.equal(one, expected) for one in found)


def test_it_is_distilled_from_its_source(made):
    directory, model = made
    settings: dict[str, Any] = {"steps": 10, "batch": 4, "context": 32, "optimizer": "adamw", "lr": 1e-3, "alpha": 1.0}
    stage = burnish.Distill(only="*.layers.[23].self_attn.[qkv]_proj.*", **settings)
    healed = stage(load(directory), data=[PROSE.read_text()], teacher=model)
    assert healed.lineage.kind is Kind.CUSTOM_CAUSAL_LM and healed.config.num_key_value_layers == 2
    look = burnish.Evaluate(num_windows=2, context=32, speed=False)
    found, before = (
        look(one, text=[PROSE.read_text()], reference=model).metrics["kl_divergence"]["value"]
        for one in (healed, load(directory))
    )
    assert found < before


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"custom_code": False}, "llama", "SGLang, TGI and llama.cpp do not load it; pass --custom-code"),
        ({"from_layer": 4}, "llama", "from_layer is 4, but the model has 4 layers, and one at least must be behind it"),
        ({}, "gemma2", "no SwiftKV for a gemma2 model, only for llama, mistral"),
        ({}, "mixtral", "no SwiftKV for a mixtral model, only for llama, mistral"),
    ],
)
def test_what_it_cannot_do_is_refused_when_it_is_planned(settings, kind, said):
    model = Model(module=source(kind), tokenizer=small_tokenizer())
    with pytest.raises(SettingsError, match=said):
        SwiftKV(**{"custom_code": True} | settings).plan(model.plan())
