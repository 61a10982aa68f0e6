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
        name="RTN, GPTQ",
        does="weights rounded to nearest, or one-sided with the covariance of a layer's inputs",
        use="burnish quantize --method gptq",
        source="GPTQ, 2022, arXiv:2210.17323; QuIP (LDLQ), 2023, arXiv:2307.13304",
        page="rounding",
        results="quantize_baselines",
    ),
    Method(
        name="YAQA",
        does="two-sided adaptive rounding that keeps the model's own distribution",
        use="burnish quantize --method yaqa",
        source="Model-Preserving Adaptive Rounding, 2025, arXiv:2505.22988",
        page="yaqa",
    ),
    Method(
        name="NorMuon",
        does="orthogonalised updates whose rows move by the same amount",
        use="burnish train --optimizer normuon",
        source="NorMuon, 2025, arXiv:2510.05491",
        page="normuon",
        results="optimizer_step",
    ),
    Method(
        name="Muon",
        does="orthogonalised momentum",
        use="burnish train --optimizer muon",
        source="Keller Jordan, 2024; Muon is Scalable, 2025, arXiv:2502.16982",
        page="muon",
        results="optimizer_step",
    ),
    Method(
        name="COSMOS",
        does="a low-rank preconditioned part and an orthogonalised rest",
        use="burnish train --optimizer cosmos",
        source="COSMOS, 2025, arXiv:2502.17410",
        page="cosmos",
        results="optimizer_step",
    ),
    Method(
        name="SOAP",
        does="Adam in the eigenbasis of Shampoo, as a baseline",
        use="burnish train --optimizer soap",
        source="SOAP, 2024, arXiv:2409.11321",
        page="soap",
        results="optimizer_step",
    ),
    Method(
        name="preference training",
        does="DPO and reward models as thin subclasses of TRL's trainers, with a loss chosen per pair",
        use="burnish align",
        source="Direct Preference Optimization, 2023, arXiv:2305.18290",
        page="preference-training",
        results="align_step",
    ),
    Method(
        name="APS",
        does="preference losses with a scale for every pair",
        use="burnish align --loss aps-dpo",
        source="Adaptive Preference Scaling, 2024, arXiv:2406.02764",
        page="aps",
        results="align_linear",
    ),
    Method(
        name="R3M",
        does="preference losses that cap the pull of a wrong label",
        use="burnish align --loss r3m-dpo",
        source="Robust RL from Corrupted Human Feedback, 2024, arXiv:2406.15568",
        page="r3m",
        results="align_linear",
    ),
    Method(
        name="label audit",
        does="which preference labels to distrust, from margins of models that did not see them",
        use="burnish audit",
        source="R3M's delta and APS's tau over cross-fitted margins",
        page="label-audit",
        results="align_audit",
    ),
    Method(
        name="SlimMoE",
        does="experts narrowed by importance, all of them kept",
        use="burnish slim",
        source="SlimMoE, 2025, arXiv:2506.18349",
        page="slimmoe",
        results="slim",
    ),
    Method(
        name="upcycling",
        does="a dense model as a mixture of experts that computes the same",
        use="burnish convert upcycle",
        source="Sparse Upcycling, 2022, arXiv:2212.05055",
        page="upcycling",
    ),
    Method(
        name="distillation",
        does="divergences, hidden states and routers of a teacher, normalised per token",
        use="burnish distill",
        source="Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531",
        page="distillation",
    ),
    Method(
        name="THP",
        does="the transformer Hawkes process with its likelihood done right",
        use="burnish events fit --model thp",
        source="Transformer Hawkes Process, 2020, arXiv:2002.09291",
        page="thp",
        results="events",
    ),
    Method(
        name="SMURF-THP",
        does="event times by score matching, with exact quantiles",
        use="burnish events fit --model smurf-thp",
        source="SMURF-THP, 2023, arXiv:2310.16336",
        page="smurf-thp",
        results="events",
    ),
    Method(
        name="SMASH",
        does="times, marks and places by score matching",
        use="burnish events fit --model smash",
        source="SMASH, 2023, arXiv:2310.16310",
        page="smash",
        results="events",
    ),
    Method(
        name="training",
        does="one loop: exact token weighting, packing that keeps documents apart, states that survive kill -9",
        use="burnish train",
        source="warm-up, stable, decay: MiniCPM, 2024, arXiv:2404.06395",
        page="training",
        results="train_loop",
    ),
    Method(
        name="sharded training",
        does="NorMuon, Muon and COSMOS under FSDP2, with the answer of one process",
        use="launch: {processes: N} in a recipe",
        source="NorMuon, 2025, arXiv:2510.05491; PyTorch FSDP, 2023, arXiv:2304.11277",
        page="sharding",
        results="sharded_step",
    ),
)
