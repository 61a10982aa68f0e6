"""Pairs that speak of the same answers: labels that contradict each other, repeated pairs, answers without difference.

A question's labels are a graph, from each chosen answer to the rejected one. Labels on a closed walk cannot all be
right, whatever is preferred: they lie within a strongly connected component. The same two answers labelled both ways
are the shortest such walk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from burnish.data.near_copies import same_texts

FEW = 5
"""Rows that a reason names at most."""


@dataclass(frozen=True)
class Repeats:
    """What pairs say of each other; all lists hold places of pairs.

    Attributes:
        circles: of each pair on a closed walk of labels, the pairs of its component.
        copies: of each pair, other pairs of the same two answers with the same label.
        even: pairs whose two answers are nearly the same.
    """

    circles: dict[int, list[int]]
    copies: dict[int, list[int]]
    even: set[int]

    def reasons(self, place: int, numbers: Sequence[int]) -> list[str]:
        """In words, with the rows that the numbers name."""

        def rows(places: Sequence[int]) -> str:
            others = [numbers[other] for other in places if other != place]
            more = f" and {len(others) - FEW} more" if len(others) > FEW else ""
            return ("row " if len(others) == 1 else "rows ") + ", ".join(map(str, others[:FEW])) + more

        found = []
        circle = self.circles.get(place, [])
        if len(circle) == 2:
            found.append(f"the same two answers, or nearly so, are labelled the other way in {rows(circle)}")
        elif circle:
            found.append(f"this label and those of {rows(circle)} go round in a circle")
        if place in self.even:
            found.append("the two answers are nearly the same")
        if place in self.copies:
            found.append(f"the same pair, or nearly so, stands in {rows(self.copies[place])}")
        return found


def find_repeats(split: Sequence[tuple[str, str, str]]) -> Repeats:
    """Of (prompt, chosen, rejected)."""
    prompts = same_texts([prompt for prompt, _, _ in split])
    answers = same_texts([answer for _, *both in split for answer in both])
    nodes: dict[tuple[int, int], int] = {}
    edges = [
        tuple(nodes.setdefault((prompt, answers[2 * place + side]), len(nodes)) for side in (0, 1))
        for place, prompt in enumerate(prompts)
    ]
    even = {place for place, (better, worse) in enumerate(edges) if better == worse}
    starts, ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = sparse.csr_matrix((np.ones(len(edges)), (starts, ends)), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=True, connection="strong")[1]
    inside = [place for place, (a, b) in enumerate(edges) if a != b and component[a] == component[b]]
    circles = _together(inside, [int(component[edges[place][0]]) for place in inside])
    apart = [place for place in range(len(edges)) if place not in even]
    copies = _together(apart, [edges[place] for place in apart])
    return Repeats(circles, {place: same for place, same in copies.items() if len(same) > 1}, even)


def _together(places: Sequence[int], keys: Sequence[Hashable]) -> dict[int, list[int]]:
    """{place: all places that have its key}."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in zip(places, keys, strict=True):
        by_key[key].append(place)
    return {place: same for same in by_key.values() for place in same}
