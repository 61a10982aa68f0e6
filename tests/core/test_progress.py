"""What a log says of work that goes on from an earlier process, and of work that fails."""

import re

import pytest

from burnish.core.progress import Progress


def test_work_of_an_earlier_process_counts_in_the_share_but_not_in_the_rate(capsys):
    with Progress().task("training", total=100_000, unit="tokens", done=80_000) as task:
        task.started -= 20  # it has been running for 20 seconds
        task.last_line -= 20
        task.advance(4000)
    found = re.match(r"training: 84,000/100,000 tokens \(84%\), (\d+)/s, (\d+) min", capsys.readouterr().err)
    assert found and float(found[1]) == pytest.approx(200, rel=0.05) and found[2] == "1"


def test_more_work_than_was_estimated_is_not_more_than_all_of_it(capsys):
    with Progress().task("training", total=1000, unit="tokens") as task:
        task.started -= 20
        task.last_line -= 20
        task.advance(1020)
    assert re.match(r"training: 1,020/1,020 tokens \(100%\), \d+/s, 0\.0 s left", capsys.readouterr().err)


def test_work_that_failed_is_not_called_done(capsys):
    with pytest.raises(ValueError, match="broken"), Progress().task("training") as task:
        task.started -= 20
        raise ValueError("broken")
    assert capsys.readouterr().err.startswith("training: stopped after 20 s")


def test_a_task_inside_a_task_is_silent_and_the_next_one_is_not(capsys):
    progress = Progress()
    with progress.task("rounding", total=2) as task:
        with progress.task("collecting") as inner:
            inner.started -= 20
        task.started -= 20
    assert capsys.readouterr().err == "rounding: done in 20 s\n"
    with progress.task("collecting") as task:
        task.started -= 20
    assert capsys.readouterr().err == "collecting: done in 20 s\n"
