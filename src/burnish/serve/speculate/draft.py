"""From what can follow a text to what is proposed: a chain, or a tree of so many tokens.

Contexts are the ends of the text that occurred before, the longest first, each as a state of two tries: the request's
own (its prompt and its answer so far) and the one that requests share. A token's weight is its share of what followed
its context, times that of what led to it:

    w(x | c) = (n_own(c x) + s n_shared(c x)) / (n_own(c) + s n_shared(c) + e),    the sums over what follows c

with s small, so that the request's own text decides and the others' answers break ties and fill up; e is what
leaves room for something new. A context's weight is multiplied by `SHORTER` for every one before it. The tree is grown
best first, which for a fixed number of tokens is the one with the largest expected number of accepted ones. What
several contexts propose is taken from the longest of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from burnish.serve.speculate.trie import Trie

SHARED = 0.05
"""s above."""
NEWS = 0.3
"""e above."""
SHORTER = 0.7
"""What a shorter context's proposals weigh beside the next longer one's."""
LEAST = 1e-4
"""Weight of a token that is not proposed even where there is room."""


@dataclass(slots=True)
class Draft:
    """Tokens that are proposed.

    Attributes:
        tokens: each after its parent.
        parents: place of each token's parent, -1 for those that follow the text.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Tries:
    """The two tries of a request."""

    own: Trie
    shared: Trie

    def following(self, own: int, shared: int) -> list[tuple[float, int, int, int]]:
        """(weight, token, own state, shared state) of what follows a pair of states, 0 for none."""
        mine = self.own.children(own) if own else []
        theirs = self.shared.children(shared) if shared else []
        if len(mine) + len(theirs) == 1:
            token, state, count = (mine or theirs)[0]
            return [(count / (count + NEWS), token, state, 0) if mine else (count / (count + NEWS), token, 0, state)]
        if not theirs:
            total = NEWS + sum(count for _, _, count in mine)
            return [(count / total, token, state, 0) for token, state, count in mine]
        found = {token: (float(count), state, 0) for token, state, count in mine}
        for token, state, count in theirs:
            weight, known, _ = found.get(token, (0.0, 0, 0))
            found[token] = (weight + SHARED * count, known, state)
        room = NEWS if mine else SHARED * NEWS
        total = room + sum(weight for weight, _, _ in found.values())
        return [(weight / total, token, one, other) for token, (weight, one, other) in found.items()]


def chain(tries: Tries, contexts: Sequence[tuple[int, int]], length: int) -> list[int]:
    """The most frequent continuation of the longest context that has one, of at most `length` tokens."""
    tokens: list[int] = []
    for own, shared in contexts:
        while len(tokens) < length and (following := tries.following(own, shared)):
            _, token, own, shared = max(following, key=lambda one: one[0])  # the first of equal ones
            tokens.append(token)
        if tokens:
            break
    return tokens


def tree(tries: Tries, contexts: Sequence[tuple[int, int]], budget: int, length: int) -> Draft:
    """At most `budget` tokens, none more than `length` deep."""
    draft, places = Draft(), set[tuple[int, int]]()
    heap: list[tuple[float, int, int, int, int, int, int]] = []
    weight, number = 1.0, 0
    for own, shared in contexts:
        following = tries.following(own, shared)
        for share, token, mine, theirs in following:
            number += 1
            heap.append((-weight * share, number, -1, token, mine, theirs, 1))
        weight *= SHORTER if following else 1.0
    heapq.heapify(heap)
    while heap and len(draft.tokens) < budget:
        negative, _, parent, token, own, shared, depth = heapq.heappop(heap)
        while (parent, token) not in places:
            places.add((parent, token))
            place = len(draft.tokens)
            draft.tokens.append(token)
            draft.parents.append(parent)
            if depth == length or len(draft.tokens) == budget:
                break
            ways = [one for one in tries.following(own, shared) if negative * one[0] < -LEAST]
            if not ways:
                break
            depth += 1
            for share, follower, mine, theirs in ways[1:]:
                number += 1
                heapq.heappush(heap, (negative * share, number, place, follower, mine, theirs, depth))
            share, follower, mine, theirs = ways[0]
            number += 1
            # Most go on in one way only, and that is often the best of all: it need not go through the heap.
            first = (negative * share, number, place, follower, mine, theirs, depth)
            negative, _, parent, token, own, shared, depth = heapq.heappushpop(heap, first) if heap else first
    return draft
