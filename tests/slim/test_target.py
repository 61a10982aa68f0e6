"""Targets become widths; counts from configurations alone."""

import pytest
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from burnish.core.checkpoint import plan_config
from burnish.core.errors import SettingsError
from burnish.slim.stage import Slim
from burnish.slim.target import allowed_parameters, experts_of, fit, resized, router_groups
from small_models import small_config

PHI = PhimoeConfig(
    vocab_size=32064,
    hidden_size=4096,
    intermediate_size=6400,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=16,
    attention_bias=True,
    lm_head_bias=True,
)


@pytest.mark.parametrize(
    ("width", "groups", "billions"), [(6400, 8, 41.87), (960, 8, 7.65), (448, 4, 3.75)], ids=["3.5", "mini", "tiny"]
)
def test_released_phi_models_have_their_published_parameters(width, groups, billions):
    config = resized(PHI, width=width, num_key_value_heads=groups)
    assert plan_config(config).num_parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_phi_mini_is_what_its_parameter_target_finds():
    assert fit(PHI, 7_660_000_000, by="width", multiple=64, num_key_value_heads=None).width == 960


LARGE = {
    "Phi-3.5-MoE": PHI,
    "Mixtral-8x7B": MixtralConfig(),
    "Qwen3-30B-A3B": Qwen3MoeConfig(
        **{"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_experts": 128},
        **{"num_experts_per_tok": 8, "num_key_value_heads": 4, "head_dim": 128},
    ),
    "Qwen1.5-MoE": Qwen2MoeConfig(),
    "OLMoE-1B-7B": OlmoeConfig(),
    "DeepSeek-V3": DeepseekV3Config(),
}


@pytest.mark.parametrize("target", [15, 20, 35, 50, 75])
@pytest.mark.parametrize("name", LARGE)
def test_thirty_targets_are_kept_and_at_most_2_percent_below(name, target):
    config = LARGE[name]
    allowed = plan_config(config).num_parameters * target // 100
    for by in ("width", "num_experts"):
        found = fit(config, allowed, by=by, multiple=64, num_key_value_heads=None)
        assert 0.98 * allowed <= found.num_parameters <= allowed < found.next_larger
        smaller = resized(config, width=found.width, num_experts=found.num_experts)
        assert plan_config(smaller).num_parameters == found.num_parameters


SPLIT = {name: config for name, config in LARGE.items() if name not in ("Phi-3.5-MoE", "DeepSeek-V3")} | {
    "GPT-OSS-20B": GptOssConfig(num_hidden_layers=24, num_local_experts=32),
    "DeepSeek-V2": DeepseekV2Config(
        **{"hidden_size": 5120, "moe_intermediate_size": 1536, "num_hidden_layers": 60, "n_routed_experts": 160},
        **{"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"},
    ),
}
PIECES = {"GPT-OSS-20B": 3}  # their experts are 2,880 wide, and half of that is no multiple of 64


@pytest.mark.parametrize("target", [15, 20, 35, 50, 75])
@pytest.mark.parametrize("name", SPLIT)
def test_thirty_targets_are_kept_by_pieces_too(name, target):
    before = plan_config(SPLIT[name])
    stage = Slim(method="split", target=f"{target}%", pieces=PIECES.get(name, 2))
    planned = stage.plan(before)
    allowed = before.num_parameters * target // 100
    assert 0.98 * allowed <= planned.num_parameters <= allowed
    was, now = experts_of(SPLIT[name]), experts_of(planned.config)
    assert was.top_k <= now.top_k <= min(stage.pieces * was.top_k, now.num_experts)
    assert now.intermediate_size % 64 == 0 and now.num_experts % router_groups(planned.config) == 0


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3"])
def test_no_other_choice_is_nearer_where_none_is_near(module_of, name):
    """Against every width and number of experts, counted one by one."""
    config = module_of(name).config
    facts, step = experts_of(config), router_groups(config)
    fewest = max(facts.top_k, 2 * step if step > 1 else 1)
    counts = {
        (width, number): plan_config(resized(config, width=width, num_experts=number)).num_parameters
        for width in (16, 32, 48)
        for number in range(fewest, facts.num_experts + 1, step)
    }
    for allowed in sorted(counts.values())[:-1]:
        for by in ("width", "num_experts"):
            found = fit(config, allowed + 5, by=by, multiple=16, num_key_value_heads=None)
            possible = {choice: size for choice, size in counts.items() if size <= allowed + 5}
            assert found.num_parameters == counts[found.width, found.num_experts]
            assert found.num_parameters >= 0.98 * max(possible.values())
            assert found.next_larger == min(size for size in counts.values() if size > allowed + 5)


@pytest.mark.parametrize(
    ("target", "parameters"),
    [
        ("20%", 200),
        ("12.5 %", 125),
        ("1GB", 500_000_000),
        ("1GiB", 2**29),
        ("3mb", 1_500_000),
        ("2M params", 2_000_000),
    ],
)
def test_targets_are_shares_or_bytes_in_bfloat16_or_parameters(target, parameters, module_of):
    before = plan_config(module_of("mixtral").config).with_(shapes={"weight": (10, 100)})
    assert allowed_parameters(target, before) == parameters


@pytest.mark.parametrize("target", ["20", "small", "3bits", "-5%", "0MB"])
def test_other_targets_are_refused(target, module_of):
    with pytest.raises(SettingsError, match="give a share of the parameters"):
        allowed_parameters(target, plan_config(module_of("mixtral").config))


def test_a_dense_model_is_refused_with_what_to_use_instead():
    with pytest.raises(SettingsError, match=r"llama model has no experts; quantize makes dense models smaller"):
        experts_of(LlamaConfig())


def test_a_target_below_the_other_parameters_says_what_is_possible(module_of):
    with pytest.raises(SettingsError, match=r"with experts of 8, and 2 of them, [0-9,]+ are left"):
        fit(module_of("mixtral").config, 1000, by="width", multiple=8, num_key_value_heads=None)


def test_a_target_that_is_met_already_is_refused(module_of):
    with pytest.raises(SettingsError, match="nothing to cut"):
        fit(module_of("mixtral").config, 10**9, by="width", multiple=8, num_key_value_heads=None)


def test_heads_of_a_norm_over_all_heads_are_not_cut(module_of):
    with pytest.raises(SettingsError, match="spans all heads"):
        resized(module_of("olmoe").config, num_key_value_heads=1)


def test_latent_attention_has_no_groups_to_cut(module_of):
    with pytest.raises(SettingsError, match="latent attention"):
        resized(module_of("deepseek_v3").config, num_key_value_heads=1)


@pytest.mark.parametrize("count", [3, 2])
def test_experts_must_fill_the_routers_groups(count, module_of):
    with pytest.raises(SettingsError, match="must be at least 4"):
        resized(module_of("deepseek_v3").config, num_experts=count)


def test_fewer_experts_than_the_router_chooses_are_refused(module_of):
    with pytest.raises(SettingsError, match="router chooses 2"):
        resized(module_of("olmoe").config, num_experts=1)


@pytest.mark.parametrize("setting", ["width", "num_experts", "num_key_value_heads"])
def test_nothing_grows(setting, module_of):
    with pytest.raises(SettingsError, match="slim only cuts"):
        resized(module_of("mixtral").config, **{setting: 1000})


def test_experts_that_share_their_width_with_other_layers_are_dropped_and_not_narrowed():
    config = small_config("jamba", num_experts=8)
    full = plan_config(config).num_parameters
    found = fit(config, full * 8 // 10, by="num_experts", multiple=8, num_key_value_heads=None)
    assert found.width == experts_of(config).intermediate_size and found.num_experts < 8
    with pytest.raises(SettingsError, match="one width for its experts and for the MLPs"):
        fit(config, full * 8 // 10, by="width", multiple=8, num_key_value_heads=None)
