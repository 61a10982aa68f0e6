"""Traces and vectors for small random models."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from burnish.arch import describe
from burnish.steer.marks import Marks
from burnish.steer.traces import ReasoningTrace
from burnish.steer.vectors import ProbedHead, Vectors, output_projections

MARKS = Marks("\n\n", (7, 9), (), ("wait",), "</think>", (11,))


def some_vectors(module: PreTrainedModel, seed: int = 0, marks: Marks = MARKS, model: str = "") -> Vectors:
    """Random probes and directions for every head."""
    generator = torch.Generator().manual_seed(seed)
    per_layer, hidden = describe(module.config).num_attention_heads, describe(module.config).hidden_size
    places = [(layer, head) for layer in output_projections(module) for head in range(per_layer)]
    heads = tuple(ProbedHead(layer, head, 0.9 - 0.01 * n) for n, (layer, head) in enumerate(places))
    probes, directions = torch.randn(2, len(heads), hidden, generator=generator)
    unit = torch.nn.functional.normalize(directions, dim=1)
    return Vectors(model, heads, probes, unit, len(heads), marks, hidden)


def some_traces(number: int, vocabulary: int, *, seed: int = 0, tell: bool = True) -> list[ReasoningTrace]:
    """Random tokens; a step that checks ends with 9 instead of 7, so a head can tell (with `tell`)."""
    generator = torch.Generator().manual_seed(seed)
    traces = []
    for _ in range(number):
        tokens = torch.randint(12, vocabulary, (30,), generator=generator).tolist()
        labels = torch.where(torch.rand(5, generator=generator) < 0.4, -1, 1).tolist()
        ends = [5, 10, 15, 20, 25]
        for end, label in zip(ends, labels, strict=True):
            tokens[end] = 9 if tell and label < 0 else 7
        traces.append(ReasoningTrace(tuple(tokens), tuple(ends), tuple(labels)))
    return traces
