"""The matrix view: complete, named as on disk, and live."""

from collections import Counter

import pytest
import torch
import transformers
from safetensors.torch import load_file

from burnish import arch
from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind


def test_every_saved_value_is_in_exactly_one_view(any_model):
    """Each view adds one to the elements it covers, in a copy of the state: all must end at one."""
    count = {name: torch.zeros_like(tensor) for name, tensor in any_model.state_dict(keep_vars=True).items()}
    matrices, vectors = arch.matrices(any_model), arch.vectors(any_model)
    for view in matrices:
        view.of(count[view.parameter]).add_(1)
    for view in vectors:
        count[view.parameter].add_(1)
    tied = {name for view in matrices for name in view.tied}
    assert {name: c.unique().tolist() for name, c in count.items() if name not in tied} == {
        name: [1.0] for name in count if name not in tied
    }


def test_names_are_unique(any_model):
    names = [view.name for view in (*arch.matrices(any_model), *arch.vectors(any_model))]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_views_equal_the_tensors_of_the_written_safetensors(any_model, tmp_path):
    Model(module=any_model).save(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    matrices, vectors = arch.matrices(any_model), arch.vectors(any_model)
    for view in vectors:
        assert torch.equal(written[view.name], view.tensor), view.name
    for view in matrices:
        stored = written[view.disk]
        one_of_one = view.name == view.disk and view.expert is not None
        block = (stored.T if view.transposed else stored) if one_of_one else view.of(stored)
        assert torch.equal(block, view.tensor), view.name
    assert set(written) == {view.disk for view in matrices} | {view.name for view in vectors}


def test_saving_and_loading_again_is_bit_exact(any_model, tmp_path, token_ids):
    Model(module=any_model).save(tmp_path / "saved")
    again = load(tmp_path / "saved").module
    state = again.state_dict()
    assert set(state) == set(any_model.state_dict())
    for name, tensor in any_model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    again.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, any_model(token_ids).logits)


def test_views_of_a_reloaded_model_are_the_same(any_model, tmp_path):
    before = arch.matrices(any_model)
    Model(module=any_model).save(tmp_path / "saved")
    assert arch.matrices(load(tmp_path / "saved").module) == before


def test_a_written_matrix_is_what_the_model_then_computes_with(model_of, token_ids, tmp_path):
    """Zeroing every down and o matrix leaves only the embedding in the residual stream."""
    for name in ("gpt2", "mixtral", "phi3", "qwen2_moe"):
        module = model_of(name)
        for vector in arch.vectors(module):
            if vector.role == "bias" and vector.layer is not None:
                vector.tensor.zero_()
        for view in arch.matrices(module):
            if view.role in ("o", "down"):
                view.write_(torch.zeros(view.shape))
        row = arch.describe(module).row
        hidden = []
        module.get_submodule(row.final_norm).register_forward_hook(lambda _m, args, _o, to=hidden: to.append(args[0]))
        with torch.no_grad():
            module(token_ids)
            embedded = module.get_submodule(row.embedding)(token_ids)
            if row.position_embedding:
                embedded = embedded + module.get_submodule(row.position_embedding).weight[: token_ids.shape[1]]
        assert torch.equal(hidden[0], embedded)


def test_writing_another_shape_is_refused(model_of):
    view = arch.matrices(model_of("llama"))[1]
    with pytest.raises(ValueError, match=r"q_proj.weight is \(64, 64\), but is given \(64, 63\)"):
        view.write_(torch.zeros(64, 63))


def test_a_tied_head_is_one_matrix(model_of):
    views = arch.matrices(model_of("llama_tied"))
    embedding = views[0]
    assert embedding.tied == ("lm_head.weight",)
    assert embedding.multiplies
    assert [view for view in views if view.role == "lm_head"] == []


def test_an_untied_embedding_does_not_multiply(model_of):
    embedding = arch.matrices(model_of("llama"))[0]
    assert (embedding.role, embedding.tied, embedding.multiplies) == ("embedding", (), False)


def test_names_and_groups_of_a_mixtral_expert(model_of):
    views = {view.name: view for view in arch.matrices(model_of("mixtral"))}
    gate = views["model.layers.1.block_sparse_moe.experts.3.w1.weight"]
    up = views["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    assert (gate.role, gate.expert, gate.layer, gate.rows) == ("gate", 3, 1, (0, 80))
    assert (up.role, up.rows) == ("up", (80, 160))
    assert gate.parameter == up.parameter == "model.layers.1.mlp.experts.gate_up_proj"
    assert gate.fused_group == up.fused_group == "model.layers.1.block_sparse_moe.experts.3.gate_up_proj"
    assert gate.input_group == up.input_group


def test_query_key_and_value_of_gpt2_are_three_matrices(model_of):
    module = model_of("gpt2")
    q, k, v = (view for view in arch.matrices(module) if view.disk == "transformer.h.0.attn.c_attn.weight")
    stored = module.transformer.h[0].attn.c_attn.weight
    assert (q.name, q.role, q.transposed) == ("transformer.h.0.attn.c_attn.weight[q]", "q", True)
    assert torch.equal(torch.cat([q.tensor, k.tensor, v.tensor]), stored.T)


def test_siblings_that_vllm_fuses_share_a_group(model_of):
    groups = Counter(view.fused_group for view in arch.matrices(model_of("llama")) if view.layer == 0)
    assert groups == {
        "model.layers.0.self_attn.qkv_proj": 3,
        "model.layers.0.mlp.gate_up_proj": 2,
        "": 2,
    }


def test_latent_attention_shares_its_input_between_both_down_projections(model_of):
    views = {view.role: view for view in arch.matrices(model_of("deepseek_v3")) if view.layer == 0}
    assert views["q_a"].input_group == views["kv_a"].input_group
    assert views["q_a"].fused_group == views["kv_a"].fused_group == "model.layers.0.self_attn.fused_qkv_a_proj"
    assert views["q_b"].input_group != views["kv_b"].input_group


def test_without_low_rank_queries_nothing_joins_the_latent_projection(model_of):
    views = {view.role: view for view in arch.matrices(model_of("deepseek_v2")) if view.layer == 0}
    assert views["kv_a"].fused_group == ""
    assert views["kv_a"].input_group == views["q"].input_group


def test_experts_of_a_layer_share_one_format_and_no_inputs(model_of):
    experts = [view for view in arch.matrices(model_of("qwen3_moe")) if view.expert is not None and view.layer == 0]
    assert {view.format_group for view in experts} == {"model.layers.0.mlp.experts"}
    assert {view.reads for view in experts if view.role != "down"} == {"model.layers.0.mlp_input"}
    assert len({view.input_group for view in experts}) == 2 * 4


def test_by_input_keeps_every_view(any_model):
    views = arch.matrices(any_model)
    assert Counter(view for group in arch.by_input(views).values() for view in group) == Counter(views)


def test_views_exist_on_the_meta_device(model_of):
    config = model_of("qwen3_moe").config
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    assert arch.matrices(empty) == arch.matrices(model_of("qwen3_moe"))


def test_a_sequence_classifier_has_a_score_head(tmp_path, model_of):
    config = model_of("qwen2").config
    config.num_labels = 1
    module = transformers.AutoModelForSequenceClassification.from_config(config)
    head = arch.matrices(module)[-1]
    assert (head.name, head.role, head.shape) == ("score.weight", "score", (1, 64))
    saved = Model(module=module)
    saved.lineage.kind = Kind.SEQUENCE_CLASSIFIER
    saved.save(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").module.score.weight, head.tensor)


def test_layers_are_in_order(any_model):
    named = arch.layers(any_model)
    assert [name.rpartition(".")[2] for name, _ in named] == list("0123")[: arch.describe(any_model).num_layers]
    assert all(any_model.get_submodule(name) is layer for name, layer in named)


def test_a_parameter_that_the_row_does_not_know_is_an_error(model_of):
    module = model_of("llama")
    module.model.layers[1].extra = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match=r"says nothing about model.layers.1.extra.weight"):
        arch.matrices(module)


def test_a_base_model_without_a_head_is_an_error(model_of):
    with pytest.raises(CheckpointError, match="load it with a head"):
        arch.matrices(model_of("llama").model)
