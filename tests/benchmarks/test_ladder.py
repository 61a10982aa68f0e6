"""What the benchmark of ladder residuals makes of its timelines."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import ladder


def test_the_share_under_computation_is_that_of_the_time_of_communication():
    assert ladder.share_under([(0.0, 1.0), (2.0, 4.0)], [(0.5, 2.5), (3.0, 3.25)]) == pytest.approx(1.25 / 3)
    assert ladder.share_under([(0.0, 1.0)], [(1.0, 2.0)]) == 0.0
    assert ladder.share_under([(0.0, 1.0)], [(-1.0, 2.0)]) == 1.0


def test_a_trace_has_every_interval_on_the_line_of_its_kind():
    events = ladder.chrome_trace({"ladder": ([(1.0, 1.5)], [(1.25, 2.0), (2.0, 3.0)])})
    assert [(event["tid"], event["ts"], event["dur"]) for event in events] == [
        ("communication", 1e6, 5e5),
        ("computation", 1.25e6, 7.5e5),
        ("computation", 2e6, 1e6),
    ]


def test_a_row_of_overlap_has_the_best_of_both_and_the_median_of_ratios_in_turns():
    seconds = {"standard": [0.2, 0.4, 0.2], "ladder": [0.1, 0.1, 0.2]}
    runs = {"overlap, 5 ms asleep": {"seconds": seconds, "under": {"standard": 0.0, "ladder": 0.9}}}
    assert list(ladder.overlap_rows(runs)) == [["5 ms asleep", "200", "100", "0.50", "0.50", "0%", "90%"]]


def test_the_priced_gains_stand_beside_the_published_ones():
    rows = list(ladder.price_rows())
    assert [row[:2] for row in rows] == [[ranks, batch] for batch, ranks, *_ in ladder.PUBLISHED]
    assert all(abs(float(row[2]) / float(row[3]) - 1) < 0.05 for row in rows)


@pytest.mark.slow
def test_two_processes_hide_communication_in_a_ladder_and_nowhere_else():
    """By how much depends on what else the machine does; not at all would be a wait in the wrong place."""
    found = ladder.overlap(50, False)
    assert found["under"]["standard"] == pytest.approx(0.0, abs=0.02)
    assert found["under"]["ladder"] > 0.5
