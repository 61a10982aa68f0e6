"""Rows with kinds and weights of tokens: kept through packing, counted in the loss, told by kind in the loss table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.arch import head_of
from burnish.core.checkpoint import tokenizer_digest
from burnish.core.errors import DataError, SettingsError
from burnish.data.forms import Marked, as_row
from burnish.data.packing import IGNORED, PackedRows, documents, pack
from burnish.data.trajectories.kinds import KIND_NAMES
from burnish.train.focal import Focal
from burnish.train.losses import COUNT, STEP, HeadLoss, LossFn, causal_lm_loss, means, model_inputs
from made_episodes import made, write
from small_models import small_llama, small_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name + (c.function.arguments | tojson) + '}' }}{% endfor %}"
    "{{ '<|endoftext|>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TOKENIZER = small_tokenizer()


def row(length: int, seed: int, **columns: list[Any]) -> dict[str, Any]:
    """Two turns, one in the middle and one at the end."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, 300, length)
    turn = np.where(np.arange(length) < length // 3, -1, np.where(np.arange(length) < 2 * length // 3, 0, -1))
    turn[-3:] = 1
    kind = np.where(turn >= 0, draw.integers(1, 6, length), 0)
    made = {"input_ids": ids, "labels": np.where(turn >= 0, ids, IGNORED), "kind": kind, "turn": turn}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    return {"messages": messages} | {name: part.tolist() for name, part in made.items()} | columns


def rows_of(*rows: Any, length: int = 24, directory: Path | None = None) -> PackedRows:
    found = [one if isinstance(one, str) else as_row(one, where="row") for one in rows]
    return pack(documents(TOKENIZER, found), length, directory=directory)


def weighted(length: int, seed: int) -> dict[str, Any]:
    weights = np.random.default_rng(seed).random(length).round(3)
    return row(length, seed, weights=weights.tolist())


def losses(kind: str) -> tuple[Any, LossFn]:
    model = small_llama().double().eval()
    if kind == "logits":
        return model, causal_lm_loss
    head = head_of(model)
    assert head is not None
    return model, HeadLoss(head)


@pytest.mark.parametrize("kind", ["logits", "head"])
def test_the_loss_is_the_weighted_mean_and_kinds_are_means_of_their_tokens(kind: str):
    model, loss_fn = losses(kind)
    batch = rows_of(weighted(20, 1), weighted(9, 2), weighted(13, 3)).take([0, 1])
    loss = loss_fn(model, batch)
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    each = torch.log_softmax(logits, -1).gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0].neg()
    counts = batch["targets"] != IGNORED
    # cross-entropies are summed in float32 where the logits are whole
    torch.testing.assert_close(loss.total.double(), (each * batch["weights"] * counts).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.weight.double(), (batch["weights"] * counts).sum().double(), rtol=1e-6, atol=0)
    found = means(
        float(loss.total.detach()), float(loss.weight), {name: float(value) for name, value in loss.metrics.items()}
    )
    for number, name in KIND_NAMES.items():
        here = each[counts & (batch["kinds"] == number)]
        assert found[f"loss_{name}"] == pytest.approx(float(here.mean()), rel=1e-6)
    opening = counts & (batch["opens"] == 1)
    assert int(opening.sum()) == 6  # two turns of three episodes
    assert found["loss_first_token"] == pytest.approx(float(each[opening].mean()), rel=1e-6)


def test_weights_have_the_same_gradient_with_and_without_whole_logits():
    batch = rows_of(weighted(20, 1)).take([0])
    gradients = []
    for kind in ("logits", "head"):
        model, loss_fn = losses(kind)
        loss_fn(model, batch).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)  # one is made in float32


@pytest.mark.parametrize("kind", ["logits", "head"])
def test_weights_of_one_give_the_loss_without_marks(kind: str):
    model, loss_fn = losses(kind)
    marked = rows_of(row(20, 1, weights=[1.0] * 20), row(9, 2)).take([0, 1])
    plain = {name: part for name, part in marked.items() if name not in ("kinds", "opens", "weights")}
    with_marks, without = loss_fn(model, marked), loss_fn(model, plain)
    assert float(with_marks.weight) == float(without.weight)
    assert float(with_marks.total.detach()) == pytest.approx(float(without.total.detach()), rel=1e-6)


@pytest.mark.parametrize("kind", ["logits", "head"])
def test_tokens_to_unlearn_count_by_their_unlikelihood_and_are_a_kind_of_their_own(kind: str):
    model, loss_fn = losses(kind)
    failed = row(15, 4, weights=[-0.1] * 15)
    batch = rows_of(weighted(20, 1), failed).take([0, 1])
    loss = loss_fn(model, batch)
    with torch.no_grad():
        log_p = torch.log_softmax(model(**model_inputs(batch)).logits, -1)
    p = log_p.gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0].exp()
    counts, weights = batch["targets"] != IGNORED, batch["weights"]
    wanted = torch.where(weights < 0, weights * (1 - p).log(), -weights * p.log())
    torch.testing.assert_close(loss.total.double(), wanted[counts].sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.weight.double(), weights[counts].abs().sum().double(), rtol=1e-6, atol=0)
    found = means(1.0, 1.0, {name: float(value) for name, value in loss.metrics.items()})
    unlearned = counts & (weights < 0)
    assert found["loss_unlearned"] == pytest.approx(float(-p[unlearned].log().mean()), rel=1e-6)
    of_kinds = sum(float(loss.metrics[f"loss_{name}{COUNT}"]) for name in KIND_NAMES.values())
    assert of_kinds == int((counts & (weights >= 0)).sum())


def focused(**settings: Any) -> tuple[Any, Focal]:
    model, plain = losses("head")
    assert isinstance(plain, HeadLoss)
    return model.train(), Focal(plain, **settings)


def test_focal_weights_are_the_formula_in_value_and_gradient():
    """sum w (1-p)^g ce / sum w (1-p)^g with weights that get no gradient, written out on all logits."""
    model, loss_fn = focused(focal=2.0)
    batch = rows_of(weighted(20, 1), row(15, 4, weights=[-0.1] * 15)).take([0, 1]) | {STEP: torch.tensor(0)}
    loss = loss_fn(model, batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss.total / loss.weight, parameters)
    counts, weights = batch["targets"] != IGNORED, batch["weights"].double()
    log_p = torch.log_softmax(model(**model_inputs(batch)).logits, -1)
    log_p = log_p.gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0]
    p = log_p.exp()
    factors = torch.where(weights < 0, torch.ones_like(p), (1 - p.detach()) ** 2)
    each = torch.where(weights < 0, -(1 - p).log(), -log_p)
    total, weight = ((weights.abs() * factors * part)[counts].sum() for part in (each, torch.ones_like(p)))
    torch.testing.assert_close((loss.total / loss.weight).double(), total / weight, rtol=1e-6, atol=0)
    for mine, theirs in zip(ours, torch.autograd.grad(total / weight, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
    learned = counts & (weights >= 0)
    share = (factors * weights)[learned].sum() / weights[learned].sum()
    found = means(1.0, 1.0, {name: float(value) for name, value in loss.metrics.items()})
    assert found["share_counted"] == pytest.approx(float(share), rel=1e-6)
    plain = (-log_p.detach() * weights)[learned].sum() / weights[learned].sum()
    assert found["unweighted"] == pytest.approx(float(plain), rel=1e-6)


def test_drop_top_leaves_out_what_is_likely_from_the_second_pass_on_and_never_on_held_out_rows():
    model, plain = losses("head")
    model.train()
    batch = rows_of(row(20, 1), row(9, 2)).take([0])
    counts = batch["targets"] != IGNORED
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    log_p = torch.log_softmax(logits, -1).gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0]
    likely = log_p[counts].exp().sort().values
    cut = float(likely[6] + likely[7]) / 2
    assert isinstance(plain, HeadLoss)
    loss_fn, wanted = Focal(plain, drop_top=cut, first_pass=3), plain(model, batch)
    for step in (0, 2):
        same = loss_fn(model, batch | {STEP: torch.tensor(step)})
        torch.testing.assert_close(same.total, wanted.total, rtol=1e-12, atol=0)
    later = loss_fn(model, batch | {STEP: torch.tensor(3)})
    torch.testing.assert_close(later.total.double(), -log_p[counts & (log_p.exp() <= cut)].sum(), rtol=1e-6, atol=0)
    assert float(later.weight) == 7
    held_out = loss_fn(model.eval(), batch)  # no step is known there
    torch.testing.assert_close(held_out.total, wanted.total, rtol=0, atol=0)


def test_without_exponent_and_cut_the_loss_is_the_plain_one():
    model, loss_fn = focused()
    batch = rows_of("a text without marks, and long enough").take([0])
    found, plain = loss_fn(model, batch | {STEP: torch.tensor(0)}), loss_fn.plain(model, batch)
    torch.testing.assert_close(found.total, plain.total, rtol=1e-12, atol=0)
    assert float(found.weight) == float(plain.weight)


def test_a_kind_without_tokens_has_no_loss():
    assert means(6.0, 3.0, {"a": 4.0, "a" + COUNT: 2.0, "b": 0.0, "b" + COUNT: 0.0, "c": 1.5}) == {
        "loss": 2.0,
        "a": 2.0,
        "c": 0.5,
    }


def test_marks_go_with_their_tokens_through_packing_and_disk(tmp_path: Path):
    parts = ["the first has no marks", weighted(30, 1), weighted(9, 2), "nor has the last"]
    memory = rows_of(*parts)
    rows_of(*parts, directory=tmp_path)
    mapped = PackedRows.mapped(tmp_path)
    assert mapped.hash == memory.hash
    assert mapped.weights is not None
    for rows in (memory, mapped, PackedRows.mapped(tmp_path).spread(None)):
        seen: dict[int, list[float]] = {}
        for one in range(len(rows)):
            batch = rows.take([one])
            for kind, weight, target in zip(
                *(batch[n][0].tolist() for n in ("kinds", "weights", "targets")), strict=True
            ):
                if target != IGNORED:
                    seen.setdefault(kind, []).append(weight)
        for kind in range(1, 6):
            wanted = [
                w for p in (parts[1], parts[2]) for k, w in zip(p["kind"], p["weights"], strict=True) if k == kind
            ]
            assert sorted(seen.get(kind, [])) == pytest.approx(sorted(wanted))
        assert set(seen[0]) == {1.0}
    assert rows_of("no marks", "at all").weights is None


def test_weights_are_part_of_what_names_the_rows():
    assert rows_of(row(20, 1)).hash != rows_of(row(20, 1, weights=[0.5] * 20)).hash
    assert not rows_of(row(20, 1)).is_weighted
    assert rows_of(row(20, 1, weights=[0.5] * 20)).is_weighted


def test_rows_of_another_tokenizer_are_refused():
    one = as_row(row(12, 1) | {"tokenizer": "0" * 64}, where="rows.jsonl:1")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: has token ids of another tokenizer"):
        list(documents(TOKENIZER, [one]))
    fits = as_row(row(12, 1) | {"tokenizer": tokenizer_digest(TOKENIZER, chats=False)}, where="rows.jsonl:1")
    assert isinstance(fits, Marked)
    assert next(documents(TOKENIZER, [fits])).supervised.sum() == 7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, "has input_ids without labels"),
        ({"kind": [0]}, "has 1 numbers in kind, but 12 tokens"),
        ({"weights": [-1.0] * 12}, "has weights that are no numbers from -0.1 on"),
        ({"turn": ["0"] * 12}, "has turn that is no list of numbers"),
    ],
)
def test_wrong_marks(change: dict[str, Any], sentence: str):
    with pytest.raises(DataError, match=sentence):
        as_row(row(12, 1) | change, where="row")


def trained(model: burnish.Model, data: str, directory: Path, **settings: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"context": 128, "batch": 4, "steps": 2, "save_every": 0} | settings
    burnish.Train(**options)(model, data=data, work_dir=directory)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_episodes_become_rows_and_rows_a_model_with_a_loss_for_each_kind(tiny_llama: Path, tmp_path: Path):
    model = burnish.load(tiny_llama)
    model.tokenizer.chat_template = TEMPLATE
    episodes = str(write(tmp_path / "episodes.jsonl", [made(f"e{n}", turns=2) for n in range(6)]))
    stage = burnish.CurateTrajectories(weights={"reasoning": 0.25})
    data = stage(model, episodes=episodes, work_dir=tmp_path / "work")
    rows = str(data.save(tmp_path / "rows"))
    about = json.loads((tmp_path / "rows" / "about.json").read_text())
    assert about["funnel"][-1] == {"filter": "masks", "dropped": 0, "left": 6, "sample": []}
    assert min(about["trained_tokens"][name] for name in ("reasoning", "action", "arguments", "final")) > 0
    logged = trained(model, rows, tmp_path / "whole", context=256, holdout=0.5)
    names = {f"loss_{name}" for name in ("reasoning", "action", "arguments", "final", "first_token")}
    assert names <= logged[-1].keys()
    assert {f"validation_{name}" for name in names} <= logged[-1].keys()
    assert "loss_edit" not in logged[-1]  # no such token
    parts = trained(model, rows, tmp_path / "parts", context=256, holdout=0.5, micro_batch=1)
    for name in ("loss", *names):  # the order of sums
        assert parts[0][name] == pytest.approx(logged[0][name], rel=1e-5)
    distill = burnish.Distill(context=256, batch=2, steps=1, hidden=1.0, hidden_layers=[1], save_every=0)
    distill(model, data=rows, teacher=burnish.load(tiny_llama), work_dir=tmp_path / "distill")
    (taught,) = [json.loads(line) for line in (tmp_path / "distill" / "metrics.jsonl").read_text().splitlines()]
    assert names | {"divergence", "cross_entropy"} <= taught.keys()
    sampling = burnish.Distill(context=256, batch=2, steps=1, on_policy=1.0)
    with pytest.raises(DataError, match="has rows with weights of tokens, which this loss of distill does not know"):
        sampling(model, data=rows, teacher=burnish.load(tiny_llama), work_dir=tmp_path / "sampling")


def test_an_objective_by_prediction_is_the_same_however_a_step_is_cut_up(tiny_llama: Path, tmp_path: Path):
    """Two passes over four rows; from the second on drop_top leaves less."""
    model = burnish.load(tiny_llama)
    data = write(tmp_path / "rows.jsonl", [row(20, seed) for seed in range(4)])
    settings: dict[str, Any] = {"context": 24, "steps": 2, "lr": 1e-3, "objective": "focal=1,drop_top=0.0026"}
    whole, parts = (trained(model, str(data), tmp_path / f"{n}", micro_batch=n, **settings) for n in (4, 1))
    for one, other in zip(whole, parts, strict=True):
        for name in ("loss", "unweighted", "share_counted", "loss_final"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)
    assert whole[1]["share_counted"] < whole[0]["share_counted"]


def test_drop_top_is_refused_where_training_ends_with_the_first_pass(tiny_llama: Path, tmp_path: Path):
    data = str(write(tmp_path / "rows.jsonl", [row(20, seed) for seed in range(4)]))
    for length in ({}, {"steps": 2}):
        once = burnish.Train(context=24, batch=2, objective="focal=1,drop_top=0.99", **length)
        with pytest.raises(SettingsError, match="the first takes all 2 steps of this training"):
            once(burnish.load(tiny_llama), data=data)


def test_failed_episodes_are_unlearned_by_training_and_refused_by_other_losses(tiny_llama: Path, tmp_path: Path):
    model = burnish.load(tiny_llama)
    model.tokenizer.chat_template = TEMPLATE
    wrong = frozenset({"verified"})
    rows = [made(f"e{n}", wrong if n % 2 else frozenset(), turns=2) for n in range(4)]
    stage = burnish.CurateTrajectories(failed=0.05)
    made_rows = stage(model, episodes=str(write(tmp_path / "episodes.jsonl", rows)), work_dir=tmp_path / "work")
    data = str(made_rows.save(tmp_path / "rows"))
    right, failed = (json.loads(line) for line in (tmp_path / "rows" / "rows.jsonl").read_text().splitlines()[:2])
    assert "weights" not in right and max(right["turn"]) == 2
    marks = set(zip(failed["turn"], failed["weights"], (label != IGNORED for label in failed["labels"]), strict=True))
    assert marks == {(-1, 0.0, False), (2, -0.05, True)}
    about = json.loads((tmp_path / "rows" / "about.json").read_text())
    assert about["failed_kept"] == 2 and about["trained_tokens"]["unlearned"] > 0
    logged = trained(model, data, tmp_path / "trained", context=256, steps=12, lr=3e-3)
    assert logged[-1]["loss_unlearned"] > logged[-1]["loss_final"]  # the same words at the end of right and wrong ones
    with pytest.raises(DataError, match="has tokens to unlearn, whose weights are below 0, and this loss of distill"):
        burnish.Distill(context=256, batch=2, steps=1)(model, data=data, teacher=burnish.load(tiny_llama))
    with pytest.raises(DataError, match="and objective view=skip,max_skip=8 does not know how"):
        burnish.Train(context=240, batch=2, steps=1, objective="view=skip,max_skip=8")(model, data=data)
