"""Scores against density: a picture for each node, length and protocol, with the dense score at density 1."""

from pathlib import Path

from burnish.core.ledger import Ledger
from burnish.report import write
from burnish.report.run import read_run
from burnish.report.sparse import figures


def cost(attention, density, score, task="vt", protocol="B", layers=()):
    row = {"task": task, "length": 1024, "attention": attention, "attention_protocol": protocol}
    row |= {"dense_layers": list(layers), "density": density, "score": score}
    return row | {"score_low": score - 0.1, "score_high": min(1.0, score + 0.1)}


def dense(score, task="vt"):
    return {"task": task, "length": 1024, "prompts": 9, "score": score, "score_low": score, "score_high": score}


def run_of(place: Path, *tables):
    for name, rows in tables:
        Ledger(place, node="mine").table(name, rows)
    return place


def test_the_frontier_is_the_best_mean_at_a_density_or_below(tmp_path: Path):
    rows = [cost("topk:0.1", 0.1, 0.6), cost("sink:4+quest:0.3", 0.3, 0.5), cost("local:90", 0.5, 0.8)]
    others = [cost("topk:0.1", 0.1, 0.2, "fwe"), cost("sink:4+quest:0.3", 0.3, 0.7, "fwe")]
    run_of(tmp_path, ("ruler_scores", [dense(0.9), dense(0.8, "fwe")]), ("sparse_attention", rows + others))
    (figure,) = figures(read_run(tmp_path))
    assert [one.name for one in figure.series] == ["vt", "fwe"]
    assert [datum.label for datum in figure.series[0].data] == ["topk", "quest", "local", "dense"]
    assert figure.series[1].data[-1].y == 0.8 and figure.series[1].data[-1].x == 1
    # local:90 was not asked for fwe, so that it has no mean of the tasks.
    assert [(round(x, 2), round(y, 2)) for x, y in figure.steps] == [
        (0.1, 0.4), (0.3, 0.4), (0.3, 0.6), (1.0, 0.6), (1.0, 0.85),
    ]  # fmt: skip


def test_protocols_have_pictures_of_their_own_and_the_newest_measurement_counts(tmp_path: Path):
    first = [
        cost("topk:0.1", 0.1, 0.6),
        cost("topk:0.1", 0.1, 0.9, protocol="A"),
        cost("topk:0.1", 0.1, 0.7, layers=(0,)),
    ]
    run_of(tmp_path, ("sparse_attention", first), ("sparse_attention", [cost("topk:0.1", 0.2, 0.5)]))
    plain, of_answers, with_dense = figures(read_run(tmp_path))
    assert [(datum.x, datum.y) for datum in plain.series[0].data] == [(0.2, 0.5)]
    assert "the answer sparse" in of_answers.note and "dense layers 0" in with_dense.note
    page = write(tmp_path).read_text(encoding="utf-8")
    assert page.count("Score against density, mine") >= 3


def test_scores_by_sparse_attention_are_not_taken_for_dense_ones(tmp_path: Path):
    rows = [dense(0.9), dense(0.2) | {"attention": "topk:0.1"}]
    run_of(tmp_path, ("ruler_scores", rows), ("sparse_attention", [cost("topk:0.1", 0.1, 0.2)]))
    (figure,) = figures(read_run(tmp_path))
    assert [datum.y for datum in figure.series[0].data] == [0.2, 0.9]


def test_a_run_without_sparse_attention_has_no_such_picture(tmp_path: Path):
    assert figures(read_run(run_of(tmp_path, ("ruler_scores", [dense(0.9)])))) == []
