"""The part of the page about episodes: funnel, tokens and losses by kind, links that hold wherever the page lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.core.ledger import Ledger
from burnish.data.trajectories.kinds import KIND_NAMES
from burnish.report import write
from burnish.report.episodes import BY_KIND, figures, views
from burnish.report.run import read_run

FUNNEL = [
    {"filter": "all", "dropped": 0, "left": 40, "sample": []},
    {"filter": "tests", "dropped": 30, "left": 10, "sample": [{"episode": "e<1>", "reason": "edits <tests>"}]},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "run", node="curated rows")
    ledger.table("funnel", FUNNEL)
    ledger.table("trained tokens", [{"kind": "edit", "tokens": 30}, {"kind": "final", "tokens": 10}])
    names = [*(f"loss_{name}" for name in KIND_NAMES.values()), "loss_first_token", "loss_unlearned"]
    losses = [{"step": step, "loss": 9 - step, "lr": 0.1, **dict.fromkeys(names, 8 - step)} for step in (1, 2, 2, 3)]
    Ledger(tmp_path / "run", node="trained").table("loss", losses)
    place = tmp_path / "run" / "nodes" / "curated rows"
    place.mkdir(parents=True)
    (place / "episodes.html").write_text("<!doctype html>\n")
    return tmp_path / "run"


def test_the_funnel_says_what_is_left_and_what_was_dropped_with_a_sample(run: Path):
    (view,) = views(read_run(run), run)
    cells = [[cell.text for cell in row.cells if not cell.drawing] for row in view.funnel.sections[0].rows]
    assert cells == [["40", ""], ["10", "30"]]
    assert view.samples == [("tests", "e<1>", "edits <tests>")]
    assert view.tokens is not None
    shares = [row.cells[-1].text.replace("\N{NO-BREAK SPACE}", " ") for row in view.tokens.sections[0].rows]
    assert shares == ["75.0 %", "25.0 %"]
    page = write(run).read_text(encoding="utf-8")
    assert "e&lt;1&gt;" in page and "<tests>" not in page


def test_losses_by_kind_have_a_picture_of_their_own(run: Path):
    (figure,) = figures(read_run(run))
    assert [one.name for one in figure.series] == list(BY_KIND.values())
    assert [(datum.x, datum.y) for datum in figure.series[0].data] == [(1, 7), (2, 6), (3, 5)]
    page = write(run).read_text(encoding="utf-8")
    assert page.count("<figcaption>Loss by kind of token, trained<") == 1
    assert "trained, loss reasoning" not in page


def test_the_link_leads_to_the_rows_from_wherever_the_page_lies(run: Path, tmp_path: Path):
    assert 'href="nodes/curated%20rows/episodes.html"' in write(run).read_text(encoding="utf-8")
    elsewhere = write(run, out=tmp_path / "pages" / "both.html").read_text(encoding="utf-8")
    assert 'href="../run/nodes/curated%20rows/episodes.html"' in elsewhere
    (run / "nodes" / "curated rows" / "episodes.html").unlink()
    assert "token by token" not in write(run).read_text(encoding="utf-8")


def test_a_table_of_that_name_from_elsewhere_is_left_as_it_is(tmp_path: Path):
    Ledger(tmp_path, node="other").table("funnel", [{"place": 1}])
    assert views(read_run(tmp_path), tmp_path) == []
