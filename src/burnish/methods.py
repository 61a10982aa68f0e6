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
    Method(
        name="NorMuon",
        does="orthogonalised momentum with rows of equal size; half of AdamW's state",
        use="burnish train --optimizer normuon, burnish.optim.NorMuon",
        source="NorMuon, 2025, arXiv:2510.05491",
        page="normuon",
        results="optimizer_step",
    ),
    Method(
        name="Muon",
        does="orthogonalised momentum, with routing, experts, fused and transposed matrices",
        use="burnish train --optimizer muon, burnish.optim.Muon",
        source="Keller Jordan, 2024",
        page="muon",
        results="optimizer_step",
    ),
    Method(
        name="COSMOS",
        does="Adam in the leading eigenspace, Muon in the rest; the published faults mended",
        use="burnish train --optimizer cosmos, burnish.optim.COSMOS",
        source="COSMOS, 2025, arXiv:2502.17410",
        page="cosmos",
    ),
    Method(
        name="SOAP",
        does="Adam in the eigenbasis of the gradient covariances, a baseline",
        use="burnish train --optimizer soap, burnish.optim.SOAP",
        source="SOAP, 2024, arXiv:2409.11321",
        page="soap",
    ),
    Method(
        name="training loop",
        does="packed texts and chats, exact token weighting, resumes with the same bits after kill -9",
        use="burnish train, burnish.train.fit",
        source="packing: Fewer Truncations Improve Language Modeling, 2024, arXiv:2404.10830",
        page="training",
        results="train_loop",
    ),
)
