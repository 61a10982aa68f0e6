"""Keys and values as a latent: exact limits, what is written for which engine, what is refused."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import burnish
from burnish.convert.latent_config import cached_numbers
from burnish.convert.latent_network import numbers_in_cache
from burnish.convert.stage import LatentAttention
from burnish.core.checkpoint import Model, load
from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.core.kinds import Plan
from fresh_process import IDS, read_afresh
from small_models import PROSE, make, small_config, small_tokenizer

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.3, "head_dim": 8}
TEXT: dict[str, Any] = {"tokens": 512, "length": 64}
ALL: dict[str, Any] = {"rank": 17, "rope_dim": 16, "allow_larger": True, "engine": "transformers", "norm": "bias"}
"""Every pair turns, and the latent has a rank for every value: two key heads of 8."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "scaled": ("llama", {"rope_parameters": LLAMA3}),
    "one head for each query": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
}


def source(name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    kind, own = SOURCES[name]
    module = make(kind, dtype=dtype, disturbed=True, **SHAPE | own | changes)
    return Model(module=module, tokenizer=small_tokenizer())


def converted(model: Model, work_dir: Any = None, **settings: Any) -> Model:
    return LatentAttention(**TEXT | settings)(model, calibration=[PROSE.read_text()], work_dir=work_dir)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 380, (2, 40), generator=torch.Generator().manual_seed(1))


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


# -- exact limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_with_all_pairs_and_full_rank_it_is_the_source(ids, name):
    model = source(name, torch.float64)
    widths = {"rank": 33, "rope_dim": 32} if "query" in name else {}
    made = converted(model, **ALL | widths)
    assert apart(logits(made.module, ids), logits(model.module, ids)) < 1e-4


@pytest.mark.parametrize("objective", ["attention", "transmla", "svd"])
def test_one_key_head_converts_without_loss_for_every_engine(ids, objective):
    """Multi-query attention: the rotary key is the key, and the latent the value."""
    model = source(num_key_value_heads=1)
    settings = ALL | {"rank": 9, "rope_dim": 8, "objective": objective}
    assert apart(logits(converted(model, **settings).module, ids), logits(model.module, ids)) < 1e-4


def test_full_rank_is_the_model_whose_other_pairs_stand_still(ids):
    """So the objective is of no account."""
    settings = ALL | {"rank": 25, "rope_dim": 8}
    first, second = (converted(source(), **settings, objective=name).module for name in ("attention", "care"))
    assert apart(logits(first, ids), logits(second, ids)) < 1e-4
    assert apart(logits(first, ids), logits(source().module, ids)) > 1e-2


def test_decoding_with_the_cache_is_the_full_forward_and_the_cache_holds_rank_and_rope_dim(ids):
    module = converted(source()).module
    assert numbers_in_cache(module) == module.config.kv_lora_rank + module.config.qk_rope_head_dim == 16
    assert cached_numbers(source().config) == 32
    with torch.no_grad():
        begun = module(input_ids=ids[:, :30], use_cache=True)
        rest = module(input_ids=ids[:, 30:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(rest, logits(module, ids)[:, 30:], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["two-sided", "transmla", "care", "svd"])
def test_no_objective_predicts_a_smaller_error_than_that_of_attention(objective):
    def predicted(name):
        tables: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("burnish.core.ledger.Ledger.table", lambda self, name, rows: tables.update({name: rows}))
            converted(source(), rank=9, rope_dim=8, sequential=False, objective=name)
        return sum(row["of rank"] for row in tables["latent"])

    assert predicted("attention") < predicted(objective)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_form_for_vllm_has_its_own_head_and_an_unscaled_yarn(tmp_path, ids):
    """vLLM leaves a head that the file lacks at zero, and its kernel for CPUs turns unscaled queries wrongly."""
    made = converted(source("tied"))
    directory = made.save(tmp_path / "out")
    config, stored = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    assert config["tie_word_embeddings"] is False
    torch.testing.assert_close(stored["lm_head.weight"], stored["model.embed_tokens.weight"], rtol=0, atol=0)
    rope = config["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["mscale_all_dim"]) == ("yarn", 1.0, 0.0)
    assert rope["original_max_position_embeddings"] == config["max_position_embeddings"]
    assert not [name for name in stored if name.endswith(".bias")]
    slots = config["qk_rope_head_dim"] // 2
    wanted = rope["rope_theta"] ** (-torch.arange(slots) / slots)
    torch.testing.assert_close(made.module.model.rotary_emb.inv_freq, wanted, rtol=1e-5, atol=0)
    assert made.module.model.rotary_emb.attention_scaling == 1


def test_every_layer_is_dense_and_the_stock_class_reads_it(tmp_path, ids):
    made = converted(source("tied"), engine="transformers")
    directory = made.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(directory)
    assert type(read).__name__ == "DeepseekV3ForCausalLM"
    assert not list(directory.glob("*.py"))
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    assert not [name for name, _ in read.named_parameters() if "experts" in name or "gate." in name]
    torch.testing.assert_close(logits(read, ids), logits(made.module, ids), rtol=0, atol=0)


def test_a_list_of_frequencies_holds_at_every_length(ids):
    """Frequencies of the source, some of them twice, before and behind the length that the source was trained at."""
    model = source(max_position_embeddings=64)
    module = converted(model, engine="transformers", rope_dim=12, rank=5).module
    own = model.module.model.rotary_emb.inv_freq
    for last in (10, 200):
        module.model.rotary_emb(torch.zeros(1), torch.arange(last)[None])
        found = module.model.rotary_emb.inv_freq
        assert len(found) == 6
        assert all(((one - own).abs() / own).min() < 1e-6 for one in found)
    assert len(set(found.tolist())) < 6


def test_the_latent_is_so_large_that_the_epsilon_of_its_norm_does_not_matter(ids):
    module = converted(source(), engine="transformers", norm="bias").module
    seen = []
    for layer in module.model.layers:
        layer.self_attn.kv_a_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(module, ids)
    assert len(seen) == 2
    assert all(latent.square().mean(-1).min() > 0.5 for latent in seen)


@pytest.mark.slow
def test_a_nearly_constant_channel_steadies_the_norm():
    """Hidden states of trained models share a direction; here the embedding is given one."""

    def variation(norm):
        model = source()
        tables: dict[str, Any] = {}
        model.module.model.embed_tokens.weight.data += 1.5
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("burnish.core.ledger.Ledger.table", lambda self, name, rows: tables.update({name: rows}))
            converted(model, norm=norm, rank=8, rope_dim=8)
        return tables["latent"][0]["variation of the norm"]

    assert variation("functional") < 0.5 * variation("fold")


@pytest.mark.parametrize("settings", [{"engine": "transformers", "norm": "bias"}, {"rope": "freqfold:2"}])
def test_planned_parameters_are_those_of_the_result(tiny_llama, settings):
    model, stage = load(tiny_llama), LatentAttention(rank=16, rope_dim=16, **TEXT, **settings)
    made = stage(model, calibration=[PROSE.read_text()])
    assert stage.plan(model.plan()).num_parameters == made.plan().num_parameters


def test_widths_are_chosen_within_the_cache_that_is_asked_for():
    made = converted(source(hidden_size=64, num_key_value_heads=4, head_dim=16), cache=0.75).module.config
    assert made.kv_lora_rank + made.qk_rope_head_dim == 96
    assert made.qk_rope_head_dim % 16 == 0


def test_a_conversion_that_is_called_again_takes_its_layers_from_the_store(tmp_path, ids, monkeypatch):
    first = converted(source(), work_dir=tmp_path)

    def forbidden(*args: Any) -> None:
        raise AssertionError("nothing is collected a second time")

    monkeypatch.setattr("burnish.convert.mla.collect", forbidden)
    again = converted(source(), work_dir=tmp_path)
    torch.testing.assert_close(logits(again.module, ids), logits(first.module, ids), rtol=0, atol=0)


def test_the_source_stays_as_it_is(ids):
    model = source("tied")
    before = logits(model.module, ids)
    converted(model)
    torch.testing.assert_close(logits(model.module, ids), before, rtol=0, atol=0)


@pytest.mark.slow
def test_a_fresh_process_without_burnish_computes_the_same(tmp_path):
    made = converted(source("tied"))
    name, found = read_afresh(made.save(tmp_path / "out"), tmp_path, trusted=False)
    expected = logits(made.module, IDS)
    assert name == "DeepseekV3ForCausalLM"
    assert all(torch.equal(one, expected) for one in found)


def test_a_token_whose_embedding_is_zero_leaves_the_norm_of_the_others_as_it_is():
    model = source()
    known = model.tokenizer(PROSE.read_text())["input_ids"]
    model.module.get_input_embeddings().weight.data[max(set(known), key=known.count)] = 0  # as a pad's may be
    made = converted(model, rank=9, rope_dim=8, norm="functional")
    gains = torch.stack([layer.self_attn.kv_a_layernorm.weight for layer in made.module.model.layers])
    assert gains.isfinite().all() and (gains.abs().amax(dim=1) > 1e-3).all()


# -- refitted ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refitted_layers_give_more_of_what_the_original_gave(monkeypatch):
    tables: dict[str, Any] = {}
    monkeypatch.setattr("burnish.core.ledger.Ledger.table", lambda self, name, rows: tables.update({name: rows}))
    made = converted(source(), rank=9, rope_dim=8, tokens=4096, refit=True).module
    assert all(row["output error, refitted"] <= row["output error"] for row in tables["latent"])
    assert tables["latent"][0]["output error, refitted"] < 0.95 * tables["latent"][0]["output error"]
    before, after = (module.model.layers[0].self_attn.o_proj.weight for module in (source().module, made))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("settings", [{"refit": True}, {"heal_tokens": 512}])
def test_a_text_without_a_part_to_hold_out_is_refused(settings):
    with pytest.raises(DataError, match="a part of more than 1,024 is held out"):
        converted(source(), **settings)


# -- healed ------------------------------------------------------------------------------------------------------------

HEALED: dict[str, Any] = {"rank": 9, "rope_dim": 8, "tokens": 2048}


def test_healed_layers_give_more_of_what_the_original_gave_and_keep_their_constant_channel(monkeypatch):
    tables: dict[str, Any] = {}
    monkeypatch.setattr("burnish.core.ledger.Ledger.table", lambda self, name, rows: tables.update({name: rows}))
    plain = converted(source(), **HEALED).module
    healed = converted(source(), **HEALED, heal_tokens=40 * 1024).module
    first = tables["latent"][0]
    assert first["output error, healed"] < 0.9 * first["output error, not healed"]
    assert all(row["output error, healed"] <= row["output error, not healed"] for row in tables["latent"])
    before, after = (module.model.layers[0].self_attn for module in (plain, healed))
    for name in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
        assert not torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)
    constant = before.kv_lora_rank - 1
    rows = [part.kv_a_proj_with_mqa.weight[constant] for part in (before, after)]
    torch.testing.assert_close(*rows, rtol=0, atol=0)


def test_steps_that_held_out_text_does_not_confirm_are_dropped(monkeypatch, ids):
    monkeypatch.setattr("burnish.convert.heal.RATES", (30.0, 20.0))
    plain, healed = (converted(source(), **HEALED, **more).module for more in ({}, {"heal_tokens": 2048}))
    torch.testing.assert_close(logits(healed, ids), logits(plain, ids), rtol=0, atol=0)


# -- what is refused ---------------------------------------------------------------------------------------------------


def plan_of(config, **settings: Any) -> Plan:
    before = source().plan().with_(config=config)
    return LatentAttention(**settings).plan(before)


@pytest.mark.parametrize(
    ("kind", "changes", "settings", "message"),
    [
        ("qwen2", {}, {}, "the queries of a qwen2 have biases"),
        ("qwen3", {}, {}, "normalises every key head"),
        ("deepseek_v3", {}, {}, "has latent attention already"),
        ("gemma2", {}, {}, "a gemma2 has norms, scalings or layers"),
        ("llama", {"attention_bias": True}, {}, "attention_bias is set"),
        ("mistral", {"sliding_window": 64}, {}, "the last 64 of 256 positions"),
        ("llama", {"head_dim": 7}, {}, "head_dim is 7"),
        ("llama", {"rope_parameters": LLAMA3}, {}, "vLLM reads any scaling of this class as YaRN"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            {"engine": "transformers"},
            "changes with the length of the text",
        ),
        ("llama", {}, {"rank": 16, "rope_dim": 15}, "rope_dim is 15"),
        ("llama", {}, {"rank": 8, "rope_dim": 34}, "the keys have 32 of them"),
        ("llama", {}, {"rank": 50, "rope_dim": 16}, "it is from 2 to 49"),
        ("llama", {}, {"rank": 49, "rope_dim": 16}, "pass --allow-larger"),
        ("llama", {}, {"cache": 0.05}, "cannot be shared"),
        ("llama", {}, {"rope": "rorope", "rope_dim": 12}, "every n-th of 8 frequencies"),
        ("llama", {}, {"rope": "freqfold:3", "rope_dim": 8}, "3 frequencies in a pool"),
    ],
)
def test_what_cannot_be_converted_is_refused_when_planned(kind, changes, settings, message):
    with pytest.raises(SettingsError, match=message):
        plan_of(small_config(kind, **changes), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope": "free"}, "vLLM computes them from one base"),
        ({"rope": "sideways"}, "one of auto, free, grid, rorope"),
        ({"norm": "bias"}, "a bias that vLLM does not read"),
        ({"rank": 64}, "rank is given without rope_dim"),
        ({"cache": 1.0}, "no less than the source's"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(BurnishError, match=message):
        burnish.LatentAttention.parse(settings, where="here")


def test_a_text_shorter_than_the_keys_and_values_is_refused():
    with pytest.raises(DataError, match="need at least as many"):
        LatentAttention(tokens=16, length=16)(
            source(), calibration=["Some words, and not many more than that, but enough of them."]
        )
