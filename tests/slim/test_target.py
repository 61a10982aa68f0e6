"""Targets become widths; counts from configurations alone."""

import pytest
from transformers import LlamaConfig, PhimoeConfig

from burnish.core.checkpoint import plan_config
from burnish.core.errors import SettingsError
from burnish.slim.target import experts_of, fit, parse_target, resized

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
    assert fit(PHI, 7_660_000_000, by="width", multiple=64, num_key_value_heads=None) == 960


def test_a_fit_is_the_largest_multiple_within_the_target(module_of):
    config = module_of("mixtral").config
    sizes = {width: plan_config(resized(config, width=width)).num_parameters for width in (16, 24, 32)}
    found = fit(config, sizes[32] - 1, by="width", multiple=8, num_key_value_heads=None)
    assert found == 24
    assert fit(config, sizes[32], by="width", multiple=8, num_key_value_heads=None) == 32


def test_a_fit_of_experts_divides_by_the_routers_groups(module_of):
    config = module_of("deepseek_v3").config
    allowed = plan_config(resized(config, num_experts=6)).num_parameters + 1000
    assert fit(config, allowed, by="num_experts", multiple=1, num_key_value_heads=None) == 6


@pytest.mark.parametrize(
    ("target", "parameters"), [("20%", 200), ("12.5 %", 125), ("1GB", 500_000_000), ("1GiB", 2**29), ("3mb", 1_500_000)]
)
def test_targets_are_shares_or_bytes_in_bfloat16(target, parameters, module_of):
    before = plan_config(module_of("mixtral").config).with_(shapes={"weight": (10, 100)})
    assert parse_target(target, before) == parameters


@pytest.mark.parametrize("target", ["20", "small", "2KB", "-5%"])
def test_other_targets_are_refused(target, module_of):
    with pytest.raises(SettingsError, match="give a share of the parameters"):
        parse_target(target, plan_config(module_of("mixtral").config))


def test_a_dense_model_is_refused_with_what_to_use_instead():
    with pytest.raises(SettingsError, match=r"llama model has no experts; quantize makes dense models smaller"):
        experts_of(LlamaConfig())


def test_a_target_below_the_other_parameters_says_what_is_possible(module_of):
    with pytest.raises(SettingsError, match=r"are not in experts and the smallest width that works is 8"):
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
