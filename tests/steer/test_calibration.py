"""Calibration: one pass over traces finds the head that tells, says what chance does, and refuses what says nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import burnish
from burnish.core.checkpoint import Model
from burnish.core.errors import DataError
from burnish.steer import ReasoningTrace, calibrate, steer
from burnish.steer.vectors import output_projections
from made_vectors import MARKS, some_traces
from small_models import make, small_tokenizer

KINDS = ["llama", "gpt2", "qwen3_moe", "gpt_oss", "deepseek_v3"]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_see_the_mark_are_found_and_vectors_have_unit_length(kind: str):
    module = make(kind, disturbed=True)
    vectors = calibrate(module, some_traces(48, 384), MARKS, model="me", permutations=20)
    accuracies = [head.accuracy for head in vectors.heads]
    made = vectors.made_of
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > max(made["chance"], made["larger_class"])
    assert vectors.heads[0].low <= accuracies[0] <= vectors.heads[0].high
    assert made["telling"] == sum(accuracy > made["chance"] for accuracy in accuracies)
    assert (made["traces"], made["held_out_traces"], made["held_out_steps"]) == (36, 12, 60)
    assert made["linear_steps"] + made["checking_steps"] == 180
    torch.testing.assert_close(vectors.directions.norm(dim=1), torch.ones(len(vectors.heads)))
    assert (vectors.model, vectors.rank, vectors.hidden_size) == ("me", 64, 64)


def test_a_direction_is_the_difference_of_what_its_head_adds():
    """Against hooks on the projection: the contribution of a head is the projection of its columns alone."""
    module, traces = make("llama"), some_traces(16, 384)
    vectors = calibrate(module, traces, MARKS, permutations=5)
    head = vectors.heads[0]
    owner = output_projections(module)[head.layer].owner
    columns = slice(16 * head.head, 16 * (head.head + 1))
    met: list[torch.Tensor] = []
    hook = owner.register_forward_pre_hook(lambda m, args: met.append(args[0][0]))
    kinds: dict[int, list[torch.Tensor]] = {1: [], -1: []}
    shuffled = random.Random("steer 0").sample(traces, len(traces))
    for trace in (trace for number, trace in enumerate(shuffled) if number % 4):
        module(input_ids=torch.tensor([trace.tokens]))
        for end, label in zip(trace.ends, trace.labels, strict=True):
            kinds[label].append(owner.weight[:, columns].detach() @ met[-1][end, columns].detach())
    hook.remove()
    difference = torch.stack(kinds[-1]).mean(0) - torch.stack(kinds[1]).mean(0)
    torch.testing.assert_close(vectors.directions[0], difference / difference.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_mean_of_a_layer_is_that_of_its_output_over_linear_steps(kind: str):
    """With the bias of the projection, where it has one."""
    module, traces = make(kind), some_traces(24, 384)
    vectors = calibrate(module, traces, MARKS, permutations=0)
    owner = output_projections(module)[1].owner
    if owner.bias is not None:
        torch.nn.init.normal_(owner.bias)
        vectors = calibrate(module, traces, MARKS, permutations=0)
    met: list[torch.Tensor] = []
    hook = owner.register_forward_hook(lambda m, args, out: met.append(out.detach().reshape(-1, out.shape[-1])))
    outputs = []
    shuffled = random.Random("steer 0").sample(traces, len(traces))
    for trace in (trace for number, trace in enumerate(shuffled) if number % 4):
        module(input_ids=torch.tensor([trace.tokens]))
        outputs += [met[-1][end] for end, label in zip(trace.ends, trace.labels, strict=True) if label > 0]
    hook.remove()
    torch.testing.assert_close(vectors.means[1], torch.stack(outputs).mean(0), rtol=1e-4, atol=1e-5)


def test_a_lower_rank_keeps_directions_in_the_subspace_of_their_layer():
    module = make("llama")
    vectors = calibrate(module, some_traces(24, 384), MARKS, rank=3, permutations=5)
    for heads in vectors.by_layer().values():
        assert torch.linalg.matrix_rank(heads.directions, atol=1e-4) <= 3
    assert vectors.rank == 3


def test_the_same_traces_make_the_same_vectors():
    first, again = (calibrate(make("llama"), some_traces(16, 384), MARKS, permutations=9) for _ in range(2))
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(first.probes, again.probes)
    assert first.heads == again.heads


def test_where_no_head_tells_vectors_are_refused_and_forced_only_on_request():
    module, traces = make("llama"), some_traces(24, 384, tell=False)
    with pytest.raises(DataError, match="no head tells checking from linear steps: the best probe calls"):
        calibrate(module, traces, MARKS, permutations=50)
    forced = calibrate(module, traces, MARKS, permutations=50, force=True)
    assert forced.made_of["telling"] == 0


def one_kind(label: int) -> list[ReasoningTrace]:
    return [replace(trace, labels=(label,) * 5) for trace in some_traces(12, 384)]


@pytest.mark.parametrize(
    ("traces", "rank", "said"),
    [
        (some_traces(7, 384), None, "7 right traces with steps are too few; 8 are needed"),
        (one_kind(1), None, "all 60 steps of 12 right traces are linear, so there is nothing to tell"),
        (one_kind(-1), None, "all 60 steps of 12 right traces are checking"),
        (some_traces(12, 384), 60, "45 steps to fit on span no subspace of rank 60"),
        ([*one_kind(1)[:11], some_traces(1, 384, seed=1)[0]], None, "one part of the traces has steps of one kind"),
    ],
)
def test_traces_that_decide_nothing_are_refused(traces: list[ReasoningTrace], rank: int | None, said: str):
    with pytest.raises(DataError, match=said):
        calibrate(make("llama"), traces, MARKS, rank=rank, permutations=5)


def test_a_packed_checkpoint_is_calibrated_on_the_weights_that_it_stands_for(tmp_path: Path):
    Model(module=make("llama", disturbed=True), tokenizer=small_tokenizer()).save(tmp_path / "dense")
    packed = burnish.Quantize(method="rtn", bits=4, group_size=16, refit=0)(burnish.load(tmp_path / "dense"))
    packed.save(tmp_path / "packed")
    read = burnish.load(tmp_path / "packed")
    dense = make("llama")
    dense.load_state_dict(packed.module.state_dict())
    found, expected = (calibrate(one, some_traces(24, 384), MARKS, permutations=5) for one in (read.module, dense))
    assert torch.equal(found.directions, expected.directions)
    assert found.heads == expected.heads
    with steer(read, replace(found, model=read.identity)) as steering:
        ids = torch.full((1, 4), 12)
        read.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0)
    assert steering.counts.seen == 2
