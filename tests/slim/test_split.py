"""Experts in pieces: split alone changes nothing, for every router that it is done to; and what is dropped."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import describe, matrices
from burnish.arch.table import MIXTURES
from burnish.core.checkpoint import Model, load, plan_config
from burnish.core.errors import SettingsError
from burnish.slim.collect import down_views
from burnish.slim.maths.split import TIE_BREAK, common_direction, dealt, down_factor, in_pieces, tie_breaks
from burnish.slim.stage import Slim
from small_models import make, small_config

SMALL = {"method": "split", "tokens": 512, "length": 32, "multiple": 8, "allow_unseen": True}
LARGER = {"hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 256, "num_key_value_heads": 4}
REFUSED = {
    "phimoe": "takes two experts one after the other",
    "hunyuan_v1_moe": "its shared expert is as wide as a routed one",
    "llama4_text": "its shared expert is as wide as a routed one",
    "jamba": "one width for its experts and for the MLPs",
}
VARIANTS = [
    *((name, {}) for name in MIXTURES if name not in REFUSED),
    ("deepseek_v3", {"n_group": 4, "topk_group": 2, "n_routed_experts": 8}),
    ("glm4_moe", {"n_group": 1, "topk_group": 1}),
    ("deepseek_v3", {"n_group": 2, "topk_group": 2, "norm_topk_prob": False}),
    ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    ("lfm2_moe", {"norm_topk_prob": False}),
    ("olmoe", {"norm_topk_prob": True}),
    ("qwen3_moe", {"norm_topk_prob": True}),
    ("qwen2_moe", {"norm_topk_prob": True}),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid", "norm_topk_prob": False}),
    ("jamba", {"expert_layer_period": 1, "expert_layer_offset": 0}),
]


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits


def model(kind, tiny_llama, **changes):
    return Model(module=make(kind, disturbed=True, **changes), tokenizer=load(tiny_llama).tokenizer)


@pytest.mark.parametrize(
    ("kind", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value))
)
def test_split_alone_computes_what_the_model_computes(kind, changes, tiny_llama, texts, token_ids):
    before = model(kind, tiny_llama, **changes)
    experts = describe(before.module).experts
    stage = Slim(num_experts=2 * experts.num_experts, pieces=2, refit="none", **SMALL)
    split = stage(before, calibration=texts)
    facts = describe(split.module).experts
    assert (facts.num_experts, facts.top_k) == (2 * experts.num_experts, 2 * experts.top_k)
    assert facts.intermediate_size == experts.intermediate_size // 2
    wanted = logits(before.module, token_ids)
    torch.testing.assert_close(
        logits(split.module, token_ids), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )


@pytest.mark.parametrize(("kind", "reason"), REFUSED.items())
def test_routers_to_which_pieces_are_not_their_expert_are_refused(kind, reason):
    with pytest.raises(SettingsError, match=reason):
        Slim(num_experts=4, pieces=2, **SMALL).plan(plan_config(small_config(kind)))


def test_every_mixture_is_split_or_refused():
    assert {kind for kind, _ in VARIANTS} | set(REFUSED) == set(MIXTURES)


SPLIT = [
    ("olmoe", {}),
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("gpt_oss", {}),
    ("deepseek_v2", {}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    ("granitemoehybrid", {}),
    ("qwen3_next", {}),
    ("ernie4_5_moe", {}),
    ("flex_olmo", {}),
    ("nemotron_h", {"n_group": 1, "topk_group": 1, "moe_latent_size": 24}),
]


@pytest.mark.parametrize(("kind", "changes"), SPLIT, ids=[kind for kind, _ in SPLIT])
def test_half_of_the_pieces_reload_as_they_are_in_memory(kind, changes, tiny_llama, texts, token_ids, tmp_path):
    before = model(kind, tiny_llama, **changes)
    split = Slim(num_experts=6, pieces=3, **SMALL)(before, calibration=texts)
    read = AutoModelForCausalLM.from_pretrained(split.save(tmp_path / "out"), experts_implementation="eager")
    assert torch.equal(logits(read, token_ids), logits(split.module, token_ids))
    assert read.state_dict().keys() == split.module.state_dict().keys()
    assert all(torch.equal(tensor, split.module.state_dict()[name]) for name, tensor in read.state_dict().items())
    facts = describe(read).experts
    assert (facts.num_experts, facts.top_k) == (6, 5)
    assert not list((tmp_path / "out").glob("*.py"))


LOADED = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.load(sys.argv[1])
for directory in sys.argv[2:]:
    module = AutoModelForCausalLM.from_pretrained(directory, experts_implementation="eager")
    with torch.no_grad():
        torch.save(module(input_ids=ids).logits, f"{directory}/logits.pt")
assert "burnish" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.real_process
def test_stock_transformers_alone_loads_pieces_in_a_fresh_process(tiny_llama, texts, token_ids, tmp_path):
    made = {}
    for kind in ("olmoe", "mixtral", "qwen3_moe", "gpt_oss"):
        split = Slim(num_experts=6, pieces=3, **SMALL)(model(kind, tiny_llama), calibration=texts)
        made[split.save(tmp_path / kind)] = logits(split.module, token_ids)
    torch.save(token_ids, tmp_path / "ids.pt")
    subprocess.run([sys.executable, "-c", LOADED, tmp_path / "ids.pt", *made], check=True)
    for directory, wanted in made.items():
        assert torch.equal(torch.load(directory / "logits.pt"), wanted)


def chosen_pieces(module, ids):
    """Of every layer: the pieces that each token is sent to, ascending."""
    found, owners = [], {view.owner for view in down_views(module, "experts")}
    hooks = [
        owner.register_forward_pre_hook(lambda of, args: found.append(args[1].sort(-1).values)) for owner in owners
    ]
    with torch.no_grad():
        module(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.cat([one.view(*ids.shape, -1) for one in found], -1)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "gpt_oss"])
def test_one_window_alone_is_sent_to_the_pieces_that_it_is_sent_to_among_others(kind, tiny_llama, texts):
    before = model(kind, tiny_llama)
    split = Slim(num_experts=6, pieces=3, **SMALL)(before, calibration=texts).module
    ids = torch.randint(3, 384, (12, 24), generator=torch.Generator().manual_seed(3))
    together = chosen_pieces(split, ids)
    alone = torch.cat([chosen_pieces(split, ids[i : i + 1]) for i in range(len(ids))])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_no_two_pieces_have_equal_logits_so_every_engine_chooses_the_same(kind, tiny_llama, texts):
    """Among equal ones vLLM takes the first and torch whichever: without the tie break they would differ."""
    before = model(kind, tiny_llama)
    split = Slim(num_experts=6, pieces=3, **SMALL)(before, calibration=texts).module
    ids = torch.randint(3, 384, (4, 24), generator=torch.Generator().manual_seed(3))
    seen = []
    routers = [view for view in matrices(split) if view.role == "router"]
    for view in routers:
        view.owner.register_forward_hook(lambda of, args, output: seen.append(output[0]))
    with torch.no_grad():
        split(input_ids=ids)
    for logits_of in seen:
        ordered = logits_of.double().sort(-1).values
        assert (ordered.diff(dim=-1) > 0).float().mean() > 0.999


def test_pieces_of_an_expert_stand_in_the_order_of_their_worth():
    parts = in_pieces(torch.tensor([[1.0, 5.0, 4.0, 2.0, 0.0, 3.0]]), 3)
    assert parts.tolist() == [[[1, 2], [3, 5], [0, 4]]]
    assert dealt(torch.tensor([[0, 1, 4, 5], [8, 9, 10, 12]]), 2).tolist() == [0, 4, 1, 5, 8, 10, 9, 12]


def test_the_direction_of_router_inputs_is_one_for_their_mean():
    draw = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = draw * torch.tensor([0.1, 1, 1, 1, 1, 4]) + torch.arange(1, 7)
    direction = common_direction(draw.sum(0), draw.square().sum(0), 500)
    assert float(draw.mean(0) @ direction) == pytest.approx(1)
    along = draw @ direction
    plain = draw @ (draw.mean(0) / draw.mean(0).square().sum())
    assert along.std() < plain.std()
    breaks = tie_breaks(torch.tensor([0, 1, 2]), direction)
    assert torch.equal(breaks[0], torch.zeros(6, dtype=torch.float64))
    assert float(draw.mean(0) @ breaks[2]) == pytest.approx(-2 * TIE_BREAK)


@pytest.mark.parametrize("weights", ["chosen", "all", "each"])
def test_the_factor_gives_pieces_the_weight_of_their_expert(weights):
    """Of experts with equal logits, one by one and in pieces of which none is dropped."""
    num_experts, top_k, pieces = 8, 2, 4
    one = {"chosen": 1 / top_k, "all": 1 / num_experts, "each": 0.3}[weights]
    part = {"chosen": 1 / (top_k * pieces), "all": 1 / (num_experts * pieces), "each": 0.3}[weights]
    factor = down_factor(weights, (num_experts, top_k), (num_experts * pieces, top_k * pieces))
    assert factor * part == pytest.approx(one)


@pytest.mark.parametrize("target", ["80%", "61%", "45%"])
@pytest.mark.parametrize("kind", ["olmoe", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_a_target_is_kept_by_pieces_and_met_to_two_percent(kind, target):
    before = plan_config(small_config(kind, vocab_size=96, num_hidden_layers=3, **LARGER))
    stage = Slim(method="split", target=target, multiple=8)
    planned = stage.plan(before)
    allowed = before.num_parameters * int(target[:-1]) // 100
    assert planned.num_parameters <= allowed
    nearest = any("the sizes nearest" in note for note in planned.notes)
    assert nearest or planned.num_parameters >= 0.98 * allowed


def test_a_planned_split_is_the_one_that_is_made(tiny_llama, texts):
    before = model("qwen3_moe", tiny_llama)
    stage = Slim(target="75%", pieces=3, **SMALL)
    planned = stage.plan(before.plan())
    assert planned.num_parameters == stage(before, calibration=texts).plan().num_parameters
    assert any("pieces of 4 experts per layer" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 4, "refit": "alone"}, "pieces lose none; use refit: behind"),
        ({"width": 16}, "width is a setting of method: narrow"),
        ({"num_experts": 4, "rounds": 2, "data": "d.txt"}, "makes pieces of experts once; give rounds: 1"),
        ({"num_experts": 4, "stream": True}, "refit: behind takes text through two networks"),
        ({"num_experts": 4, "score": "wanda"}, "to split it is one of energy"),
        ({"method": "narrow", "width": 16, "pieces": 3}, "pieces is a setting of method: split"),
        ({"method": "drop", "num_experts": 2, "num_experts_per_tok": 2}, "num_experts_per_tok is a setting of method"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim.parse({"method": "split"} | settings, where="recipe.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pieces": 5}, "pieces is 5, which does not divide the width of an expert, 48"),
        (
            {"pieces": 4},
            "a piece of an expert of 48 would be 12 wide, which 8 does not divide; use --pieces 2 or 3 or 6$",
        ),
        ({"pieces": 3, "num_experts_per_tok": 7}, "num_experts_per_tok is 7, but 6 pieces are kept"),
        ({"pieces": 3, "num_experts": 13}, "num_experts is 13, but"),
    ],
)
def test_sizes_that_are_not_possible_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim(**{"method": "split", "num_experts": 6, "multiple": 8} | settings).plan(
            plan_config(small_config("qwen3_moe"))
        )


def test_experts_that_saw_no_token_lose_their_pieces_first(tiny_llama, texts):
    """However large their weights are: those are no score to compare with."""
    before = model("mixtral", tiny_llama, num_local_experts=4)
    for view in matrices(before.module):
        if view.role == "router":
            view.tensor.zero_()  # all equal, so the same two are always chosen
    seen = set()
    for view in down_views(before.module, "experts"):
        view.owner.register_forward_pre_hook(lambda of, args: seen.update(args[1].unique().tolist()))
    logits(before.module, torch.arange(3, 60)[None])
    assert len(seen) == 2
    for view in down_views(before.module, "experts"):
        if view.expert not in seen:
            view.write_(100 * view.tensor)
    split = Slim(num_experts=4, pieces=2, refit="none", score="energy", **SMALL | {"tokens": 256})
    after = split(before, calibration=texts)
    for layer in range(2):
        old = before.module.model.layers[layer].mlp.experts.down_proj.abs().amax((1, 2))
        assert after.module.model.layers[layer].mlp.experts.down_proj.abs().max() <= 3 * old[sorted(seen)].max()


def test_attention_groups_are_cut_with_the_pieces(tiny_llama, texts, token_ids, tmp_path):
    split = Slim(num_experts=6, pieces=3, num_key_value_heads=1, **SMALL)(
        model("mixtral", tiny_llama), calibration=texts
    )
    read = AutoModelForCausalLM.from_pretrained(split.save(tmp_path / "out"), experts_implementation="eager")
    assert torch.equal(logits(read, token_ids), logits(split.module, token_ids))
    assert (read.config.num_key_value_heads, read.config.num_local_experts) == (1, 6)
