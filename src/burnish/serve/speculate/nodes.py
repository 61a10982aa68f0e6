"""The arrays of a trie: what a node is, how it is found, made and forgotten, one at a time and many at a time.

A node has the token that leads to it, its parent, how often it was reached, the next of its siblings, and a link: above
0 its first child, below it the place of its text, `-place - 1`, where it goes on in one way only, and 0 where nothing
is known to follow. Scalars are read through memory views, which is three times as fast as through numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.signedinteger[Any]]

NODE_BYTES = 32
"""Most that a node takes: five numbers of four bytes, and its part of a table that is at least a third full."""
TEXT_BYTES = 4
FULL = 0.7
"""Of the table, at most."""
_A, _B, _M = 0x9E3779B1, 0x85EBCA6B, 0xFFFFFFFF


class Nodes:
    """Nodes, a table of those that are no first child, and the text.

    Args:
        most: nodes that there may be.
        most_text: tokens that there may be.
    """

    def __init__(self, most: int, most_text: int) -> None:
        self._most, self._most_text = most, most_text
        self.num, self.end, self._listed = 1, 0, 0
        self._arrays = np.zeros((4, min(512, most)), dtype=np.int32)
        self.count_array = np.zeros(self._arrays.shape[1], dtype=np.uint32)
        self.text_array = np.zeros(min(256, most_text), dtype=np.int32)
        self._table = np.zeros(256, dtype=np.int32)
        self._view()

    def _view(self) -> None:
        self.token_array, self.parent_array, self.sibling_array, self.link_array = self._arrays
        self.tokens, self.parents = self.token_array.data, self.parent_array.data
        self.siblings, self.links = self.sibling_array.data, self.link_array.data
        self.counts, self.text = self.count_array.data, self.text_array.data
        self._slots, self._shift = self._table.data, 33 - len(self._table).bit_length()

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self._arrays, self.count_array, self.text_array, self._table))

    # -- room ------------------------------------------------------------------------------------------------------

    def reserve(self, more: int) -> None:
        """Room for more nodes."""
        if self.num + more > len(self.count_array):
            size = min(self._most, max(self.num + more, len(self.count_array) * 5 // 4))
            arrays, counts = np.zeros((4, size), dtype=np.int32), np.zeros(size, dtype=np.uint32)
            arrays[:, : self.num], counts[: self.num] = self._arrays[:, : self.num], self.count_array[: self.num]
            self._arrays, self.count_array = arrays, counts
            self._view()
        if self._listed + more > FULL * len(self._table):
            self._rehash(self._listed + more)

    def _rehash(self, most: int) -> None:
        size = 256
        while most > FULL * size:
            size *= 2
        self._table = np.zeros(size, dtype=np.int32)
        self._view()
        nodes = np.arange(1, self.num)
        first = self.link_array[self.parent_array[1 : self.num]]
        self._listed = 0
        self._list(nodes[first != nodes])

    def write(self, tokens: Ints) -> None:
        """At the end of the text."""
        end = self.end + len(tokens)
        if end > len(self.text_array):
            text = np.zeros(min(self._most_text, max(end, len(self.text_array) * 3 // 2)), dtype=np.int32)
            text[: self.end] = self.text_array[: self.end]
            self.text_array = text
            self._view()
        self.text_array[self.end : end] = tokens
        self.end = end

    def put(self, token: int) -> None:
        """One token at the end of the text."""
        if self.end == len(self.text_array):
            self.write(np.array([token]))
        else:
            self.text[self.end] = token
            self.end += 1

    # -- one node --------------------------------------------------------------------------------------------------

    def child(self, parent: int, token: int) -> int:
        """Its number, or 0."""
        first = self.links[parent]
        if first <= 0:
            return 0
        if self.tokens[first] == token:
            return first
        if not self.siblings[first]:
            return 0
        slots, tokens, parents, last = self._slots, self.tokens, self.parents, len(self._slots) - 1
        slot = ((parent * _A + token * _B) & _M) >> self._shift
        while node := slots[slot]:
            if tokens[node] == token and parents[node] == parent:
                return node
            slot = (slot + 1) & last
        return 0

    def create(self, parent: int, token: int, link: int) -> None:
        """A child that was reached once, where there is room."""
        node = self.num
        self.num += 1
        self.tokens[node], self.parents[node], self.counts[node], self.links[node] = token, parent, 1, link
        first = self.links[parent]
        if first <= 0:
            self.links[parent], self.siblings[node] = node, 0
            return
        self.siblings[node], self.siblings[first] = self.siblings[first], node
        slot, last = ((parent * _A + token * _B) & _M) >> self._shift, len(self._slots) - 1
        while self._slots[slot]:
            slot = (slot + 1) & last
        self._slots[slot] = node
        self._listed += 1

    def split(self, node: int) -> None:
        """Writes out the one way on that a node has in the text."""
        place = -self.links[node] - 1
        token = self.text[place]
        self.links[node] = 0
        if token >= 0:
            self.create(node, token, -(place + 2))

    # -- many nodes ------------------------------------------------------------------------------------------------

    def children(self, parents: Ints, tokens: Ints) -> Ints:
        """The child of every parent by its token, or 0."""
        found = np.zeros(len(parents), dtype=np.int64)
        first = self.link_array[parents].astype(np.int64)
        has = first > 0
        hit = has & (self.token_array[np.where(has, first, 0)] == tokens)
        found[hit] = first[hit]
        left = np.flatnonzero(has & ~hit)
        left = left[self.sibling_array[first[left]] > 0]
        slot, last = self._slot(parents[left], tokens[left]), len(self._table) - 1
        while len(left):
            node = self._table[slot]
            same = (self.token_array[node] == tokens[left]) & (self.parent_array[node] == parents[left]) & (node > 0)
            found[left[same]] = node[same]
            goes_on = ~same & (node > 0)
            left, slot = left[goes_on], (slot[goes_on] + 1) & last
        return found

    def create_many(self, parents: Ints, tokens: Ints, counts: Ints, links: Ints) -> Ints:
        """New children, numbered in their order."""
        self.reserve(len(parents))
        nodes = np.arange(self.num, self.num + len(parents))
        self.num += len(parents)
        self.token_array[nodes], self.parent_array[nodes] = tokens, parents
        self.count_array[nodes], self.link_array[nodes] = counts, links
        self._list(self._hang(nodes, parents))
        return nodes

    def split_many(self, nodes: Ints) -> None:
        """As `split`, for those of the nodes that have a place in the text."""
        nodes = nodes[self.link_array[nodes] < 0]
        place = -self.link_array[nodes].astype(np.int64) - 1
        tokens = self.text_array[place]
        self.link_array[nodes] = 0
        real = tokens >= 0
        self.create_many(nodes[real], tokens[real], np.ones(real.sum(), dtype=np.int64), -(place[real] + 2))

    def _hang(self, nodes: Ints, parents: Ints) -> Ints:
        """Puts nodes, ascending, into the lists of their parents, each after the first child, which it becomes where
        there is none; returns those that are no first child."""
        order = np.argsort(parents, kind="stable")
        nodes, parents = nodes[order], parents[order]
        begins = np.concatenate([[True], parents[1:] != parents[:-1]]) if len(nodes) else np.zeros(0, dtype=bool)
        becomes = begins & (self.link_array[parents] <= 0)
        self.link_array[parents[becomes]] = nodes[becomes]
        self.sibling_array[nodes[becomes]] = 0
        nodes, parents = nodes[~becomes], parents[~becomes]
        if len(nodes):
            begins = np.concatenate([[True], parents[1:] != parents[:-1]])
            heads = self.link_array[parents]
            self.sibling_array[nodes] = np.where(begins, self.sibling_array[heads], np.roll(nodes, 1))
            ends = np.append(begins[1:], True)
            self.sibling_array[heads[ends]] = nodes[ends]
        return nodes

    def _slot(self, parents: Ints, tokens: Ints) -> Ints:
        key = parents.astype(np.uint32) * np.uint32(_A) + tokens.astype(np.uint32) * np.uint32(_B)
        return (key >> np.uint32(self._shift)).astype(np.int64)

    def _list(self, nodes: Ints) -> None:
        """Into the table, where there is room: of several that want a slot one gets it, the others go on."""
        self._listed += len(nodes)
        slot, last = self._slot(self.parent_array[nodes], self.token_array[nodes]), len(self._table) - 1
        while len(nodes):
            free = self._table[slot] == 0
            self._table[slot[free]] = nodes[free]
            left = self._table[slot] != nodes
            nodes, slot = nodes[left], (slot[left] + 1) & last

    # -- forgetting ------------------------------------------------------------------------------------------------

    def forget(self, cut: int, most: int) -> tuple[Ints, bool]:
        """Forgets the text before a place, and the nodes that occur there alone; halves counts while too many are left.

        A node's count is at least the sum of its children's, before and after: so what stays is a trie.

        Args:
            cut: first place that is kept.
            most: nodes that may stay.

        Returns:
            The new number of every node, 0 for those that are gone, and whether counts were halved.
        """
        links, counts = self.link_array[: self.num], self.count_array[: self.num]
        in_text = links < 0
        links[in_text] = np.minimum(links[in_text] + cut, 0)
        links[links == 0] = 0
        kept, halved = (counts > 1) | (links != 0), False
        kept[0] = True
        while np.count_nonzero(kept) > most:
            counts >>= 1
            kept &= counts > 0
            kept[0] = halved = True
        self._compact(kept, in_text & (links < 0))
        self.text_array[: self.end - cut] = self.text_array[cut : self.end].copy()
        self.end -= cut
        return np.where(kept, np.cumsum(kept) - 1, 0), halved

    def _compact(self, kept: NDArray[np.bool_], in_text: NDArray[np.bool_]) -> None:
        """Moves the nodes that stay together; their order among siblings is that of their numbers."""
        number = np.cumsum(kept) - 1
        old, num = np.flatnonzero(kept), int(np.count_nonzero(kept))
        self._arrays[:, :num] = self._arrays[:, old]
        self.count_array[:num] = self.count_array[old]
        self.num = num
        self.parent_array[:num] = number[self.parent_array[:num]]
        self.link_array[:num][~in_text[old]] = 0
        self.sibling_array[:num] = 0
        self._table[:] = 0
        self._listed = 0
        nodes = np.arange(1, num)
        self._list(self._hang(nodes, self.parent_array[1:num].astype(np.int64)))
