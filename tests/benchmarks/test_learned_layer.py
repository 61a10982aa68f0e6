"""What the benchmark of one layer tries, and how it measures."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import learned_layer


def test_every_way_is_tried_once_under_a_name_of_its_own():
    assert len({way.name for way in learned_layer.WAYS}) == len(learned_layer.WAYS)
    assert {learned_layer.NEAREST, learned_layer.BEHIND} <= set(learned_layer.WAYS)


def test_errors_are_relative_to_the_window_to_every_token_and_weighed():
    wanted = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    difference = torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    metric = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    found = learned_layer.errors_of(difference, wanted, metric)
    assert found == pytest.approx({"plain": 26 / 26, "relative": (1 + 1) / 2, "sensitivity": (1 + 4) / 2})
