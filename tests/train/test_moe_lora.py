"""Adapters on the routed experts: exact starts and merges, what is shared, experts without tokens, stock peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize

from burnish.arch import matrices
from burnish.core.checkpoint import Model, load
from burnish.core.errors import SettingsError
from burnish.train.lora import check_adapters, merged, with_adapters
from burnish.train.moe_lora import expert_parameters
from burnish.train.stage import Train
from small_models import PROSE, make, small_tokenizer

pytest.importorskip("peft")
KINDS = ["olmoe", "mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "nemotron_h", "deepseek_v3"]
"""One tensor for gate and up, alternating rows (gpt_oss), stored (in, out) (gpt_oss, llama4), no gate (nemotron)."""
FORMS = ["each", "shared"]
IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 384
RANK = 4


def adapted(module: Any, form: str, **settings: Any) -> Any:
    return with_adapters(module, Train(lora_rank=RANK, lora_experts=form, **settings), None)


def drawn(module: nn.Module) -> None:
    """All factors of adapters at random, so that B is not 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def logits(module: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return module(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_start_is_the_model_itself_bit_for_bit(kind, form):
    module = make(kind)
    with torch.no_grad():
        before = logits(module)
        torch.testing.assert_close(logits(adapted(module, form)), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_merged_is_unmerged(kind, form):
    with_them = adapted(make(kind), form)
    drawn(with_them)
    with torch.no_grad():
        before, base = logits(with_them), logits(make(kind))
        whole = merged(with_them)
        after = logits(whole)
    assert (before - base).abs().max() > 1e-2
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert set(whole.state_dict()) == set(make(kind).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_gate_and_up_share_what_reads_and_down_what_writes(kind):
    """The changes of all experts, side by side, have the rank that one shared factor leaves them."""
    base, module = make(kind, dtype=torch.float64), adapted(make(kind, dtype=torch.float64), "shared")
    drawn(module)
    whole = merged(module)
    before = {view.name: view for view in matrices(base, complete=False)}
    changes: dict[tuple[str, str], list[torch.Tensor]] = {}
    for view in matrices(whole, complete=False):
        if view.part == "experts" and view.expert is not None:
            role = "down" if view.role == "down" else "gate and up"
            changes.setdefault((view.parameter, role), []).append(view.tensor - before[view.name].tensor)
    assert changes
    for (_, role), of_experts in changes.items():
        rank = 2 * RANK if kind in ("deepseek_v3",) and role != "down" else RANK  # which peft doubles there
        beside = torch.cat(of_experts, dim=1 if role == "down" else 0)  # (out, experts * in) or (experts * out, in)
        other = torch.cat([change.T for change in of_experts], dim=1 if role == "down" else 0)
        assert torch.linalg.matrix_rank(beside, rtol=1e-9) == rank
        assert torch.linalg.matrix_rank(other, rtol=1e-9) > rank


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_without_a_token_has_a_gradient_of_zero_and_not_none(form):
    module = adapted(make("olmoe"), form)
    drawn(module)
    ids = IDS[:1, 1:2]  # one token cannot reach four experts
    logits(module, ids).square().sum().backward()
    routers = module(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
    for layer, scores in enumerate(routers):
        used = set(scores.topk(2).indices.flatten().tolist())
        experts = module.get_submodule(f"base_model.model.model.layers.{layer}.mlp.experts")
        for wrapper in (experts, experts.base_layer):
            first, second = (factor["default"] for factor in (wrapper.lora_A, wrapper.lora_B))
            for factor, is_second in ((first, False), (second, True)):
                tied = parametrize.is_parametrized(factor, "weight")
                weight = factor.parametrizations.weight.original if tied else factor.weight
                assert weight.grad is not None
                if tied:
                    assert weight.grad.abs().max() > 0
                    continue
                parts = weight.grad.reshape(len(weight), -1, 4).permute(2, 0, 1) if is_second else None
                parts = weight.grad.reshape(4, -1, weight.shape[1]) if parts is None else parts
                assert {expert for expert in range(4) if parts[expert].abs().max() > 0} == used


def test_the_shared_form_has_about_half_the_parameters():
    """r (H + 2 E I + E I + H) against E r (H + 2 I + I + H), for E experts of I out of H: 0.36 as in Qwen3-30B-A3B."""
    experts, hidden, inner = 16, 64, 24
    shape = {"num_experts": experts, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1}
    counts = {
        form: sum(
            parameter.numel()
            for name, parameter in adapted(make("olmoe", **shape), form).named_parameters()
            if parameter.requires_grad and ".experts." in name
        )
        for form in FORMS
    }
    assert counts["each"] == experts * RANK * (2 * hidden + 3 * inner)
    assert counts["shared"] == RANK * (2 * hidden + 3 * experts * inner)
    assert counts["shared"] / counts["each"] < 0.5


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return Model(module=make("olmoe"), tokenizer=small_tokenizer()).save(tmp_path / "mixture")


SMALL: dict[str, Any] = {"context": 32, "batch": 4, "steps": 4, "lr": 0.02, "lora_rank": RANK}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained_is_stock_and_its_adapter_is_read_by_stock_peft(mixture, tmp_path, form):
    from peft import PeftModel

    stage = Train(**SMALL, lora_experts=form, keep_adapter=True)
    trained = stage(load(mixture), data=[PROSE.read_text()[:2000]], work_dir=tmp_path / "work")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    before, after = load(mixture).module.state_dict(), trained.module.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["model.layers.0.mlp.experts.down_proj"], after["model.layers.0.mlp.experts.down_proj"]
    )
    start = transformers.AutoModelForCausalLM.from_pretrained(mixture)
    read = PeftModel.from_pretrained(start, tmp_path / "work" / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(read), logits(trained.module), rtol=1e-5, atol=1e-5)


def test_a_training_that_goes_on_ends_with_the_same_bits(mixture, tmp_path, monkeypatch):
    stage = Train(**SMALL, lora_experts="shared", save_every=2)
    whole = stage(load(mixture), data=[PROSE.read_text()[:2000]], work_dir=tmp_path / "whole")
    halfway = Train(**SMALL, lora_experts="shared", save_every=2)
    monkeypatch.setattr("burnish.train.run.finished", _fail)
    with pytest.raises(InterruptedError):
        halfway(load(mixture), data=[PROSE.read_text()[:2000]], work_dir=tmp_path / "cut")
    monkeypatch.undo()
    states = sorted((tmp_path / "cut" / "states").glob("step-*"))
    assert len(states) >= 1
    again = stage(load(mixture), data=[PROSE.read_text()[:2000]], work_dir=tmp_path / "cut")
    one, other = (model.module.state_dict() for model in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def _fail(*_: object) -> None:
    raise InterruptedError


@pytest.mark.parametrize("form", FORMS)
def test_a_model_without_experts_is_refused_before_anything_runs(form):
    with pytest.raises(SettingsError, match="has no routed experts that adapters could be added to"):
        check_adapters(make("llama"), "all-linear", RANK, experts=True)
    with pytest.raises(SettingsError, match="has no routed experts"):
        adapted(make("llama"), form)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "lora_experts needs a lora_rank"),
        ({"lora_rank": 2, "lora_init": "pissa"}, "lora_experts shared does not go with lora_init pissa"),
        ({"lora_rank": 2, "lora_matrix": True}, "lora_experts shared does not go with lora_matrix"),
        ({"lora_rank": 2, "compile": True}, "lora_experts shared does not go with compile"),
    ],
)
def test_what_does_not_go_together(settings, words):
    with pytest.raises(SettingsError, match=words):
        Train.parse(settings | {"lora_experts": "shared"}, where="recipe")


def test_names_of_tensors_say_which_factor_is_shared():
    assert expert_parameters(make("olmoe", num_hidden_layers=1)) == {
        "model.layers.0.mlp.experts.gate_up_proj": False,
        "model.layers.0.mlp.experts.down_proj": True,
    }
