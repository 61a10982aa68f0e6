"""The stage from settings to a checkpoint; scores against autograd; clear refusals."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import capture, describe, matrices
from burnish.core.checkpoint import load, plan_config
from burnish.core.errors import CheckpointError, DataError, NumericalError, SettingsError
from burnish.core.progress import Progress
from burnish.slim.collect import collect, down_views
from burnish.slim.maths.scores import SCORES
from burnish.slim.refit import refit
from burnish.slim.stage import EXPERT_SCORES, NEURON_SCORES, Slim
from burnish.slim.surgery import Kept

SMALL = {"tokens": 512, "length": 32, "multiple": 8, "allow_unseen": True}
QUIET = Progress(enabled=False)


def generator():
    return torch.Generator().manual_seed(0)


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits


@pytest.mark.parametrize("score", NEURON_SCORES)
def test_narrowed_to_a_target_the_checkpoint_loads_as_it_is_in_memory(model_of, texts, token_ids, tmp_path, score):
    model = model_of("mixtral")
    slim = Slim(target="70%", score=score, **SMALL)(model, calibration=texts)
    read = AutoModelForCausalLM.from_pretrained(slim.save(tmp_path / "out"), experts_implementation="eager")
    assert torch.equal(logits(read, token_ids), logits(slim.module, token_ids))
    assert 0.6 < slim.plan().num_parameters / model.plan().num_parameters <= 0.7


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("method", ["narrow", "drop"])
def test_fewer_and_narrower_experts_load_as_they_are_in_memory(model_of, texts, token_ids, tmp_path, name, method):
    sizes = {"width": 24, "num_experts": 2 if name == "mixtral" else 6}
    sizes["num_experts"] = min(sizes["num_experts"], describe(model_of(name).module).experts.num_experts - 1)
    refit = "alone" if method == "narrow" else None
    slim = Slim(method=method, refit=refit, **sizes, **SMALL)(model_of(name), calibration=texts)
    read = AutoModelForCausalLM.from_pretrained(slim.save(tmp_path / "out"), experts_implementation="eager")
    assert torch.equal(logits(read, token_ids), logits(slim.module, token_ids))
    facts = describe(read).experts
    assert (facts.intermediate_size, facts.num_experts) == (24, sizes["num_experts"])


@pytest.mark.parametrize("method", ["narrow", "drop"])
def test_the_experts_that_stay_are_the_intact_ones(model_of, texts, method):
    """An expert whose output is nothing goes first, whatever it is that goes."""
    model = model_of("mixtral")
    for layer, expert in enumerate((1, 3)):
        model.module.model.layers[layer].mlp.experts.down_proj.data[expert] = 0
    slim = Slim(method=method, width=48, num_experts=3, score="reap" if method == "drop" else "energy", **SMALL)
    after = slim(model, calibration=texts).module
    for layer, expert in enumerate((1, 3)):
        kept = [number for number in range(4) if number != expert]
        before = model.module.model.layers[layer].mlp
        assert torch.equal(after.model.layers[layer].mlp.experts.down_proj, before.experts.down_proj[kept])
        assert torch.equal(after.model.layers[layer].mlp.gate.weight, before.gate.weight[kept])


@pytest.mark.parametrize("score", EXPERT_SCORES)
def test_dropped_to_a_number_of_experts(model_of, texts, score):
    slim = Slim(method="drop", num_experts=2, score=score, **SMALL)(model_of("olmoe"), calibration=texts)
    assert describe(slim.module).experts.num_experts == 2
    assert describe(slim.module).experts.intermediate_size == 48


@pytest.mark.parametrize("name", ["phimoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"])
def test_other_classes_keep_their_other_widths(model_of, texts, name):
    model = model_of(name)
    slim = Slim(width=24, score="energy", **SMALL)(model, calibration=texts)
    facts = describe(slim.module)
    assert facts.experts.intermediate_size == 24
    if name == "qwen2_moe":
        assert facts.experts.shared_intermediate_size == 24  # has a key of its own, and was 24 before
    if name in ("deepseek_v2", "deepseek_v3"):
        assert facts.experts.shared_intermediate_size == 2 * 24
    if name not in ("mixtral", "phimoe"):
        assert facts.intermediate_size == 48


@pytest.mark.parametrize("score", ["fisher", "energy", "magnitude", "random"])
def test_attention_groups_are_cut_with_the_experts(model_of, texts, score):
    slim = Slim(width=24, num_key_value_heads=1, score=score, **SMALL)(model_of("phimoe"), calibration=texts)
    assert slim.config.num_key_value_heads == 1
    assert slim.config.num_attention_heads == 2
    assert slim.config.head_dim == 8


def test_planned_parameters_are_those_of_the_result(model_of, texts):
    model = model_of("mixtral")
    stage = Slim(target="60%", score="energy", num_key_value_heads=1, **SMALL)
    planned = stage.plan(model.plan())
    assert planned.num_parameters == stage(model, calibration=texts).plan().num_parameters


def test_the_input_model_is_left_alone(model_of, texts, token_ids):
    model = model_of("mixtral")
    before = logits(model.module, token_ids)
    Slim(width=16, refit="alone", **SMALL)(model, calibration=texts)
    assert torch.equal(logits(model.module, token_ids), before)
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_the_same_settings_give_the_same_bits(model_of, texts):
    stage = Slim(width=16, **SMALL)
    first, second = (stage(model_of("mixtral"), calibration=texts).module.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_bfloat16_weights_that_stay_are_the_stored_ones(model_of, texts):
    model = model_of("mixtral")
    model.module.to(torch.bfloat16)
    slim = Slim(width=24, **SMALL)(model, calibration=texts)
    assert slim.module.dtype is torch.bfloat16
    assert torch.equal(slim.module.model.embed_tokens.weight, model.module.model.embed_tokens.weight)


def test_first_order_sums_are_gradients_of_the_weights(module_of, token_ids):
    """Σ_t a ∂L/∂a of every neuron against autograd through the stock implementation: Σ_k W_down ∂L/∂W_down."""
    module = module_of("mixtral", torch.float64)
    signed = SCORES["taylor_total"]
    sums = collect(module, token_ids, signed, labels="text", generator=generator(), progress=QUIET)
    output = module(input_ids=token_ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    for view in down_views(module, "experts"):
        gradient = view.of(view.owner.down_proj.grad)
        expected = (view.tensor * gradient).sum(0)
        # the loss is taken in float32
        torch.testing.assert_close(sums.neurons[view.layer][view.expert], expected, rtol=1e-4, atol=1e-4)


def test_group_sums_are_gradients_of_the_output_projection(module_of, token_ids):
    module = module_of("mixtral", torch.float64)
    sums = collect(
        module, token_ids, SCORES["taylor_total"], groups=True, labels="text", generator=generator(), progress=QUIET
    )
    output = module(input_ids=token_ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(
        output[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten(), reduction="sum"
    ).backward()
    weight = module.model.layers[1].self_attn.o_proj.weight
    expected = (weight.detach() * weight.grad).sum(0).view(2, -1).sum(1)
    torch.testing.assert_close(sums.groups[1], expected, rtol=1e-4, atol=1e-4)


def test_routing_counts_add_up_to_tokens_times_chosen_experts(module_of, token_ids):
    module = module_of("qwen3_moe")
    sums = collect(module, token_ids, SCORES["energy"], generator=generator(), progress=QUIET)
    assert [int(counts.sum()) for counts in sums.counts.values()] == [2 * token_ids.numel()] * 2


def test_the_refit_lowers_the_error_of_every_expert_on_its_own_text(module_of, token_ids):
    """||g (A Wᵀ - A_K W'ᵀ)||², on activations that the capture hands out in a pass of its own."""
    module = module_of("mixtral", torch.float64)
    keep = torch.arange(0, 48, 2)
    kept = Kept(neurons={layer: keep.expand(4, -1) for layer in range(2)})
    found = dict(refit(module, token_ids, kept, QUIET))
    assert found.keys() == {(layer, expert) for layer in range(2) for expert in range(4)}
    errors = []

    def compare(view, activations, gradients, index):
        wanted, place = activations @ view.tensor.T, (view.layer, view.expert)
        token, choice = torch.where(routed[view.owner][1] == view.expert)
        weights = routed[view.owner][2][token, choice, None]

        def error(kept):
            return (weights * (wanted - activations[:, keep] @ kept.T)).square().sum()

        errors.append(error(found[place]) / error(view.tensor[:, keep]))

    routed, views = {}, down_views(module, "experts")
    for view in views:
        view.owner.register_forward_pre_hook(lambda owner, args: routed.__setitem__(owner, args))
    with capture(module, views) as captured, torch.no_grad():
        captured.callback = compare
        module(input_ids=token_ids, use_cache=False)
    assert len(errors) == 8
    assert max(errors) < 0.9


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_the_refit_of_a_shared_expert_lowers_its_error_on_its_own_text(module_of, token_ids, name):
    module = module_of(name, torch.float64)
    (view, *_) = down_views(module, "shared_expert")
    keep = torch.arange(0, view.shape[1], 2)
    (found,) = (down for (layer, expert), down in refit(module, token_ids, Kept(shared={view.layer: keep}), QUIET))
    seen = []
    view.owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        module(input_ids=token_ids, use_cache=False)
    activations = torch.cat(seen)
    wanted = activations @ view.tensor.T

    def error(down):
        return float((wanted - activations[:, keep] @ down.T).square().sum())

    assert error(found) < 0.9 * error(view.tensor[:, keep])


@pytest.mark.parametrize("name", ["phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"])
def test_the_refit_of_everything_kept_changes_nothing(module_of, token_ids, name):
    module = module_of(name)
    views = down_views(module, "experts")
    every = Kept(neurons={view.layer: torch.arange(48).expand(8, -1) for view in views})
    found = dict(refit(module, token_ids, every, QUIET))
    for view in views:
        torch.testing.assert_close(found[view.layer, view.expert], view.tensor)


def test_the_divergence_from_itself_is_refused(model_of, texts):
    """Its gradient is zero, so a score made of it is rounding noise."""
    stage = Slim(width=16, labels="teacher", teacher="same", **SMALL)
    with pytest.raises(SettingsError, match="every score would be rounding noise"):
        stage(model_of("mixtral"), calibration=texts, teacher=model_of("mixtral"))


def test_labels_of_a_teacher_need_one():
    with pytest.raises(SettingsError, match="divergence of a model from itself has no gradient"):
        Slim.parse({"width": 16, "labels": "teacher"}, where="recipe.yaml")


def test_the_divergence_from_another_model_scores(model_of, texts):
    model = model_of("mixtral")
    first = Slim(width=24, **SMALL)(model, calibration=texts)
    second = Slim(width=16, labels="teacher", teacher="start", **SMALL)(first, calibration=texts, teacher=model)
    assert describe(second.module).experts.intermediate_size == 16


def test_a_teacher_of_another_vocabulary_is_refused(model_of, texts):
    teacher = copy.deepcopy(model_of("mixtral"))
    teacher.module.resize_token_embeddings(380)
    with pytest.raises(CheckpointError, match="vocabulary of 384 and the teacher one of 380"):
        Slim(width=16, labels="teacher", teacher="t", **SMALL)(model_of("mixtral"), calibration=texts, teacher=teacher)


def test_what_pads_the_teachers_vocabulary_scores_nothing(model_of, texts):
    teacher, narrower = (
        copy.deepcopy(model_of("mixtral")),
        Slim(width=24, **SMALL)(model_of("mixtral"), calibration=texts),
    )
    stage = Slim(width=16, labels="teacher", teacher="t", **SMALL)
    alike = stage(narrower, calibration=texts, teacher=teacher).module.state_dict()
    teacher.module.resize_token_embeddings(400)
    teacher.module.get_output_embeddings().weight.data[384:] = 3.0
    padded = stage(narrower, calibration=texts, teacher=teacher).module.state_dict()
    assert all(torch.equal(tensor, padded[name]) for name, tensor in alike.items())


def test_experts_without_tokens_are_counted_and_refused(model_of, texts):
    model = model_of("mixtral")
    for view in matrices(model.module):
        if view.role == "router":
            view.tensor.zero_()  # all equal, so the same two are always chosen
    settings = SMALL | {"allow_unseen": False}
    with pytest.raises(DataError, match="4 of 8 experts saw none of the 512 calibration tokens"):
        Slim(width=16, **settings)(model, calibration=texts)


def test_activations_that_are_not_finite_are_refused(model_of, texts):
    model = model_of("mixtral")
    model.module.model.layers[0].post_attention_layernorm.weight.data[0] = 1e38
    with pytest.raises(NumericalError, match="calibration text are not finite"):
        Slim(width=16, score="energy", **SMALL)(model, calibration=texts)


def test_weights_that_are_not_finite_are_refused_by_name(model_of):
    model = model_of("mixtral")
    model.module.model.layers[1].mlp.experts.down_proj.data[2, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.1\.block_sparse_moe\.experts\.2\.w2"):
        Slim(width=16, multiple=8, score="magnitude")(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing says how small"),
        ({"target": "20%", "width": 8}, "target and width all say how small"),
        ({"num_experts": 2}, "num_experts is a setting of method: drop"),
        ({"width": 8, "score": "reap"}, "to narrow it is one of fisher"),
        ({"method": "drop", "num_experts": 2, "refit": "alone"}, "refit repairs narrowed experts"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim.parse(settings, where="recipe.yaml")


def test_a_dense_model_is_refused_when_planned(tiny_llama):
    with pytest.raises(SettingsError, match="has no experts"):
        Slim(target="50%").plan(load(tiny_llama).plan())


def test_a_width_that_is_no_multiple_is_refused(module_of):
    with pytest.raises(SettingsError, match="width is 24, which 64 does not divide"):
        Slim(width=24).plan(plan_config(module_of("mixtral").config))


def test_a_width_that_is_no_multiple_of_64_is_said_in_the_plan(module_of):
    planned = Slim(width=24, multiple=8).plan(plan_config(module_of("mixtral").config))
    assert any("no multiple of 64" in note for note in planned.notes)
