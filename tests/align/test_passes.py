"""Rows packed into lines: full ones, that keep rows apart, with the loss and the gradient of rows side by side."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.align.maths.balance import FULL, cost, cut, lines, pieces_by_tokens, tokens
from burnish.align.passes import IGNORED, PackedPass, SharedPass, check_packing
from burnish.core.errors import SettingsError
from small_models import small_config

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@given(lengths=LENGTHS)
def test_lines_hold_every_row_once_and_are_full(lengths: list[int]) -> None:
    found = lines(lengths)
    assert sorted(row for line in found for row in line) == list(range(len(lengths)))
    assert all(found)
    longest = max(tokens(lengths, line) for line in found)
    assert sum(lengths) >= FULL * len(found) * longest
    assert len(found) == 1 or longest < sum(lengths)


def test_rows_of_one_length_need_no_line_together() -> None:
    assert sorted(lines([7] * 12)) == [[row] for row in range(12)]


@given(lengths=LENGTHS, data=st.data())
def test_pieces_by_tokens_differ_by_a_row_at_most(lengths: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(lengths)))
    found = pieces_by_tokens(lengths, number)
    assert sorted(row for piece in found for row in piece) == list(range(len(lengths))) and all(found)
    loads = [tokens(lengths, piece) for piece in found]
    assert max(loads) - min(loads) <= max(lengths)


def test_packed_passes_are_full_and_alike_where_those_by_length_are_not() -> None:
    draw = random.Random(0)
    for _ in range(20):
        lengths = [round(draw.lognormvariate(4.0, 0.6)) + 1 for _ in range(96)]
        dealt = cut(lengths, 2, 4, packing=True)
        loads = [tokens(lengths, [row for piece in one for row in piece]) for one in dealt]
        assert max(loads) / (sum(loads) / 2) < 1.01
        places = 0
        for piece in (piece for one in dealt for piece in one):
            own = [lengths[row] for row in piece]
            filled = lines(own)
            places += len(filled) * max(tokens(own, line) for line in filled)
        by_length = sum(cost(lengths, piece) for one in cut(lengths, 2, 4) for piece in one)
        assert sum(lengths) / places >= FULL > sum(lengths) / by_length


def part_of(prompts: list[int], answers: list[int]) -> tuple[dict[str, torch.Tensor], int]:
    """Rows with prompts and completions of these lengths."""
    draw = torch.Generator().manual_seed(0)
    before, after = max(prompts), max(max(answers), 1)
    rows = len(prompts)
    masks = torch.zeros(rows, before, dtype=torch.long), torch.zeros(rows, after, dtype=torch.long)
    for row, (one, other) in enumerate(zip(prompts, answers, strict=True)):
        masks[0][row, before - one :], masks[1][row, :other] = 1, 1
    part = {"prompt_mask": masks[0], "completion_mask": masks[1]}
    part["prompt_ids"] = torch.randint(4, 60, masks[0].shape, generator=draw) * masks[0]
    for row in range(1, rows):  # as the answers to one problem
        if prompts[row] == prompts[row - 1]:
            part["prompt_ids"][row] = part["prompt_ids"][row - 1]
    part["completion_ids"] = torch.randint(4, 60, masks[1].shape, generator=draw) * masks[1]
    return part, after


@given(rows=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=9), extra=st.integers(0, 2))
def test_every_token_has_the_place_of_the_token_before_it(rows: list[tuple[int, int]], extra: int) -> None:
    part, width = part_of([one for one, _ in rows], [other for _, other in rows])
    packed = PackedPass(part, width + extra, pad=1)
    labels = packed.by_row(packed.labels.float())
    wanted = torch.nn.functional.pad((part["completion_ids"] * part["completion_mask"]).float(), (0, extra))
    assert torch.equal(labels, wanted)
    assert int((packed.labels != IGNORED).sum()) == int(part["completion_mask"].sum())
    begins = (packed.position_ids == 0).sum()
    padded = packed.input_ids.numel() - int(part["prompt_mask"].sum() + part["completion_mask"].sum())
    assert len(rows) <= int(begins) <= len(rows) + (len(packed.input_ids) if padded else 0)
    positions = packed.by_row(packed.position_ids.float())
    for row, (before, after) in enumerate(rows):
        assert positions[row, :after].tolist() == [before - 1 + place for place in range(after)]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(small_config(vocab_size=64)).double().train()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [PackedPass, SharedPass])
def test_packed_rows_have_the_probabilities_and_gradients_of_rows_alone(model: Any, kind: Any, attention: str) -> None:
    prompts, answers = [3, 3, 3, 2, 4, 4], [9, 1, 5, 0, 14, 2]
    part, width = part_of(prompts, answers)
    part["completion_ids"][2, :2] = part["completion_ids"][0, :2]  # one begins as another
    packed = kind(part, width, 1)
    assert len(packed.input_ids) < len(prompts)
    tokens_of_rows = sum(prompts) + sum(answers)
    assert (int((packed.input_ids != 1).sum()) < tokens_of_rows) == (kind is SharedPass)
    gain = torch.randn(part["completion_ids"].shape, generator=torch.Generator().manual_seed(1)).double()
    found = []
    model.set_attn_implementation(attention)
    logits = model(**packed.model_inputs(attention), use_cache=False).logits
    chosen = logits.log_softmax(-1).gather(-1, packed.labels.clamp(min=0)[..., None])[..., 0]
    rows = [packed.by_row(chosen)]
    alone = torch.zeros_like(gain)
    for row, (before, after) in enumerate(zip(prompts, answers, strict=True)):
        ids = torch.cat([part["prompt_ids"][row, -before:], part["completion_ids"][row, :after]])[None]
        logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, before - 1 : -1]
        alone[row, :after] = logps.gather(-1, ids[0, before:, None])[:, 0]
    rows.append(alone)
    for one in rows:
        model.zero_grad()
        (one * gain).sum().backward(retain_graph=True)
        found.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    rounding = 1e-10 if attention == "sdpa" else 1e-6  # eager works its softmax out in float32
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=rounding)
    # norms work in float32: a gradient that rows share is rounded once, and of rows alone once each
    summed = 1e-6 if kind is SharedPass else 10 * rounding
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=summed)


def test_a_model_that_keeps_rows_apart_is_let_through_and_another_refused(model: Any) -> None:
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        for kind in (PackedPass, SharedPass):
            check_packing(model, kind)
    assert model.training

    class Looking(torch.nn.Module):
        """Adds what stands before, whatever positions say."""

        def __init__(self) -> None:
            super().__init__()
            self.config, self.inside = model.config, model

        def get_input_embeddings(self) -> Any:
            return self.inside.get_input_embeddings()

        def forward(self, **given: Any) -> Any:
            found = self.inside(**given)
            found.logits = found.logits + found.logits.cumsum(1) / 10
            return found

    for kind in (PackedPass, SharedPass):
        with pytest.raises(SettingsError, match="Looking does not keep rows apart"):
            check_packing(Looking(), kind)


def test_windows_are_refused_where_a_mask_says_what_is_seen() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=64, num_key_value_heads=2, sliding_window=4, **size)
    module = MistralForCausalLM(config)
    check_packing(module)
    with pytest.raises(SettingsError, match="see a window"):
        check_packing(module, SharedPass)


@given(rows=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=9))
def test_a_shared_place_predicts_the_token_of_every_row_that_shares_it(rows: list[tuple[int, int]]) -> None:
    part, width = part_of([one for one, _ in rows], [other for _, other in rows])
    part["completion_ids"] %= 3  # so that answers begin alike
    packed, plain = SharedPass(part, width, pad=1), PackedPass(part, width, pad=1)
    assert torch.equal(packed.by_row(packed.labels.double()), plain.by_row(plain.labels.double()))
    assert torch.equal(packed.by_row(packed.position_ids.double()), plain.by_row(plain.position_ids.double()))
    assert bool((packed.seen == packed.seen.tril()).all())  # nobody sees what comes later
