"""Steering in transformers: which tokens are steered, what is counted, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from burnish.core.errors import CheckpointError, EngineError, SettingsError
from burnish.generate import generate
from burnish.serve.speculate import Lookahead
from burnish.steer import Steering, steer
from burnish.steer.maths.intervene import steered
from burnish.steer.vectors import output_projections
from made_vectors import MARKS, some_vectors
from small_models import make, small_tokenizer

KINDS = ["llama", "gpt2", "qwen3_moe", "gpt_oss", "deepseek_v3"]
"""Grouped queries; fused queries, keys and values stored (in, out); experts; biases; latent attention."""
MANY = dataclasses.replace(MARKS, separator_ids=tuple(range(0, 384, 3)), think_end_ids=())
"""Every third token ends a step, so that a random model writes some."""


def written(module: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    more = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return module.generate(input_ids=ids, attention_mask=mask, **more)[:, ids.shape[1] :]


def prompts(rows: int = 3, length: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(12, 384, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_separators_are_met_in_every_layer_and_outputs_are_those_of_the_mathematics(kind: str):
    module, seen = make(kind), []
    vectors = some_vectors(module, marks=MANY)
    with steer(module, vectors, coef=-4, top=1.0, mode="ungated") as steering:
        layer, view = next(iter(output_projections(module).items()))
        hooks = list(view.owner._forward_hooks.values())
        before = view.owner.register_forward_hook(lambda m, a, out: seen.append(out.clone()), prepend=True)
        after = view.owner.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
        tokens = written(module, prompts())
        before.remove()
        after.remove()
    assert len(hooks) == 1
    decoded = tokens[:, :-1]  # the last one is never read
    flagged = int((decoded % 3 == 0).sum())
    counts, heads = steering.counts, vectors.num_heads
    layers = len(output_projections(module))
    assert counts.seen == decoded.numel()
    assert counts.flagged == flagged > 0
    assert counts.visited == counts.moved == flagged * layers
    assert counts.gated == flagged * heads
    probes, directions, _ = vectors.by_layer()[layer]
    for step, (plain, turned) in enumerate(zip(seen[2::2], seen[3::2], strict=True)):
        flags = decoded[:, step] % 3 == 0
        expected, _ = steered(plain[:, 0], probes, directions, flags, coef=-4.0, mode="ungated")
        assert torch.equal(turned[:, 0], expected)
        assert torch.equal(turned[:, 0][~flags], plain[:, 0][~flags])
    assert torch.equal(seen[0], seen[1])  # the prompt, which has separators too


def test_after_the_block_the_model_is_bit_for_bit_what_it_was():
    module, ids = make("llama"), prompts()
    logits = module(input_ids=ids).logits
    hooks = {name: len(part._forward_hooks) for name, part in module.named_modules()}
    with steer(module, some_vectors(module, marks=MANY), coef=-4, top=1.0):
        written(module, ids)
    assert torch.equal(module(input_ids=ids).logits, logits)
    assert {name: len(part._forward_hooks) for name, part in module.named_modules()} == hooks
    assert not module._forward_pre_hooks


def test_hooks_are_gone_after_an_error():
    module = make("llama")
    with pytest.raises(KeyError), steer(module, some_vectors(module)):
        raise KeyError
    assert not module._forward_pre_hooks


def test_a_coefficient_of_zero_writes_the_same():
    module, ids = make("llama"), prompts()
    with steer(module, some_vectors(module, marks=MANY), coef=0) as steering:
        same = written(module, ids)
    assert torch.equal(same, written(module, ids))
    assert steering.counts.moved == 0 < steering.counts.visited


def test_a_batch_padded_on_the_left_and_a_static_cache_write_what_each_row_writes_alone():
    module, ids = make("llama"), prompts(2)
    vectors = some_vectors(module, marks=MANY)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[0, :3], mask[0, :3] = 0, 0

    def steered_by(tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        with steer(module, vectors, coef=-4, top=1.0, mode="ungated"):
            return written(module, tokens, **options)

    alone = torch.cat([steered_by(ids[:1, 3:]), steered_by(ids[1:])])
    assert torch.equal(steered_by(padded, mask=mask), alone)
    assert torch.equal(steered_by(padded, mask=mask, cache_implementation="static"), alone)
    assert not torch.equal(alone, written(module, padded, mask))


def test_a_row_is_left_alone_after_its_end_of_thinking():
    """Comparison 0 thinks to the end, row 1 has ended its thinking: its separators are not flagged any more."""
    module = make("llama")
    steering = Steering(some_vectors(module), -1.0, "threshold")
    cache = type("Cache", (), {"get_seq_length": lambda self: 4})()
    flags = []
    for first, second in ((20, 7), (7, 11), (9, 7), (20, 9)):
        steering.before_model(module, (), {"input_ids": torch.tensor([[first], [second]]), "past_key_values": cache})
        flags.append(steering._flags.tolist())
    assert flags == [[False, True], [True, False], [True, False], [False, False]]
    assert (steering.counts.seen, steering.counts.flagged) == (8, 3)
    steering.before_model(module, (), {"input_ids": torch.tensor([[9, 9]]), "past_key_values": cache})
    assert steering._flags is None  # a prompt: and the next row starts to think
    steering.before_model(module, (), {"input_ids": torch.tensor([[9]]), "past_key_values": cache})
    assert steering._flags.tolist() == [True]


def test_the_second_of_two_separators_in_a_row_is_not_turned():
    """7 is a line end alone, 9 one behind a full stop, 12 a space; an answer may begin with blanks."""
    module = make("llama")
    marks = dataclasses.replace(MARKS, blank_ids=(7, 12))
    cache = type("Cache", (), {"get_seq_length": lambda self: 4})()
    tokens = [7, 20, 7, 7, 12, 7, 9, 7, 30, 12, 7]
    stepwise, told = (Steering(some_vectors(module, marks=marks), -1.0, "threshold") for _ in range(2))
    for place, token in enumerate(tokens):
        told.before_pass([tokens[: place + 1]])  # as burnish.generate does
        for steering in (stepwise, told):
            steering.before_model(module, (), {"input_ids": torch.tensor([[token]]), "past_key_values": cache})
            expected = any(end == place for _, end in marks.spans(tokens))
            assert steering._flags.tolist() == [expected]
    assert stepwise.counts.flagged == told.counts.flagged == 3


def test_rows_that_leave_a_batch_are_followed_by_burnish_generate():
    module, tokenizer = make("llama"), small_tokenizer()
    marks = dataclasses.replace(MANY, think_end_ids=tuple(range(1, 384, 40)), blank_ids=tuple(range(0, 384, 2)))
    vectors = some_vectors(module, marks=marks)
    asked = prompts(4).tolist()
    limits, draws = [6, 20, 12, 20], [3, 4, 5, 6]

    def drawn(asked: list[list[int]], limits: list[int], draws: list[int]) -> tuple[list[list[int]], Steering]:
        with steer(module, vectors, coef=-4, top=1.0, mode="ungated") as steering:
            samples = generate(module, tokenizer, asked, max_new_tokens=limits, seed=draws, observer=steering)
        return [sample.tokens for sample in samples], steering

    together, counted = drawn(asked, limits, draws)
    alone = [drawn([one], [most], [draw])[0][0] for one, most, draw in zip(asked, limits, draws, strict=True)]
    assert together == alone
    expected = sum(end < len(tokens) - 1 for tokens in together for _, end in marks.spans(tokens))
    assert 0 < counted.counts.flagged == expected < sum(token in marks.separators for row in together for token in row)
    with steer(module, vectors), pytest.raises(SettingsError, match="nobody knows which have ended"):
        generate(module, tokenizer, asked, max_new_tokens=limits, seed=draws)
    with pytest.raises(SettingsError, match="leave speculate out"):
        generate(module, tokenizer, asked, max_new_tokens=2, observer=counted, speculate=Lookahead())


def test_a_network_that_runs_past_the_hooks_is_an_error():
    module = make("llama")
    vectors = some_vectors(module, marks=MANY)
    owner = next(iter(output_projections(module).values())).owner
    plain = owner.__class__.forward
    with pytest.raises(EngineError, match=r"met \d+ of \d+ outputs"), steer(module, vectors, top=1.0):
        module.model.layers[0].self_attn.o_proj.__class__ = type(
            "Compiled", (owner.__class__,), {"__call__": lambda self, x: plain(self, x)}
        )
        written(module, prompts())


@pytest.mark.slow
def test_a_model_that_is_compiled_within_the_block_is_steered_and_one_from_before_is_an_error():
    """Traced for the hooks, with a break at each; a graph from before does not call them, and the counts find it."""
    torch._dynamo.reset()
    module, ids = make("llama"), prompts(2)
    vectors = some_vectors(module, marks=MANY)
    options: dict[str, Any] = {"coef": -4, "top": 1.0, "mode": "ungated"}
    with steer(module, vectors, **options) as eager:
        expected = written(module, ids)
    with steer(module, vectors, **options) as steering:
        module.forward = torch.compile(module.forward, backend="eager")
        assert torch.equal(written(module, ids), expected)
    assert steering.counts == eager.counts
    torch._dynamo.reset()
    before = make("llama")
    before.forward = torch.compile(before.forward, backend="eager")
    written(before, ids)
    with pytest.raises(EngineError, match="met 0 of"), steer(before, vectors, **options):
        written(before, ids)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coef": math.inf}, "coef: is inf"),
        ({"coef": math.nan}, "coef: is nan"),
        ({"top": 0}, "top: is 0"),
        ({"top": -3}, "top: is -3"),
        ({"mode": "hard"}, "mode: is 'hard'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], said: str):
    module = make("llama")
    with pytest.raises(SettingsError, match=said), steer(module, some_vectors(module), **options):
        pass


def test_more_heads_than_there_are_is_all_of_them_and_said():
    module = make("llama")
    warned = pytest.warns(UserWarning, match="top is 512, but there are 8 heads")
    with warned, steer(module, some_vectors(module), top=512) as steering:
        pass
    assert len(steering.vectors.heads) == 8


def test_vectors_of_another_shape_are_refused():
    module = make("llama")
    with (
        pytest.raises(CheckpointError, match="which this model does not have"),
        steer(make("llama", hidden_size=32), some_vectors(module)),
    ):
        pass
