"""Models of 40 families take the same steps wrapped and plain; `tests/optim/test_routing.py` has 4 of them in CI."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import families


@pytest.mark.long
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_takes_the_same_steps_however_it_is_wrapped(family):
    found = {wrapper: families.outcome(family, wrapper) for wrapper in families.wrappers_of(family)}
    assert not {wrapper: one["fault"] for wrapper, one in found.items() if "fault" in one}


def test_a_wrapper_that_changes_the_steps_is_found(monkeypatch):
    def wrong(model):
        next(model.parameters()).data.mul_(2)
        return model

    monkeypatch.setitem(families.WRAP, "compiled", wrong)
    assert "weights differ by" in families.outcome("llama", "compiled")["fault"]
