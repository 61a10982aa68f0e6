from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_events import double, small

from burnish.core.errors import DataError, SettingsError
from burnish.events import THP, EventDataset, EventForecaster, EventSequence, StructuredTHP
from burnish.events.batches import PackedEvents
from burnish.events.model import Objective
from burnish.events.structured import link_regulariser


@pytest.fixture(scope="module")
def graph_data() -> EventDataset:
    rng = np.random.default_rng(0)
    sequences = [
        EventSequence(
            np.cumsum(rng.exponential(size=10)), rng.integers(0, 2, 10), vertices=rng.integers(0, 3, 10), start=0.0
        )
        for _ in range(6)
    ]
    return EventDataset(tuple(sequences), ("a", "b"), num_vertices=3)


EDGES = [(0, 1), (1, 2)]


def test_link_regulariser_is_minus_the_binary_cross_entropy_of_the_edges() -> None:
    scores = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    adjacency = (torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    off = ~torch.eye(5, dtype=torch.bool)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores[off], adjacency[off], reduction="sum")
    assert float(link_regulariser(scores, adjacency)) == pytest.approx(-float(expected), rel=1e-12)


def test_without_coupling_it_is_thp_with_vertex_features(graph_data: EventDataset) -> None:
    model = double(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES))
    batch = PackedEvents(graph_data, 1.0, dtype=torch.float64).batch([0, 1])
    with torch.no_grad():
        model.encoder.vertex_coupling.zero_()
        coupled = model.states(batch)
        plain = double(small(THP, num_marks=2))
        plain.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
        plain.encoder.vertex_embedding = model.encoder.vertex_embedding
        plain.encoder.vertex_coupling = None  # no bias at all: the kernel's own causal mask
        assert torch.allclose(coupled, plain.states(batch), atol=1e-12)


def test_coupling_keeps_causality(graph_data: EventDataset) -> None:
    model = double(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES))
    batch = PackedEvents(graph_data, 1.0, dtype=torch.float64).batch([0])
    before = model.states(batch)
    assert batch.vertices is not None
    batch.vertices[0, 6] = (batch.vertices[0, 6] + 1) % 3
    assert torch.equal(before[:, :7], model.states(batch)[:, :7])


def test_pair_hazards_add_up_to_marks_and_vertices(graph_data: EventDataset) -> None:
    model = double(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES))
    condition = model.condition(torch.ones(1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    gap = torch.tensor([[0.5]], dtype=torch.float64)
    pairs = model.log_pair_hazards(condition, gap).exp()
    assert torch.allclose(pairs.sum((-1, -2)), model.hazard(condition, gap))
    marks = pairs.sum(-2) / pairs.sum((-1, -2)).unsqueeze(-1)
    assert torch.allclose(model.mark_log_probs(condition, gap).exp(), marks)


def test_it_fits_and_forecasts(graph_data: EventDataset) -> None:
    forecaster = EventForecaster(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES))
    history = forecaster.fit(graph_data, graph_data, epochs=3)
    assert history.train[-1] < history.train[0]
    assert forecaster.next_event(graph_data.sequences[0]).quantile(0.5) > 0


def test_online_encoding_with_vertices_equals_the_batch(graph_data: EventDataset) -> None:
    forecaster = EventForecaster(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES))
    forecaster.fit(graph_data, graph_data, epochs=1)
    sequence = replace(graph_data.sequences[0].head(10), start=None)
    stream = forecaster.stream()
    assert sequence.vertices is not None
    for time, mark, vertex in zip(sequence.times, sequence.marks, sequence.vertices, strict=True):
        stream.observe(float(time), int(mark), vertex=int(vertex))
    assert stream.next_event().quantile(0.5) == pytest.approx(forecaster.next_event(sequence).quantile(0.5), rel=1e-4)


def test_an_edge_outside_the_graph_is_refused() -> None:
    with pytest.raises(SettingsError, match="outside"):
        small(StructuredTHP, num_vertices=2, edges=[(0, 5)])


def test_objective_has_the_link_term(graph_data: EventDataset) -> None:
    model = double(small(StructuredTHP, num_marks=2, num_vertices=3, edges=EDGES, link_weight=0.5))
    batch = PackedEvents(graph_data, 1.0, dtype=torch.float64).batch([0])
    terms = model.loss(batch, Objective(), torch.Generator())
    assert float(terms["link"].detach()) == pytest.approx(
        -0.5 * float(link_regulariser(model.link_scores(), model.adjacency).detach())
    )


def test_a_vertex_outside_the_graph_is_refused(graph_data: EventDataset) -> None:
    forecaster = EventForecaster(small(StructuredTHP, num_marks=2, num_vertices=2, edges=[(0, 1)]))
    with pytest.raises(DataError, match="vertex 2, but the graph has the vertices 0 to 1"):
        forecaster.fit(graph_data, graph_data, epochs=1)
