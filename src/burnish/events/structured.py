"""The Transformer Hawkes Process over a graph: every event happens at a vertex.

Structured THP, section on graphs of Transformer Hawkes Process, Zuo et al., ICML 2020 (arXiv 2002.09291).

    attention logits    Q K^T / sqrt(d) + A,   A_ij = e_{v_i}^T Omega e_{v_j}
    link term           mu sum_{u != v} [ 1{(u,v) in E} r_uv - log(1 + exp(r_uv)) ],   r_uv = e_u^T Omega e_v

The link term is maximised with the likelihood; it is minus the binary cross-entropy of the edges with logits r. One
Omega serves all layers. The intensity is over pairs (vertex, type), with the softplus-linear form of THP.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from burnish.core.errors import DataError, SettingsError
from burnish.events.batches import EventBatch, PackedEvents
from burnish.events.data import EventDataset
from burnish.events.heads import Condition, LinearHazard
from burnish.events.model import EncodedModel, Histories, Objective
from burnish.events.thp import THP


def link_regulariser(scores: Float[Tensor, "V V"], adjacency: Float[Tensor, "V V"]) -> Float[Tensor, ""]:
    """sum over u != v of adjacency_uv r_uv - log(1 + exp(r_uv)); to be maximised."""
    off_diagonal = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return (adjacency * scores - F.softplus(scores))[off_diagonal].sum()


class StructuredTHP(EncodedModel):
    """THP with vertices.

    Args:
        num_marks: types of events.
        num_vertices: size of the graph.
        edges: pairs (u, v), directed.
        link_weight: mu above, per scored event of an average batch of a thousand.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "structured-thp"
    has_tie_head: ClassVar[bool] = False
    has_graph: ClassVar[bool] = True
    adjacency: Tensor

    def __init__(
        self,
        num_marks: int,
        *,
        num_vertices: int,
        edges: list[tuple[int, int]] | list[list[int]],
        link_weight: float = 1e-3,
        **encoder: Any,
    ) -> None:
        pairs = [[int(u), int(v)] for u, v in edges]
        if any(not 0 <= vertex < num_vertices for pair in pairs for vertex in pair):
            raise SettingsError(f"an edge names a vertex outside 0..{num_vertices - 1}")
        super().__init__(num_marks, encoder, num_vertices=num_vertices, edges=pairs, link_weight=link_weight)
        self.num_vertices, self.link_weight = num_vertices, link_weight
        self.intensity = LinearHazard(self.hidden_size, num_marks * num_vertices)
        adjacency = torch.zeros(num_vertices, num_vertices)
        for u, v in pairs:
            adjacency[u, v] = 1.0
        self.register_buffer("adjacency", adjacency, persistent=False)

    def pack(self, dataset: EventDataset, *, score_first: bool = True) -> PackedEvents:
        """The data set in the model's units; its vertices must be of the model's graph."""
        vertices = [sequence.vertices for sequence in dataset.sequences if len(sequence)]
        if any(values is None for values in vertices):
            raise DataError("the events have no vertices, and the model is over a graph", fix="give the vertex column")
        highest = max((int(values.max()) for values in vertices if values is not None), default=0)
        lowest = min((int(values.min()) for values in vertices if values is not None), default=0)
        if highest >= self.num_vertices or lowest < 0:
            raise DataError(
                f"an event is at vertex {highest if lowest >= 0 else lowest}, "
                f"but the graph has the vertices 0 to {self.num_vertices - 1}",
                fix="drop those events, or fit again with a larger graph",
            )
        return super().pack(dataset, score_first=score_first)

    def link_scores(self) -> Float[Tensor, "V V"]:
        """r_uv."""
        assert self.encoder.vertex_embedding is not None and self.encoder.vertex_coupling is not None
        vertices = self.encoder.vertex_embedding.weight
        return vertices @ self.encoder.vertex_coupling @ vertices.t()

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        return self.intensity.condition(hidden, last_time)

    def log_pair_hazards(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q V K"]:
        """log intensity of every (vertex, type)."""
        values = self.intensity.log_mark_hazards(condition, gap)
        return values.unflatten(-1, (self.num_vertices, self.num_marks))

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.intensity.hazard(condition, gap)

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.intensity.log_mark_hazards(condition, gap).logsumexp(-1)

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return F.log_softmax(self.log_pair_hazards(condition, gap).logsumexp(-2), dim=-1)

    def vertex_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q V"]:
        """log p(v | s)."""
        return F.log_softmax(self.log_pair_hazards(condition, gap).logsumexp(-1), dim=-1)

    compensator = THP.compensator
    prob_no_event = THP.prob_no_event

    def pair_log_likelihood(self, histories: Histories) -> Float[Tensor, " S"]:
        """log lam_{v,k}(s) - Lam(s) of every event with its vertex."""
        assert histories.vertex is not None
        gap = histories.gap.unsqueeze(-1)
        pairs = self.log_pair_hazards(histories.condition, gap).flatten(-2).squeeze(-2)
        index = histories.vertex * self.num_marks + histories.mark
        happened = torch.gather(pairs, -1, index.unsqueeze(-1))
        return (happened - self.compensator(histories.condition, gap)).squeeze(-1)

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        histories = self.histories(batch)
        count = max(len(histories.gap), 1)
        terms = {"nll": -self.pair_log_likelihood(histories).sum() / count}
        terms |= self.tail_loss(histories)
        terms["link"] = -self.link_weight * link_regulariser(self.link_scores(), self.adjacency)
        return terms
