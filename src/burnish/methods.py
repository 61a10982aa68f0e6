"""The table of methods: what each is, where it comes from, and where its evidence is. `burnish methods` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: what the field calls it.
        does: one clause.
        use: the command or the class.
        source: authors or title, year, arXiv id.
        page: its documentation page, which holds the evidence, in docs/methods.
        results: its benchmark results in benchmarks/results, without ".json".
    """

    name: str
    does: str
    use: str
    source: str
    page: str
    results: str = ""


METHODS: tuple[Method, ...] = (
    Method(
        name="evaluation",
        does="perplexity, divergence from a reference, agreement, speed and memory, with intervals",
        use="burnish evaluate",
        source="bootstrap: Efron, 1979",
        page="evaluation",
        results="evaluate_overhead",
    ),
)
