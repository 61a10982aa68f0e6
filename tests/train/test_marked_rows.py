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
from burnish.core.errors import DataError
from burnish.data.forms import Marked, as_row
from burnish.data.packing import IGNORED, PackedRows, documents, pack
from burnish.data.trajectories.kinds import KIND_NAMES
from burnish.train.losses import COUNT, HeadLoss, LossFn, causal_lm_loss, means, model_inputs
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
        ({"weights": [-1.0] * 12}, "has weights that are no numbers from 0 on"),
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
