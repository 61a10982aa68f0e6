"""Steering of an engine, on CPUs and in the buffers of a GPU: which tokens are flagged in whatever pieces they come,
and what is counted."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.checkpoint import Lineage
from burnish.core.errors import EngineError, SettingsError
from burnish.steer.maths.intervene import steered
from burnish.steer.maths.steps import steps_in
from burnish.steer.vllm.asked import SteeringRequest, VectorSet, asked, read_sets
from burnish.steer.vllm.buffers import SteeringBuffers
from burnish.steer.vllm.host import HostSteering
from made_vectors import MARKS, some_vectors
from small_models import make

VOCAB, HIDDEN = 384, 64
FEW = dataclasses.replace(MARKS, separator_ids=(0, 3), blank_ids=(0, 4), think_end_ids=(5,))
"""Of tokens below 6 a third separates, one of these and another are blank, and one in six ends the thinking."""


@cache
def sets(*names: str) -> tuple[VectorSet, ...]:
    module = make("llama")
    vectors = [some_vectors(module, seed, marks=FEW) for seed in range(len(names))]
    return tuple(VectorSet(name, one, "threshold") for name, one in zip(names, vectors, strict=True))


Held = SteeringBuffers | HostSteering
BOTH = pytest.mark.parametrize("place", ["buffers", "host"])


def held_in(place: str, *names: str) -> Held:
    return HostSteering(sets(*names)) if place == "host" else buffers(*names)


def buffers(*names: str, num_requests: int = 4) -> SteeringBuffers:
    device = torch.device("cpu")
    return SteeringBuffers(sets(*names), num_requests=num_requests, num_tokens=64, vocab_size=VOCAB, device=device)


def read(held: Held, request: str, tokens: list[int], first: int) -> list[bool]:
    """Which of these tokens, from a position on, a pass over them alone turns in its two layers."""
    positions = torch.arange(first, first + len(tokens))
    held.fill(torch.tensor(tokens, dtype=torch.int32), positions, [request], [len(tokens)])
    moved = torch.zeros(len(tokens), dtype=torch.bool)
    for layer in held.layers:
        x = torch.randn(len(tokens) + 2, HIDDEN)  # padded
        before = x.clone()
        held.apply(layer, x)
        assert torch.equal(x[len(tokens) :], before[len(tokens) :])
        moved |= (x != before).any(1)[: len(tokens)]
    assert held.turns or not moved.any()
    return moved.tolist()


def flagged(held: Held, num: int) -> list[bool]:
    """Which of the first tokens of the pass that was filled are flagged by the first set."""
    if isinstance(held, SteeringBuffers):
        return held._flags[0, :num].tolist()
    places = {place for some in held._flagged for place in some.places.tolist()}
    return [place in places for place in range(num)]


@BOTH
@given(
    tokens=st.lists(st.integers(0, 5), min_size=2, max_size=24),
    prompt=st.integers(1, 8),
    cuts=st.lists(st.integers(1, 23)),
)
def test_in_whatever_pieces_a_context_is_read_the_same_tokens_are_flagged(
    place: str, tokens: list[int], prompt: int, cuts: list[int]
):
    held, bounds = held_in(place, "careful"), sorted({0, *(cut for cut in cuts if cut < len(tokens)), len(tokens)})
    held.begin("a", SteeringRequest("careful", -1.0), prompt)
    for start, stop in itertools.pairwise(bounds):
        read(held, "a", tokens[start:stop], start)
    written = tokens[prompt:]
    expected = len(steps_in(written, {0, 3}, {0, 4}, {5}))
    _, counts = held.end("a") or pytest.fail("not steered")
    assert (counts.seen, counts.flagged, counts.visited) == (len(written), expected, 2 * expected)


@BOTH
def test_tokens_that_are_read_again_after_preemption_are_steered_again_and_counted_once(place: str):
    held = held_in(place, "careful")
    held.begin("a", SteeringRequest("careful", -4.0), 2)
    read(held, "a", [0, 1, 3, 1, 5, 3], 0)
    before = dataclasses.replace(held.counts()["a"])
    again = read(held, "a", [0, 1, 3, 1, 5, 3], 0)
    assert held.counts()["a"] == before
    assert before.flagged == 1
    assert not any(again[:2]) and not any(again[3:])


@BOTH
@given(
    tokens=st.lists(st.integers(0, 4), min_size=3, max_size=24),
    prompt=st.integers(1, 8),
    back=st.integers(0, 23),
    data=st.data(),
)
def test_a_context_that_is_read_again_from_any_place_is_flagged_as_before(
    place: str, tokens: list[int], prompt: int, back: int, data: st.DataObject
):
    held = held_in(place, "careful")
    held.begin("a", SteeringRequest("careful", -4.0), prompt)
    read(held, "a", tokens, 0)
    once, back = flagged(held, len(tokens)), min(back, len(tokens) - 1)
    held.go_back("a", tokens[:back])
    cut = data.draw(st.integers(back, len(tokens) - 1))
    again: list[bool] = []
    for start, stop in ((back, cut), (cut, len(tokens))):
        if start < stop:
            read(held, "a", tokens[start:stop], start)
            again += flagged(held, stop - start)
    assert again == once[back:]
    assert [index for index, flag in enumerate(once) if flag] == [
        prompt + end for _, end in steps_in(tokens[prompt:], {0, 3}, {0, 4}, {5})
    ]


@BOTH
def test_each_row_gets_its_own_vectors_and_coefficient_and_neighbours_keep_their_bits(place: str):
    held = held_in(place, "careful", "brief")
    held.begin("a", SteeringRequest("careful", -4.0), 1)
    held.begin("b", SteeringRequest("brief", -1.0), 1)
    held.begin("c", SteeringRequest("brief", -2.0), 1)
    ids, positions = torch.tensor([3, 3, 3, 1, 3]), torch.tensor([0, 1, 7, 7, 7])
    held.fill(ids, positions, ["a", "b", "nobody", "c"], [2, 1, 1, 1])
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    found = x.clone()
    held.apply(1, found)
    for row, number, coef in ((1, 0, -4.0), (2, 1, -1.0), (4, 1, -2.0)):
        heads = held.sets[number].vectors.by_layer()[1]
        expected, _ = steered(
            x[row : row + 1], heads.probes, heads.directions, torch.ones(1, dtype=torch.bool), coef=coef
        )
        assert not torch.equal(expected[0], x[row])  # its gates are open
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-6)
    assert torch.equal(found[0], x[0])  # of the prompt
    assert torch.equal(found[3], x[3])


def test_on_the_host_the_same_is_turned_and_counted_as_with_a_mask_over_all_rows():
    found = []
    for place in ("buffers", "host"):
        held = held_in(place, "careful")
        held.begin("a", SteeringRequest("careful", -4.0), 1)
        torch.manual_seed(1)
        found.append((read(held, "a", [3, 0, 1, 3, 3], 0), held.counts()["a"]))
    assert found[0] == found[1]
    assert found[0][1].moved > 0


@BOTH
def test_a_pass_that_is_a_dummy_turns_nothing(place: str):
    held = held_in(place, "careful")
    held.begin("a", SteeringRequest("careful", -4.0), 1)
    read(held, "a", [3, 3], 5)
    held.clear()
    x = torch.randn(2, HIDDEN)
    before = x.clone()
    held.apply(1, x)
    assert torch.equal(x, before)


@BOTH
def test_a_network_that_runs_past_its_ops_is_an_error(place: str):
    held = held_in(place, "careful")
    held.begin("a", SteeringRequest("careful", -1.0), 1)
    held.fill(torch.tensor([3, 3]), torch.tensor([4, 5]), ["a"], [2])
    held.apply(0, torch.randn(2, HIDDEN))
    with pytest.raises(EngineError, match="met 2 of 4 outputs"):
        held.end("a")


def test_rows_are_given_back():
    held = buffers("careful", num_requests=2)
    for number in range(6):
        held.begin(str(number), SteeringRequest("careful", -1.0), 1)
        if number:
            held.end(str(number - 1))
    held.begin("5", SteeringRequest("careful", -1.0), 1)  # the same name again
    held.begin("6", SteeringRequest("careful", -1.0), 1)
    with pytest.raises(EngineError, match="more than 2 steered requests"):
        held.begin("7", SteeringRequest("careful", -1.0), 1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, "is 3, which is no text"),
        ("carefull:-1", "names the vectors 'carefull', which this server has not loaded; did you mean 'careful'"),
        ("careful:", "the coefficient '', which is no finite number"),
        ("careful:nan", "which is no finite number"),
        ("careful:-1e999", "which is no finite number"),
    ],
)
def test_what_a_request_cannot_have_is_refused_in_a_sentence(value: Any, told: str):
    with pytest.raises(SettingsError, match=told):
        asked({"steer": value}, ["careful"])


def test_a_request_says_name_and_coefficient():
    assert asked({"steer": "careful:-4"}, ["careful"]) == SteeringRequest("careful", -4.0)
    assert asked({"steer": "careful"}, ["careful"]) == SteeringRequest("careful", -1.0)
    assert asked({"tenant": "x"}, ["careful"]) is None
    assert asked(None, []) is None


def test_sets_are_read_from_a_list_or_with_their_settings(tmp_path: Path):
    vectors = some_vectors(make("llama"))
    vectors.save(tmp_path / "v", Lineage(stage="steer"))
    (plain,) = read_sets(f"careful={tmp_path / 'v'}")
    assert (plain.name, plain.mode, len(plain.vectors.heads)) == ("careful", "threshold", 3)
    text = (
        f'{{"a": {{"vectors": "{tmp_path / "v"}", "top": 1}}, "b": {{"vectors": "{tmp_path / "v"}", "mode": "soft"}}}}'
    )
    both = read_sets(text)
    assert [(one.name, one.mode, len(one.vectors.heads)) for one in both] == [("a", "threshold", 8), ("b", "soft", 3)]
    assert len({plain.digest, *(one.digest for one in both)}) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("careful", "has an entry 'careful' that names no directory"),
        ("a b=x", "has an entry 'a b'"),
        ("a=x,a=y", "names a set twice"),
        ("{", "is no JSON"),
        ('{"a": "x"}', "has an entry 'a' that names no directory"),
        ('{"a": {"vectors": "x", "tops": 1}}', "no setting 'tops'"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_in_a_sentence(text: str, told: str):
    with pytest.raises(SettingsError, match=told):
        read_sets(text)
