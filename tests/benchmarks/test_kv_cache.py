"""What the benchmark of KV-cache codes makes of its results."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import kv_cache


def of_code(kl: float, size: float) -> dict:
    """A code whose divergence is so many times that of windows of unequal difficulty."""
    by_window = {text: [kl * hardness for hardness in (1.0, 3.0, 2.0)] for text in kv_cache.TEXTS}
    errors = {f"{kind}.{layer}": 0.1 * kl for kind in ("keys", "values") for layer in range(13)}
    return {"bytes": size, "kl": by_window, "errors": errors}


def results() -> dict:
    codes = {code: of_code(1.0, 26.0) for group in ("scalar", "lexico", "peers") for code in kv_cache.GROUPS[group]}
    codes |= {f"{kv_cache.PRODUCT}, draw {draw}": of_code(1.0, 26.0) for draw in kv_cache.DRAWS[1:]}
    codes["int3"] = of_code(2.0, 28.0)
    codes["hqq 2"]["errors"] = {}
    return {"codes": codes, "microseconds": {"rotated:3": 1.25}}


def test_codes_stand_beside_each_other_window_by_window():
    """Twice the divergence on every window is a ratio without an interval, however the windows differ."""
    rows = [line for line in kv_cache.tables(results())["pairs"].splitlines() if "| rotated:3 |" in line]
    assert "| rotated:3 | 26 | int3 | 28 | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |" in rows
    assert len(rows) == len(kv_cache.AGAINST["rotated:3"])


def test_every_code_has_a_row_in_the_order_of_bytes_and_draws_have_their_own_table():
    made = kv_cache.tables(results())
    rows = made["codes"].splitlines()[2:]
    assert len(rows) == sum(len(kv_cache.GROUPS[group]) for group in ("scalar", "lexico", "peers"))
    assert rows[-1].startswith("| int3 | 28 | 0.200 |")
    assert any(row.startswith("| rotated:3 | 26 | 0.100 |") and row.endswith("| 1.2 |") for row in rows)
    assert len(made["draws"].splitlines()) == 2 + len(kv_cache.DRAWS)
