import numpy as np
import pytest
import torch

from burnish.evaluate.speed import median_and_spread, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def test_median_is_between_the_slowest_and_the_fastest():
    assert median_and_spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)


def test_peak_memory_remembers_what_was_freed():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    block = np.ones(900_000_000, dtype=np.uint8)
    del block
    assert peak_memory(CPU) - before > 40_000_000


def test_peak_memory_is_forgotten_on_reset():
    block = np.ones(100_000_000, dtype=np.uint8)
    del block
    high = peak_memory(CPU)
    reset_peak_memory(CPU)
    if peak_memory(CPU) == high:
        pytest.skip("this kernel does not let a process reset its peak memory")
    assert peak_memory(CPU) < high - 40_000_000
