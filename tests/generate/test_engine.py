"""Requests that share forward passes have the texts that each has alone."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.generate import Engine, batch, generate
from burnish.generate.batch import _wide
from burnish.generate.cache import RoomyLayer
from burnish.generate.speech import Speech
from small_models import make

PROMPTS = ["The licence", "A", "You may reproduce and distribute copies of the Work", "or", "each Contributor"]


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Iterator[Engine]:
    one = Engine(model, tokenizer, rows=6)
    yield one
    one.close()


class Heard:
    """Pieces of a drawing."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def texts(self, n: int) -> list[str]:
        found, running = [""] * n, n
        while running:
            piece = self.next()
            found[piece.place] += piece.text
            running -= bool(piece.finish)
        return found

    def next(self) -> Any:
        piece = self.pieces.get(timeout=60)
        if isinstance(piece, Exception):
            raise piece
        return piece


def ask(engine: Engine, prompt: str, **how: Any) -> tuple[Heard, Any]:
    heard = Heard()
    return heard, engine.draw(engine.encode(prompt), heard.pieces.put, **{"max_new_tokens": 16, **how})


@pytest.mark.parametrize("gradual", [False, True])
def test_who_joins_a_running_batch_has_the_text_of_one_who_is_alone(
    engine: Engine, model: Any, tokenizer: Any, gradual: bool
):
    wanted: list[dict[str, Any]] = [
        {"n": 1 + i % 3, "seed": i, "temperature": 0.5 * i, "top_p": 1 - 0.1 * i, "max_new_tokens": 8 + 9 * i}
        for i in range(5)
    ]
    long = ask(engine, PROMPTS[0], seed=99, max_new_tokens=60, gradual=True)[0]
    first = [long.next() for _ in range(3)]  # it is under way when the others come, and longer than they
    heard = [ask(engine, prompt, gradual=gradual, **how)[0] for prompt, how in zip(PROMPTS, wanted, strict=True)]
    for prompt, how, one in zip(PROMPTS, wanted, heard, strict=True):
        options: dict[str, Any] = how | {"seed": [how["seed"]]}
        alone = generate(model, tokenizer, [prompt], **options)
        assert one.texts(how["n"]) == [sample.text for sample in alone]
    (whole,) = generate(model, tokenizer, [PROMPTS[0]], max_new_tokens=60, seed=[99])
    assert "".join(piece.text for piece in first) + long.texts(1)[0] == whole.text


def test_rows_join_where_layers_see_a_window_only(tokenizer: Any):
    model = make("mistral", initializer_range=0.4, sliding_window=8).double()
    engine = Engine(model, tokenizer)
    long = ask(engine, PROMPTS[2], seed=1, max_new_tokens=60, gradual=True)[0]
    first = [long.next() for _ in range(20)]
    other = ask(engine, PROMPTS[4], seed=2, max_new_tokens=30)[0]
    (alone,) = generate(model, tokenizer, [PROMPTS[4]], max_new_tokens=30, seed=[2])
    assert other.texts(1) == [alone.text]
    (whole,) = generate(model, tokenizer, [PROMPTS[2]], max_new_tokens=60, seed=[1])
    assert "".join(piece.text for piece in first) + long.texts(1)[0] == whole.text
    engine.close()


def test_noted_logprobs_are_the_models_own(engine: Engine, model: Any):
    heard, _ = ask(engine, PROMPTS[0], temperature=0.3, top_p=0.5, seed=3, num_tops=2)
    piece = heard.next()
    ids = engine.encode(PROMPTS[0])
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids + piece.tokens])).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(piece.tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([one.logprob for one in piece.noted]), own, atol=1e-5, rtol=0)
    tops = logprobs.topk(2).values
    torch.testing.assert_close(
        torch.tensor([[value for _, value in one.tops] for one in piece.noted]), tops, atol=1e-5, rtol=0
    )


def test_a_given_text_is_scored_as_by_one_forward_pass(engine: Engine, model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "SCORED_AT_A_TIME", 5)
    heard, _ = ask(engine, PROMPTS[2], max_new_tokens=1, num_given=3)
    ids, given = engine.encode(PROMPTS[2]), heard.next().given
    assert len(ids) > 11  # three pieces
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])
    assert [one.token for one in given] == ids[1:]
    assert [one.rank for one in given] == (1 + (logprobs > own).sum(-1)).tolist()
    torch.testing.assert_close(torch.tensor([one.logprob for one in given]), own[:, 0], atol=1e-5, rtol=0)
    tops = torch.tensor([[value for _, value in one.tops] for one in given])
    torch.testing.assert_close(tops, logprobs.topk(3).values, atol=1e-5, rtol=0)
    assert ask(engine, PROMPTS[2], max_new_tokens=1)[0].next().given == ()


def test_who_cancels_frees_the_place_of_one_who_waits(engine: Engine):
    first, drawing = ask(engine, PROMPTS[1], n=6, max_new_tokens=200, gradual=True, stop=["\x00"])
    second, _ = ask(engine, PROMPTS[3], max_new_tokens=3, temperature=0)
    first.next()
    drawing.cancel()
    assert len(second.texts(1)) == 1


def test_a_fault_is_told_to_all_who_wait_and_the_next_is_served(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def broken(**_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._batch, "model", broken)
    with pytest.raises(AttributeError):  # `broken` has no device
        ask(engine, PROMPTS[1])[0].next()
    monkeypatch.undo()
    assert len(ask(engine, PROMPTS[1])[0].texts(1)) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"max_new_tokens": 0}, "max_tokens: is 0"),
        ({"max_new_tokens": 1000}, "passes the maximum context of 256"),
        ({"temperature": -1.0}, "temperature: is -1"),
        ({"stop": [""]}, "stop: is no list"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_joins(engine: Engine, how: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        ask(engine, PROMPTS[0], **how)


def test_speech_takes_nothing_back():
    letters = "an <end> é 🙂 <stop>".encode()
    tokens = list(letters)

    def decode(some: list[int]) -> str:
        return bytes(some).decode(errors="replace")

    speech = Speech(decode, ["<stop>"])
    told = [speech.add([token]) for token in tokens]
    assert "".join(told) == "an <end> é 🙂 "
    assert not any("\ufffd" in text for text in told)
    unstopped = Speech(decode, ["<stop>"])
    assert "".join(unstopped.add([token], last=token == tokens[6]) for token in tokens[:7]) == "an <end"


def test_rows_that_come_and_leave_in_any_order_keep_their_own_keys_and_values():
    """A layer with room beside one that joins everything anew: whatever happens, both hold the same."""
    draw = torch.Generator().manual_seed(0)

    def states(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = torch.randn(2, rows, 2, columns, 3, generator=draw)
        return keys, values[..., :2]  # of another depth, as some models have

    chance = random.Random(0)
    layer = RoomyLayer()
    keys, values = states(3, 5)
    layer.update(keys, values)
    for turn in range(200):
        what = chance.choice(["token", "token", "leave", "join", "repeat"])
        if what == "token":
            new = states(len(keys), chance.choice([1, 1, 1, 40]))
            layer.update(*new)
            keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        elif what == "leave" and len(keys) > 2:
            staying = torch.tensor(chance.sample(range(len(keys)), chance.randint(2, len(keys))))
            layer.batch_select_indices(staying)
            keys, values = keys[staying], values[staying]
        elif what == "repeat" and len(keys) < 8:
            layer.batch_repeat_interleave(2)
            keys, values = keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0)
        elif what == "join" and len(keys) < 30:
            other, blank = RoomyLayer(), chance.randint(0, keys.shape[2] // 2)
            new = states(chance.randint(1, 9), chance.randint(1, 60))
            other.update(*new)
            layer.add_rows(other, blank=blank)
            width = max(keys.shape[2] - blank, new[0].shape[2])
            keys, values = (
                torch.cat([_wide(old[:, :, blank:], width), _wide(more, width)])
                for old, more in zip((keys, values), new, strict=True)
            )
        assert layer.keys is not None and layer.values is not None
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values), (turn, what)
