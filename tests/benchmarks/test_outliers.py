"""What the benchmark of outliers makes of its results."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import outliers


def test_every_bias_stands_beside_none_window_by_window():
    """Half of the divergence on every window is a ratio without an interval, however the windows differ."""
    by_window = {text: [0.1, 0.3, 0.2] for text in outliers.TEXTS}
    half = {text: [kl / 2 for kl in some] for text, some in by_window.items()}
    kl = {f"activations, {arm}": half for arm in outliers.ACTIVATIONS}
    kl |= {f"weights, {arm}": by_window for arm in outliers.WEIGHTS}
    kl[f"activations, {outliers.NONE}"] = by_window
    lines = outliers.bias_table({"kl": kl}).splitlines()
    assert "| activations, no bias | 0.2000 |  | 0.2000 |  |" in lines
    assert (
        "| activations, learned on the whole error | 0.1000 | 0.50 (0.50 to 0.50) | 0.1000 | 0.50 (0.50 to 0.50) |"
        in lines
    )
    assert "| weights, the mean, folded behind the rounded weights | 0.2000 | 1.00 (1.00 to 1.00)" in "\n".join(lines)
    assert len(lines) == 2 + len(outliers.ACTIVATIONS) + len(outliers.WEIGHTS)
