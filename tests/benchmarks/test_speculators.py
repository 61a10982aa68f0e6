"""What the benchmark of drafts makes of its measurements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import speculators


def test_rates_of_drafts_are_priced_by_the_times_of_steps_and_passes():
    law = {"tokens": 4, "answers": [{"coverage": 0.9} | {f"acceptance_{n}": 0.5 for n in (1, 2, 3)}] * 2}
    texts = {"answers": [{"tokens": 40, "passes": 20, "equal": True}] * 2}
    seconds = {"pass 1": [0.010], "pass 4": [0.012]} | {f"draft {size}": [0.001] for size in speculators.SIZES}
    results: dict[str, Any] = {"settings": {"length": 3}, "cost": {"seconds": seconds}}
    for size in speculators.SIZES:
        results |= {f"law {size}": law, f"texts {size}": texts}
    found = speculators.tables(results)
    assert "| V/16 = 4 | 0.900 (0.900 to 0.900) | 0.500 (0.500 to 0.500) |" in found["acceptance"]
    assert "2.00 (2.00 to 2.00) | 2 of 2 |" in found["acceptance"]
    assert "| V | 1.00 ms | 10.0% | 1.20 | 1.33 |" in found["cost"]  # 2 tokens in 3 + 12 ms, for 10 ms each
