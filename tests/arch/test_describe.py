"""The facts of a row agree with the models that transformers builds."""

from pathlib import Path

import pytest
import torch
import transformers

from burnish import arch
from burnish.arch.table import TABLE
from burnish.core.errors import CheckpointError
from gains import move_gains

WIDTHS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def test_every_row_is_tested_on_a_model(tested_model_types):
    assert tested_model_types == set(TABLE)


def test_width_keys_are_keys_of_the_configuration_class(any_model):
    facts = arch.describe(any_model)
    config = any_model.config.get_text_config()
    keys = set(config.to_dict()) | set(config.attribute_map) | set(dir(type(config)))  # some follow from other keys
    wanted = {facts.key(width) for width in WIDTHS}
    if facts.experts is not None:
        wanted |= {facts.key("num_experts"), facts.key("moe_intermediate_size")}
    assert wanted <= keys


def test_attention_widths_are_those_of_the_matrices(any_model):
    facts = arch.describe(any_model)
    views = {view.role: view for view in arch.matrices(any_model) if view.part == "attention"}
    if facts.attention == "mla":
        assert views.get("q", views.get("q_b")).shape[0] == facts.num_attention_heads * facts.head_dim
        return
    all_heads = facts.num_attention_heads * facts.head_dim
    assert views["q"].shape == ((1 + facts.row.query_gate) * all_heads, facts.hidden_size)
    assert views["k"].shape == views["v"].shape == (facts.num_key_value_heads * facts.head_dim, facts.hidden_size)
    assert views["o"].shape == (facts.hidden_size, all_heads)


def test_mlp_widths_are_those_of_the_matrices(any_model):
    facts = arch.describe(any_model)
    assert {view.shape for view in arch.matrices(any_model) if view.part == "mlp" and view.role != "down"} <= {
        (facts.intermediate_size, facts.hidden_size)
    }


def test_expert_facts_are_those_of_the_matrices(any_model):
    facts = arch.describe(any_model)
    views = arch.matrices(any_model)
    gates = [view for view in views if view.expert is not None and view.role == "up"]
    if facts.experts is None:
        assert gates == []
        return
    experts = facts.experts
    inner = getattr(facts.config, "moe_latent_size", None) or facts.hidden_size
    assert {view.shape for view in gates} == {(experts.intermediate_size, inner)}
    assert {view.layer for view in gates} == set(experts.sparse_layers)
    assert {view.layer for view in views if view.part == "mlp"} == set(experts.dense_layers)
    last = experts.sparse_layers[-1]
    assert sorted(view.expert for view in gates if view.layer == last) == list(range(experts.num_experts))
    routers = [view for view in views if view.role == "router"]
    assert [view.parameter for view in routers] == [
        f"{facts.row.layers}.{layer}.{experts.router}.weight" for layer in experts.sparse_layers
    ]
    assert {view.shape for view in routers} == {(experts.num_experts, facts.hidden_size)}
    shared = {view.shape for view in views if view.part == "shared_expert" and view.role == "up"}
    assert shared == ({(experts.shared_intermediate_size, facts.hidden_size)} if experts.shared else set())


def test_top_k_is_the_number_of_experts_a_token_visits(any_model, token_ids):
    facts = arch.describe(any_model)
    gates = [view for view in arch.matrices(any_model) if view.expert is not None and view.role == "up"]
    visits = torch.zeros(facts.num_layers, token_ids.numel(), dtype=torch.int64)
    with arch.capture(any_model, gates) as captured, torch.no_grad():
        captured.callback = lambda view, _x, _g, index: visits[view.layer].index_add_(0, index, torch.ones_like(index))
        any_model(token_ids)
    for layer in range(facts.num_layers):
        sparse = facts.experts is not None and layer in facts.experts.sparse_layers
        assert visits[layer].unique().tolist() == [facts.experts.top_k if sparse else 0]


def test_a_gain_moves_from_each_norm_into_the_matrices_it_feeds(any_model64, token_ids, all_float64):
    with torch.no_grad():
        before = any_model64(token_ids).logits
        move_gains(any_model64)
        after = any_model64(token_ids).logits
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_query_and_key_norms_span_what_the_row_says(any_model):
    facts = arch.describe(any_model)
    names = {"q": ("q_norm", "query_layernorm", "q_layernorm"), "k": ("k_norm", "key_layernorm", "k_layernorm")}
    sizes = {
        f"{role}_norm": vector.tensor.numel()
        for vector in arch.vectors(any_model)
        for role, words in names.items()
        if vector.role == "norm" and vector.name.split(".")[-2] in words
    }
    expected = {
        "none": {},
        "head": {"q_norm": facts.head_dim, "k_norm": facts.head_dim},
        "all_heads": {
            "q_norm": facts.num_attention_heads * facts.head_dim,
            "k_norm": facts.num_key_value_heads * facts.head_dim,
        },
    }
    assert sizes == expected[facts.qk_norm]


def test_norm_biases_exist_exactly_for_layer_norms(any_model):
    has_bias = any(vector.role == "norm_bias" for vector in arch.vectors(any_model))
    without = arch.describe(any_model).model_type in ("cohere", "cohere2", "cohere2_moe")
    assert has_bias == (arch.describe(any_model).norm == "layer" and not without)


def test_an_unknown_model_type_names_the_known_ones_and_the_page():
    config = transformers.AutoConfig.for_model("bert")
    with pytest.raises(CheckpointError) as error:
        arch.describe(config)
    assert "does not know model_type 'bert'" in str(error.value)
    assert "deepseek_v2" in str(error.value) and "qwen3_moe" in str(error.value)
    assert "add an architecture" in str(error.value)


def test_the_page_lists_every_model_type():
    page = Path(__file__).parents[2] / "docs" / "add-an-architecture.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in TABLE if f"`{name}`" not in text] == []
