"""The part of the page about training by rewards: pictures, difficulties, answers, the link to what was drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import CHROMIUM, WIDTHS, check_layout
from burnish.align.read_later import ReadLater
from burnish.core.ledger import Ledger
from burnish.report import write
from burnish.report.rl import views
from burnish.report.run import read_run

UPDATES = [
    {
        "step": step,
        "accuracy": 0.5 + step / 20,
        "reward": 0.4 + step / 20,
        "alpha": 0.1 * step,
        "target": 0.7,
        "without variance": 0.25,
        "none solved": 0.2,
        "all solved": 0.05,
        "clipped": 0.001,
        "ratio furthest from 1": 0.02,
        "KL to the sampler": 1e-4,
        "seconds of drawing": 2.0,
        "seconds of judging": 0.5,
        "seconds of the update": 4.0,
    }
    for step in range(1, 9)
]
SOLVED = [
    {"part": part, "right": count, "of": 4, "problems": share} | ({"tokens": 30.0 - count} if share else {})
    for part, shares in (("first quarter", (0.5, 0.25, 0.25, 0, 0)), ("last quarter", (0, 0, 0.25, 0.25, 0.5)))
    for count, share in enumerate(shares)
]
DIFFICULTY = [
    {"when": when, "drawn": drawn, "difficulty": name, "problems": 40, "accuracy": 0.9, "tokens": tokens}
    | ({} if name == "mean" else {"low": 0.8, "high": 0.96})
    for when, shorter in (("before", 1.0), ("after", 0.5))
    for drawn in ("sampled", "greedy")
    for name, tokens in (("1 steps", 10 * shorter), ("2 steps", 20 * shorter), ("mean", 15 * shorter))
]
ANSWER = {"question": "3a+<4>", "when": "before", "answer": "a3+4=7;#7", "right": True, "tokens": 10}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "run", node="shorter one")
    ledger.table("rl_training", UPDATES)
    ledger.table("rl_solved", SOLVED)
    ledger.table("rl_difficulty", DIFFICULTY)
    ledger.table("rl_counts", [{"what": "drawn tokens", "number": 12345}])
    ledger.table("rl_answers", [ANSWER])
    place = tmp_path / "run" / "drawn" / "shorter one"
    place.mkdir(parents=True)
    (place / "episodes.html").write_text("<!doctype html>\n")
    return tmp_path / "run"


def test_every_part_of_a_run_has_its_picture(run: Path) -> None:
    (view,) = views(read_run(run), run)
    drawn = {
        figure.title: {one.name: [datum.y for datum in one.data] for one in figure.series} for figure in view.figures
    }
    earned = drawn["Reward of every answer, and the controller"]
    assert set(earned) == {"right", "reward with the rule of length", "alpha", "target"}
    assert earned["right"] == [row["accuracy"] for row in UPDATES]
    assert drawn["How many answers of a problem are right"]["last quarter"] == [0, 0, 0.25, 0.25, 0.5]
    assert drawn["Length against how hard a problem is"]["first quarter"] == [30, 29, 28]
    assert drawn["Tokens by difficulty"]["after, sampled"] == [5, 10]
    assert drawn["Time of an update"] == {"drawing": [2.0] * 8, "judging": [0.5] * 8, "learning": [1.5] * 8}
    assert drawn["Ratio of trainer to sampler, less 1"] == {"of the token furthest from 1": [0.02] * 8}
    assert drawn["Divergence of trainer and sampler"] == {"k3, a token": [1e-4] * 8}
    assert not {"Staleness", "Answers by staleness"} & set(drawn)  # nothing was drawn by older weights


def test_what_older_weights_drew_has_its_pictures(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run", node="ahead")
    told = {
        "staleness": 0.5,
        "staleness at most": 1,
        "cut off by the correction": 0.02,
        "seconds of drawing ahead": 3.0,
    }
    ledger.table("rl_training", [row | told for row in UPDATES])
    ledger.table("rl_staleness", [{"staleness": 0, "answers": 96}, {"staleness": 1, "answers": 480}])
    (view,) = views(read_run(tmp_path / "run"), tmp_path)
    drawn = {figure.title: figure for figure in view.figures}
    (answers,) = drawn["Answers by staleness"].series
    assert [(one.x, one.y) for one in answers.data] == [(0, 96), (1, 480)]
    assert [one.name for one in drawn["Staleness"].series] == ["mean", "largest"]
    assert "tokens that the correction cuts off" in [one.name for one in drawn["Shares"].series]
    assert drawn["Time of an update"].note.endswith("Answers of later updates were drawn in 24\xa0s.")


def test_updates_on_answers_that_were_there_already_have_their_time_and_ratio(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run", node="twice")
    again = {"step": 2, "ratio furthest from 1": 0.1, "clipped": 0.2, "seconds of the update": 1.0}
    ledger.table("rl_training", [UPDATES[0], again])
    (view,) = views(read_run(tmp_path / "run"), tmp_path)
    drawn = {
        figure.title: {one.name: [datum.y for datum in one.data] for one in figure.series} for figure in view.figures
    }
    assert drawn["Time of an update"] == {"drawing": [2.0, 0.0], "judging": [0.5, 0.0], "learning": [1.5, 1.0]}
    assert drawn["Ratio of trainer to sampler, less 1"] == {"of the token furthest from 1": [0.02, 0.1]}


@pytest.mark.parametrize(("updates", "iterations", "kept"), [(60, 1, 8), (60, 2, 8), (9, 4, 3), (1, 3, 1)])
def test_what_is_kept_is_of_updates_that_draw_and_evenly_apart(updates: int, iterations: int, kept: int) -> None:
    steps = sorted(ReadLater(updates, iterations).steps)
    assert len(steps) == kept and steps[0] == 0 and all(step % iterations == 0 for step in steps)
    assert updates - steps[-1] <= iterations


def test_a_reward_without_a_rule_of_length_is_drawn_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run", node="correct")
    ledger.table("rl_training", [{"step": step, "accuracy": 0.5, "reward": 0.5} for step in (1, 2)])
    (view,) = views(read_run(tmp_path / "run"), tmp_path)
    assert [one.name for one in view.figures[0].series] == ["right"]
    assert view.difficulty is None and view.page == ""


def test_difficulties_have_their_interval_and_sampled_answers_come_first(run: Path) -> None:
    (view,) = views(read_run(run), run)
    assert view.difficulty is not None
    sampled, greedy = view.difficulty.sections
    assert (sampled.title, greedy.title) == ("sampled", "greedy")
    assert [cell.text for cell in sampled.rows[0].cells] == ["0.900", "0.900", "10.0", "5.0"]
    assert sampled.rows[0].cells[0].below[0].text == "0.800 to 0.960"
    assert not sampled.rows[-1].cells[0].below


def test_the_page_shows_it_all_escaped_and_leads_to_what_was_drawn(run: Path) -> None:
    page = write(run).read_text(encoding="utf-8")
    assert 'href="drawn/shorter%20one/episodes.html"' in page
    assert "3a+&lt;4&gt;" in page and "12,345" in page
    assert "<summary>rl" not in page  # no table is left over
    assert page.count("<figcaption>Accuracy<") == 1 and "<figcaption>Without variance<" not in page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.slow
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary on this machine")
def test_the_page_fits_every_screen(run: Path, tmp_path: Path, width: int) -> None:
    check_layout(write(run).read_text(encoding="utf-8"), width, tmp_path)
