"""Texts that are the same or nearly so, among many.

Two texts are the same but for case and space, and nearly the same where at least NEAR of the triples of words and marks
that either has are in both (Jaccard's index). Candidates come from MinHash in bands
(Broder, "On the resemblance of documents", 1997): at an index of NEAR a band of 4 hashes is shared with probability
0.41, and one of 8 with 0.985; each candidate is then counted exactly.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

NEAR = 0.8
BANDS, BAND = 8, 4
PRIME = 2**31 - 1
WORD = re.compile(r"\w+|[^\w\s]")


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
