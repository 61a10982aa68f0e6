"""Pairs that speak of the same answers: labels that contradict each other, repeated pairs, answers without difference.

Two texts are the same but for case and space, and nearly the same where at least NEAR of the triples of words and marks
that either has are in both (Jaccard's index). Candidates come from MinHash in bands
(Broder, "On the resemblance of documents", 1997): at an index of NEAR a band of 4 hashes is shared with probability
0.41, and one of 8 with 0.985; each candidate is then counted exactly.

A question's labels are a graph, from each chosen answer to the rejected one. Labels on a closed walk cannot all be
right, whatever is preferred: they lie within a strongly connected component. The same two answers labelled both ways
are the shortest such walk.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

NEAR = 0.8
BANDS, BAND = 8, 4
PRIME = 2**31 - 1
WORD = re.compile(r"\w+|[^\w\s]")
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


def same_texts(texts: Sequence[str]) -> list[int]:
    """A number per text; texts that are the same or nearly so, directly or through others, have the same one."""
    words = [tuple(WORD.findall(text.casefold())) for text in texts]
    distinct = {each: place for place, each in enumerate(dict.fromkeys(words))}
    triples = [_triples(each) for each in distinct]
    pairs = {(a, b) for a, b in _candidates(triples) if _jaccard(triples[a], triples[b]) >= NEAR}
    first, second = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
    graph = sparse.csr_matrix((np.ones(len(first)), (first, second)), shape=(len(distinct), len(distinct)))
    number = connected_components(graph, directed=False)[1]
    return [int(number[distinct[each]]) for each in words]


def _triples(words: tuple[str, ...]) -> frozenset[int]:
    """Hashes of three words in a row each, of a shorter text of all its words."""
    runs = [words[place : place + 3] for place in range(max(1, len(words) - 2))]
    return frozenset(zlib.crc32(" ".join(run).encode("utf-8", "surrogatepass")) % PRIME for run in runs)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


def _candidates(triples: Sequence[frozenset[int]]) -> set[tuple[int, int]]:
    """Pairs of sets that share all smallest hashes of a band with the first set that had them."""
    draw = np.random.default_rng(0)
    scale, shift = draw.integers(1, PRIME, (BANDS, BAND)), draw.integers(0, PRIME, (BANDS, BAND))
    found: set[tuple[int, int]] = set()
    if not triples:
        return found
    values = np.concatenate([np.fromiter(each, dtype=np.int64) for each in triples])
    starts = np.cumsum([0, *map(len, triples[:-1])])
    for band in range(BANDS):
        smallest = np.stack(
            [
                np.minimum.reduceat((values * a + b) % PRIME, starts)
                for a, b in zip(scale[band], shift[band], strict=True)
            ]
        )
        first: dict[bytes, int] = {}
        for place, key in enumerate(np.ascontiguousarray(smallest.T)):
            earlier = first.setdefault(key.tobytes(), place)
            if earlier != place:
                found.add((earlier, place))
    return found
