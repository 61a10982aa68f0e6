"""A trie of all that can follow: every piece of a text up to a depth, with how often it occurs.

A dictionary for each node, as programs of this kind have it, takes some 36 ms and 42,550 nodes for a prompt of 4,096
tokens, most of them in branches that occur once. Here such a branch is one node, which points at the place in the text
where it goes on; it is written out a node further only when another occurrence arrives. So a token of text costs two to
three nodes of 20 bytes instead of as many as the trie is deep, and a branch whose text is still growing grows with it.

    trie = Trie(depth=16)
    trie.append([5, 6, 7, 5, 6])
    trie.count([5, 6])                 # 2
    trie.children(trie.find([5, 6]))   # [(7, ..., 1)]

Nodes are five arrays. The first child of a node is in its `link`, the others hang on it in a list and are found through
a table by (parent, token), since a frequent word has thousands of children. Many tokens at a time go in level by level,
all starts at once, in O(N depth).

Idea: Lookahead: An Inference Acceleration Framework with Lossless Generation Accuracy, 2023, arXiv:2312.12728. What
differs stands in docs/methods/lookahead.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import SettingsError
from burnish.serve.speculate.nodes import NODE_BYTES, TEXT_BYTES, Ints, Nodes

ROOT = 0
BREAK = -1
"""Between two texts."""
MANY = 48
"""Tokens from which on all go in at once: fewer are faster one by one."""
BATCH = 4096
"""Most tokens at once, which bounds how much more than it keeps a trie needs while it takes them."""


class Trie:
    """Counts of all pieces of texts.

    A state is where a piece ends: a node's number above 0, a place in a text below it (`-place - 1`, for a piece that
    occurs once), and 0 for a piece that does not occur.

    Args:
        depth: tokens of the longest piece that is counted; what follows longer ones is what did the first time.
        most_bytes: of all arrays together. Where they would pass it, the older half of the text is forgotten with what
            occurs nowhere else, and, while more than half of the nodes are left, all counts are halved, rounded down.

    Raises:
        SettingsError: a depth below 1, or too few bytes for one.
    """

    def __init__(self, depth: int = 16, most_bytes: int = 16 << 20) -> None:
        if depth < 1:
            raise SettingsError(f"is {depth}, but 1 or more is needed", where="depth")
        self.depth, self.most_bytes = depth, most_bytes
        self._most_nodes = most_bytes * 3 // 4 // NODE_BYTES
        self._most_text = most_bytes // 4 // TEXT_BYTES
        self._batch = min(BATCH, self._most_text // 4, self._most_nodes // 4 // depth - depth)
        if self._batch < MANY:
            least = (MANY + depth) * depth * 4 * NODE_BYTES * 4 // 3 + NODE_BYTES
            raise SettingsError(f"is {most_bytes:,}", where="most_bytes", fix=f"give {least:,} or more for this depth")
        self._nodes = Nodes(self._most_nodes, self._most_text)
        self._open: list[tuple[int, int]] = []  # (node, depth) of starts that others share so far, the deepest first

    @property
    def num_nodes(self) -> int:
        return self._nodes.num - 1

    @property
    def num_tokens(self) -> int:
        """Of text, with one for every end."""
        return self._nodes.end

    @property
    def nbytes(self) -> int:
        return self._nodes.nbytes

    def append(self, tokens: Sequence[int] | Ints) -> None:
        """Goes on with the text that is open."""
        if len(tokens) > self._most_text // 2:
            tokens = tokens[len(tokens) - self._most_text // 2 :]
            self.close()
        if len(tokens) < MANY:
            for token in tokens:
                self._make_room(1)
                self._add(int(token))
            return
        array = np.asarray(tokens, dtype=np.int64)
        for start in range(0, len(array), self._batch):
            part = array[start : start + self._batch]
            self._make_room(len(part))
            self._add_many(part)

    def close(self) -> None:
        """Ends the text that is open: what comes next does not follow it."""
        self._open = []
        if self._nodes.end and self._nodes.text[self._nodes.end - 1] != BREAK:
            self._make_room(1)
            self._nodes.write(np.array([BREAK]))

    # -- questions -------------------------------------------------------------------------------------------------

    def find(self, piece: Sequence[int]) -> int:
        """The state after a piece of at most `depth` tokens."""
        state, nodes = ROOT, self._nodes
        for place, token in enumerate(piece):
            state = nodes.child(state, token) if state > 0 or not place else self._step(state, token)
            if not state:
                return 0
            if state > 0 and nodes.links[state] < 0 and place + 1 < len(piece):
                state = nodes.links[state]
        return state

    def count(self, piece: Sequence[int]) -> int:
        """How often a piece of 1 to `depth` tokens occurs, as far as that is remembered."""
        state = self.find(piece)
        return self._nodes.counts[state] if state > 0 else int(state < 0)

    def children(self, state: int, most: int = 64) -> list[tuple[int, int, int]]:
        """(token, state, count) of what follows a state: the oldest, and the latest ones before older ones.

        Args:
            state: as above, not 0.
            most: children; a frequent word has thousands, and a draft has room for some.
        """
        nodes = self._nodes
        if state > 0:
            child = nodes.links[state]
            if child > 0:
                found = []
                tokens, counts, siblings = nodes.tokens, nodes.counts, nodes.siblings
                while child and len(found) < most:
                    found.append((tokens[child], child, counts[child]))
                    child = siblings[child]
                return found
            state = child
        place = -state - 1
        if state == 0 or place >= nodes.end or (token := nodes.text[place]) < 0:
            return []
        return [(token, state - 1, 1)]

    def shared(self) -> list[tuple[int, int]]:
        """(state, length) of the ends of the open text that occurred before, the longest first."""
        return self._open

    def _step(self, state: int, token: int) -> int:
        """From a place in the text."""
        place = -state - 1
        return state - 1 if place < self._nodes.end and self._nodes.text[place] == token else 0

    # -- growth ----------------------------------------------------------------------------------------------------

    def _add(self, token: int) -> None:
        nodes, depth = self._nodes, self.depth
        place = nodes.end
        nodes.put(token)
        nodes.reserve(2 * len(self._open) + 2)
        still: list[tuple[int, int]] = []
        for node, level in [*self._open, (ROOT, 0)]:
            child = nodes.child(node, token)
            if not child:
                nodes.create(node, token, -(place + 2))
                continue
            nodes.counts[child] += 1
            if level + 1 == depth:
                if not nodes.links[child]:  # what went on after the first time is longer, where a text repeats itself
                    nodes.links[child] = -(place + 2)
                continue
            if nodes.links[child] < 0:
                nodes.split(child)
            still.append((child, level + 1))
        self._open = still

    def _add_many(self, tokens: Ints) -> None:
        """Every start goes down a level in each round: those of new tokens from the root, those that are open from
        where they are. One that is alone in a new node is a branch of its own, and done."""
        nodes = self._nodes
        begin = nodes.end
        nodes.write(tokens)
        node = np.array([one for one, _ in self._open] + [ROOT] * len(tokens), dtype=np.int64)
        level = np.array([one for _, one in self._open] + [0] * len(tokens), dtype=np.int64)
        place = np.concatenate([np.full(len(self._open), begin), np.arange(begin, nodes.end)])
        still: list[tuple[int, int]] = []
        while len(node):
            node, alone = self._descend(node, place, level)
            level, place = level + 1, place + 1
            done = alone | (level == self.depth)
            ends = ~done & (place == nodes.end)
            still += zip(node[ends].tolist(), level[ends].tolist(), strict=True)
            goes_on = ~done & ~ends
            node, place, level = node[goes_on], place[goes_on], level[goes_on]
        self._open = sorted(still, key=lambda one: -one[1])

    def _descend(self, node: Ints, place: Ints, level: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The child of every start's node, counted or made, and which starts are alone in a new one."""
        nodes = self._nodes
        key = (node << 32) | nodes.text_array[place]
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        size = np.diff(np.append(begins, len(key)))
        group = np.empty(len(key), dtype=np.int64)
        group[order] = np.repeat(np.arange(len(begins)), size)
        first = order[begins]
        child = nodes.children(node[first], nodes.text_array[place[first]])
        known, deepest = child > 0, level[first] + 1 == self.depth
        nodes.count_array[child[known]] += size[known].astype(np.uint32)
        nodes.split_many(child[known & ~deepest])
        new = np.flatnonzero(~known)
        new = new[np.argsort(first[new], kind="stable")]
        at = first[new]
        links = np.where(size[new] == 1, -(place[at] + 2), 0)
        child[new] = nodes.create_many(node[at], nodes.text_array[place[at]], size[new], links)
        found = child[group]
        if deepest.any():
            ends = np.flatnonzero(deepest[group] & (nodes.link_array[found] == 0))[::-1]
            nodes.link_array[found[ends]] = -(place[ends] + 2)  # the first place, which is written last
        return found, (~known & (size == 1))[group]

    def _make_room(self, num_tokens: int) -> None:
        """Forgets where so many tokens might not fit."""
        nodes = self._nodes
        worst = (num_tokens + self.depth) * self.depth
        if nodes.end + num_tokens <= self._most_text and nodes.num + worst <= self._most_nodes:
            return
        kept, halved = nodes.forget(max(nodes.end // 2, nodes.end - self._most_text // 2), self._most_nodes // 2)
        # A start that was halved with the rest must not count in its next node as a whole one.
        self._open = [] if halved else [(int(kept[node]), level) for node, level in self._open if kept[node] > 0]
