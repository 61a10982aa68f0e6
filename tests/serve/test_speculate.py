"""The trie counts what a plain dictionary counts; drafts are continuations that occurred; memories do not mix."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import SettingsError
from burnish.serve.speculate import Draft, Lookahead, Trie
from burnish.serve.speculate.trie import MANY

PIECES = st.lists(
    st.tuples(
        st.one_of(
            st.lists(st.integers(0, 2), max_size=20),
            st.builds(
                lambda seed, size, kinds: random.Random(seed).choices(range(kinds), k=size),
                st.integers(0, 99),
                st.sampled_from([MANY, 3 * MANY]),
                st.sampled_from([1, 3, 40]),
            ),
        ),
        st.booleans(),
    ),
    max_size=6,
)
"""Texts in parts, short and long ones, each with whether it ends the text."""


def occurrences(texts: Sequence[Sequence[int]], depth: int) -> Counter[tuple[int, ...]]:
    """Of all pieces of up to so many tokens."""
    return Counter(
        tuple(text[at : at + size])
        for text in texts
        for at in range(len(text))
        for size in range(1, depth + 1)
        if at + size <= len(text)
    )


def filled(trie: Trie, pieces: Sequence[tuple[list[int], bool]]) -> list[list[int]]:
    """The texts that the trie was given."""
    texts: list[list[int]] = [[]]
    for tokens, ends in pieces:
        trie.append(tokens)
        texts[-1] += tokens
        if ends:
            trie.close()
            texts.append([])
    return texts


def following(trie: Trie, piece: Sequence[int]) -> dict[int, int]:
    state = trie.find(piece)
    return {token: count for token, _, count in trie.children(state, most=10**9)} if state else {}


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(1, 5))
def test_a_trie_counts_what_occurs(pieces: list[tuple[list[int], bool]], depth: int):
    trie = Trie(depth)
    wanted = occurrences(filled(trie, pieces), depth)
    assert all(trie.count(piece) == count for piece, count in wanted.items())
    assert all(trie.count([*piece[:-1], 999]) == 0 for piece in wanted)
    parents = Counter[tuple[int, ...]]()
    for piece, count in wanted.items():
        parents[piece[:-1]] += count
    for piece in list(wanted)[:50]:
        if len(piece) < depth:
            found = following(trie, piece)
            assert sum(found.values()) == parents[piece]
            assert all(wanted[(*piece, token)] == count for token, count in found.items())


@settings(max_examples=30, deadline=None)
@given(PIECES, st.integers(1, 5))
def test_the_ends_of_the_open_text_that_occurred_before_are_known(pieces: list[tuple[list[int], bool]], depth: int):
    trie = Trie(depth)
    texts = filled(trie, pieces)
    before = occurrences([*texts[:-1], texts[-1][:-1]], depth)
    ends = {tuple(texts[-1][-size:]) for size in range(1, depth) if size <= len(texts[-1])}
    for state, size in trie.shared():
        end = tuple(texts[-1][-size:])
        assert end in ends
        assert trie.find(end) == state
    known = {size for _, size in trie.shared()}
    assert known == {len(end) for end in ends if before[end] or trie.count(end) > 1}


def test_tokens_one_by_one_and_all_at_once_make_the_same_trie():
    draw = random.Random(0)
    text = draw.choices(range(30), k=400) * 2 + draw.choices(range(3), k=200)
    one, other = Trie(8), Trie(8)
    other.append(text)
    for token in text:
        one.append([token])
    for piece, count in occurrences([text], 8).items():
        assert one.count(piece) == other.count(piece) == count
        assert following(one, piece) == following(other, piece)
    assert one.shared()[0][1] == other.shared()[0][1]
    one.append([5, 6, 7])
    other.append([5, 6, 7])
    assert one.count([5, 6, 7]) == other.count([5, 6, 7]) == occurrences([[*text, 5, 6, 7]], 8)[5, 6, 7]


@pytest.mark.parametrize("more", [0, MANY])
def test_after_the_longest_pieces_the_text_of_the_first_one_goes_on(more: int):
    trie = Trie(3)
    trie.append([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3, 8, 9, *range(20, 20 + more)])
    state = trie.find([1, 2, 3])
    (token, state, _), *others = trie.children(state)
    assert (token, others) == (4, [])
    assert [one[0] for one in trie.children(state)] == [5]


def test_a_text_that_repeats_itself_is_foretold_at_full_length():
    session = Lookahead(length=12).begin([9, 8, *[1, 2, 3] * 20])
    assert session.chain() == [1, 2, 3] * 4
    assert path(draft := session.draft(), 11) == [1, 2, 3] * 4
    assert draft.parents[:12] == list(range(-1, 11))


# -- bounds ------------------------------------------------------------------------------------------------------------


def descended(trie: Trie, state: int, depth: int) -> int:
    """Checks counts below a state; returns how many nodes were seen."""
    below = trie.children(state, most=10**9)
    if state > 0:
        assert sum(count for _, _, count in below) <= trie._nodes.counts[state]
    seen = len(below)
    for _, child, _ in below:
        if depth > 1 and child > 0:
            seen += descended(trie, child, depth - 1)
    return seen


@pytest.mark.parametrize(("kinds", "depth"), [(2, 6), (20, 3), (5000, 5)])
def test_memory_stays_within_its_bound_and_counts_stay_those_of_a_trie(kinds: int, depth: int):
    trie, draw, pieces = Trie(depth, most_bytes=1 << 18), np.random.default_rng(kinds), []
    texts: list[list[int]] = []
    for number in range(24):
        pieces = [(draw.integers(kinds, size=int(draw.integers(1, 2500))).tolist(), number % 3 > 0)]
        found = filled(trie, pieces)
        texts = [*texts[:-1], (texts[-1] if texts else []) + found[0], *found[1:]]
        assert trie.nbytes <= 1 << 18
    trie.close()
    assert trie.num_tokens < sum(map(len, texts))  # some is forgotten
    wanted = occurrences(texts, depth)
    assert all(trie.count(piece) <= wanted[piece] for piece in wanted)
    nodes = sum(descended(trie, trie.find([token]), depth) for token in range(kinds) if trie.find([token]))
    assert nodes > 0
    assert all(trie.count(latest) for latest in (texts[-2][-1:], texts[-2][-2:]))


def test_what_was_said_lately_is_kept_and_what_was_said_often_outlives_it():
    trie = Trie(4, most_bytes=1 << 18)
    often, draw = [7, 8, 9], random.Random(0)
    for _ in range(200):
        trie.append(often)
        trie.close()
    first = [90001, 90002, 90003]
    trie.append(first)
    trie.close()
    while trie.count(first):
        trie.append(draw.choices(range(1000, 60_000), k=500))
    last = draw.choices(range(1000, 60_000), k=300)
    trie.append(last)
    assert trie.count(often) > 20
    assert trie.count(last[100:104]) >= 1
    assert trie.count(last[-4:]) >= 1


def test_a_text_longer_than_the_bound_leaves_its_end():
    trie = Trie(3, most_bytes=1 << 18)
    trie.append(np.arange(100_000))
    assert trie.nbytes <= 1 << 18
    assert trie.count([99_998, 99_999]) == 1
    assert trie.count([0, 1]) == 0


def test_bounds_too_small_are_refused_with_what_is_enough():
    with pytest.raises(SettingsError, match=r"most_bytes.*give ([\d,]+) or more") as error:
        Trie(16, most_bytes=1000)
    enough = int(str(error.value).split("give ")[1].split(" or")[0].replace(",", ""))
    Trie(16, most_bytes=enough)
    with pytest.raises(SettingsError, match="depth"):
        Trie(0)


# -- drafts ------------------------------------------------------------------------------------------------------------


def path(draft: Draft, place: int) -> list[int]:
    found = []
    while place >= 0:
        found.insert(0, draft.tokens[place])
        place = draft.parents[place]
    return found


@settings(max_examples=40, deadline=None)
@given(PIECES, st.integers(0, 99), st.integers(1, 40), st.integers(1, 6))
def test_every_branch_of_a_draft_followed_an_end_of_the_text_before(
    pieces: list[tuple[list[int], bool]], seed: int, budget: int, length: int
):
    memory = Lookahead(budget=budget, length=length, depth=5, query=3)
    said = [list(tokens) for tokens, _ in pieces]
    for tokens in said:
        session = memory.begin([1, 2])
        session.extend(tokens)
        session.end()
    prompt = random.Random(seed).choices(range(3), k=30)
    session = memory.begin(prompt)
    texts = [prompt, *([1, 2, *tokens] for tokens in said if tokens)]
    everything = occurrences(texts, 5 + length)
    draft, chain = session.draft(), session.chain()
    assert len(draft) <= budget
    assert len(set(zip(draft.parents, draft.tokens, strict=True))) == len(draft)
    assert all(parent < place for place, parent in enumerate(draft.parents))
    for tokens in [chain, *(path(draft, place) for place in range(len(draft)))]:
        assert len(tokens) <= length
        assert not tokens or everything[(prompt[-1], *tokens)], "no text went on like that"


def test_the_longest_context_decides():
    session = Lookahead(length=3).begin([1, 2, 3, 50, 51, 9, 3, 60, 61, 9, 3, 60, 61, 9, 1, 2, 3])
    assert session.chain() == [50, 51, 9]
    draft = session.draft()
    assert path(draft, draft.tokens.index(61)) == [60, 61]  # the shorter one's is in the tree as well
    assert draft.tokens[0] == 50


def test_a_repeated_answer_is_proposed_whole_and_a_stream_of_news_costs_a_pass_a_token():
    memory = Lookahead(length=12)
    draw = random.Random(0)
    prompt, answer = draw.sample(range(10_000), 40), draw.sample(range(10_000, 20_000), 100)
    for wanted in (99, 9):
        session, before, done = memory.begin(prompt), memory.counts.drafts, 1
        session.extend(answer[:1])
        while done < len(answer):
            chain = session.chain()
            agreed = next((at for at, token in enumerate(chain) if token != answer[done + at]), len(chain))
            agreed = min(agreed, len(answer) - done - 1)
            session.extend(answer[done : done + agreed + 1])
            done += agreed + 1
        session.end()
        assert memory.counts.drafts - before <= wanted
    assert memory.counts.tokens == 2 * 99
    assert memory.counts.saved == 2 * 99 - memory.counts.drafts > 80


def test_tenants_do_not_see_each_other_and_the_silent_one_is_forgotten():
    memory = Lookahead(tenants=3)
    for tenant, token in (("a", 10), ("b", 20)):
        session = memory.begin([1, 2, 3], tenant)
        session.extend([token, token + 1])
        session.end()
    assert memory.begin([1, 2, 3], "a").chain() == [10, 11]
    assert memory.begin([1, 2, 3], "b").chain() == [20, 21]
    assert memory.begin([1, 2, 3]).chain() == []
    assert memory.tenants == ["a", "b", ""]
    memory.begin([1], "c").draft()
    assert memory.tenants == ["b", "", "c"]
    assert memory.begin([1, 2, 3], "a").chain() == []


def test_a_prompt_is_not_shared():
    memory = Lookahead()
    session = memory.begin(list(range(100)))
    session.extend([1000])
    session.end()
    assert memory.begin([50, 51]).chain() == []
    assert memory.begin([98, 99]).chain() == [1000]  # but for what leads to the answer


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"length": 0}, {"query": 0}, {"query": 20}, {"tenants": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Lookahead(**wrong)
