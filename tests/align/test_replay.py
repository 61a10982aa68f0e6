"""Groups that are learned from again: bounds that always hold, rows that come back as they were, runs that go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.align.replay import KeptGroup, ReplayQueue, batch_of, groups_of
from burnish.core.errors import SettingsError


def group(step: int, pull: float) -> KeptGroup:
    return KeptGroup(step, [{"advantages": torch.tensor(pull)}, {"advantages": torch.tensor(-pull)}])


@given(
    limit=st.integers(1, 5),
    staleness=st.integers(0, 4),
    reuse=st.integers(1, 3),
    pulls=st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=4, max_size=4), min_size=1, max_size=15),
)
def test_no_bound_is_ever_passed(limit: int, staleness: int, reuse: int, pulls: list[list[float]]) -> None:
    queue, times, seen = ReplayQueue(limit, staleness, reuse), dict[int, int](), list[KeptGroup]()
    for step, some in enumerate(pulls):
        fresh = [group(step, pull) for pull in some]
        seen += fresh  # so that no id is given twice
        chosen = queue.exchanged(fresh, step)
        assert len(queue.groups) <= limit and len(chosen) == len(fresh)
        for one, before in zip(chosen, fresh, strict=True):
            assert one is before or (not before.pull and 0 < step - one.step <= staleness)
            if one is not before:
                times[id(one)] = times.get(id(one), 0) + 1
        assert max(times.values(), default=0) <= reuse
        assert len({id(one) for one in chosen}) == len(chosen)


def test_what_pulls_most_comes_first_and_age_counts_against_it() -> None:
    queue = ReplayQueue(limit=8, max_staleness=9, reuse=1)
    old, weak, strong = group(0, 0.5), group(3, 0.25), group(3, 0.45)
    queue.exchanged([old], 0)
    queue.exchanged([weak, strong], 3)
    chosen = queue.exchanged([group(4, 0.0) for _ in range(3)], 4)
    assert [id(one) for one in chosen] == [id(strong), id(old), id(weak)]  # .36, .205, .2
    assert not queue.exchanged([group(5, 0.0)], 5)[0].pull  # each once


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"max_staleness": -1}, {"reuse": 0}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="is the least"):
        ReplayQueue(**{"limit": 1, "max_staleness": 1} | wrong)


def batch() -> dict[str, torch.Tensor]:
    return {
        "prompt_ids": torch.tensor([[9, 9, 3], [9, 9, 3], [4, 5, 6], [4, 5, 6]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 9, 9], [1, 2, 9], [1, 2, 3], [7, 9, 9]]),
        "completion_mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]),
        "old_per_token_logps": torch.tensor([[-1.0, 0, 0], [-1, -2, 0], [-1, -2, -3], [-1, 0, 0]]),
        "advantages": torch.tensor([0.5, -0.5, 0.0, 0.0]),
        "num_items_in_batch": torch.tensor(6),
    }


@pytest.mark.parametrize("by_token", [False, True])
def test_rows_lose_their_padding_and_get_it_back(tmp_path: Path, by_token: bool) -> None:
    whole = batch()
    if by_token:
        whole["advantages"] = whole["advantages"][:, None] * whole["completion_mask"]
    groups = groups_of(whole, 2, step=3)
    assert [len(row["prompt_ids"]) for one in groups for row in one.rows] == [1, 1, 3, 3]
    queue = ReplayQueue(4, 4, 2, groups)
    queue.save(tmp_path / "kept.safetensors")
    again = ReplayQueue(4, 4, 2)
    again.load(tmp_path / "kept.safetensors", "cpu")
    assert [(one.step, one.used) for one in again.groups] == [(3, 0), (3, 0)]
    for found in (batch_of(groups, pad=9), batch_of(again.groups, pad=9)):
        assert set(found) == set(whole) - {"num_items_in_batch"}
        assert all(torch.equal(found[name], whole[name]) for name in found)
