from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.core.ledger import Ledger
from burnish.report import ledger_table, read_run
from burnish.report.compare import checkpoints
from burnish.report.engine_speed import FASTER, SAME, SLOWER, comparisons, sentences
from burnish.report.page import render

PROTOCOL = {
    "measures": "speed in an engine",
    "engine": "vLLM 0.32.0",
    "instructions": "AVX512",
    "mode": "eager",
    "device": "cpu (Example CPU)",
    "threads": 1,
    "batches": ["1x128", "4x128"],
    "in_turns": True,
}
SPEEDS = {
    "start": (600.0, 30.0),
    "nearest 3 bit": (300.0, 30.0),
    "yaqa 3 bit": (900.0, 27.0),
    "yaqa 4 bit": (600.0, 27.0),
    "healed": (600.0, 33.0),
}
"""Tokens a second of reading and of answering."""


def add_speeds(run: Path, *, sessions: bool = True, note: str = "", refused: str = "", **protocol: Any) -> None:
    """Rows as a measurement in an engine writes them: five rounds, in which the machine slows down for all alike."""
    drift = np.linspace(1.0, 1.2, 5)
    known = {row["node"]: row for row in Ledger(run).rows if row["row"] == "measurement"}
    for number, (node, (prefill, decode)) in enumerate(SPEEDS.items()):
        own = drift * (1 + 0.01 * np.random.default_rng(number).normal(size=5))
        metrics, columns = {}, {}
        for shape in PROTOCOL["batches"]:
            for name, rate in (("prefill", prefill), ("decode", decode)):
                columns |= {f"{name}@{shape}": list(own / rate), f"{name}_cpu@{shape}": list(2 * own / rate)}
                value = {"value": rate, "low": rate * 0.9, "high": rate * 1.1, "unit": "token/s", "note": note}
                metrics[f"{name}_speed@{shape}"] = value
            metrics[f"wall_over_cpu@{shape}"] = metrics[f"time_to_first_token@{shape}"] = one(0.5)
        metrics |= {"start_up_time": one(13.0), "engine_peak_memory": one(2e9)}
        facts = {"dtype": "bfloat16", "kernels": ["SomeKernel"] if number else [], "session": "a" if sessions else node}
        if node == refused:
            metrics, columns = {"decode_speed@1x128": one(None) | {"note": "not measured: no kernel for 3 bits"}}, {}
        ledger, row = Ledger(run, node=node), known[node]
        used = PROTOCOL | protocol
        if columns:
            ledger.write_sequences(row["checkpoint"], used, columns)
        ledger.measurement(checkpoint=row["checkpoint"], path=row["path"], protocol=used, metrics=metrics, facts=facts)


def one(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "unit": "", "note": ""}


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


def found(run: Path) -> Any:
    return comparisons(checkpoints([read_run(run)]))[0]


def test_ratios_are_paired_over_rounds_so_that_a_drift_of_the_machine_leaves_them(run: Path):
    add_speeds(run)
    compared = found(run)
    verdicts = {
        entry.label: [compared.judged(entry, what, "1x128") for what in ("prefill", "decode")]
        for entry in compared.entries[1:]
    }
    assert {name: [one[1] for one in both] for name, both in verdicts.items()} == {
        "nearest 3 bit": [SLOWER, SAME],
        "yaqa 3 bit": [FASTER, SLOWER],
        "yaqa 4 bit": [SAME, SLOWER],
        "healed": [SAME, FASTER],
    }
    ratio = verdicts["yaqa 3 bit"][0][0]
    assert ratio.value == pytest.approx(1.5, rel=0.02)
    assert ratio.high - ratio.low < 0.1


def test_the_report_says_in_words_who_is_faster_and_who_is_slower(run: Path):
    add_speeds(run)
    told = sentences(found(run))
    assert told[0].startswith("nearest 3 bit: slower than start in reading 128 tokens 0.50 times (0.49 to 0.51)")
    assert told[-1] == (
        "fastest on this machine: yaqa 3 bit for reading 128 tokens; "
        "healed for decoding 1 at a time after 128 and decoding 4 at a time after 128"
    )
    page = render([run])
    assert "Speed in vLLM 0.32.0 (eager, 1 thread, AVX512) on cpu (Example CPU)" in page
    assert "SomeKernel" in page
    assert all(line in page for line in told)


def test_the_first_table_has_the_engines_decode_speed_where_all_have_one(run: Path):
    assert "not measured" in render([run])
    add_speeds(run)
    page = render([run])
    assert "one prompt of 128 tokens at a time" in page
    assert "transformers decompresses packed weights" not in page.split("Other measurements")[0]


def test_the_headline_says_slower_where_it_is_slower(run: Path):
    add_speeds(run)
    assert "decodes at 1.1" in (page := render([run]))
    assert "faster than the start" in page
    assert "no difference shown" in page  # of the checkpoint rounded to nearest


def test_a_disturbed_batch_is_compared_by_processor_time(run: Path):
    add_speeds(run, note="disturbed by other work")
    compared = found(run)
    assert compared.judged(compared.entries[1], "prefill", "1x128")[2] is True
    assert any(line.startswith("other work disturbed start") for line in sentences(compared))


def test_no_ratio_is_claimed_of_what_was_not_asked_in_turns(run: Path):
    add_speeds(run, in_turns=False)
    compared = found(run)
    assert compared.judged(compared.entries[1], "prefill", "1x128") is None
    assert "memory did not hold all engines at once" in " ".join(sentences(compared))
    page = render([run])
    assert "not compared, because they were not measured together" in page
    assert "speed not measured" not in page  # its rates stand below


def test_rates_of_a_busy_machine_are_no_comparison_where_engines_ran_one_after_another(run: Path):
    add_speeds(run, in_turns=False, note="disturbed by other work")
    told = " ".join(sentences(found(run)))
    assert "which of them is faster cannot be seen" in told
    assert "ratios marked CPU" not in told


def test_no_ratio_is_claimed_of_two_measurements(run: Path):
    add_speeds(run, sessions=False)
    compared = found(run)
    assert compared.judged(compared.entries[1], "prefill", "1x128") is None


def test_what_the_engine_does_not_load_is_said_with_its_reason(run: Path):
    add_speeds(run, refused="nearest 3 bit")
    assert "nearest 3 bit does not run there: no kernel for 3 bits" in sentences(found(run))
    assert "does not run there" in render([run])


def test_the_terminal_shows_the_engines_speed(run: Path):
    from rich.console import Console

    add_speeds(run)
    console = Console(width=100, record=True)
    console.print(ledger_table(read_run(run)))
    assert "27.0" in console.export_text()
