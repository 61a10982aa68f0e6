import json
from dataclasses import replace

import pytest

from burnish.core.errors import DataError, OutputError
from burnish.core.ledger import Ledger
from burnish.core.recipe import START
from burnish.report import render
from burnish.report.compare import checkpoints
from burnish.report.protocols import protocol_differences
from burnish.report.run import read_run


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such run directory"):
        render([tmp_path / "nowhere"])


def test_a_directory_without_a_ledger_says_so(tmp_path):
    with pytest.raises(DataError, match=r"has no ledger\.jsonl, so it is not a run directory; give the directory"):
        render([tmp_path])


def test_an_empty_ledger_says_so(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(DataError, match=r"the ledger is empty; run the recipe first"):
        render([tmp_path])


def test_no_directories_at_all_say_so():
    with pytest.raises(DataError, match="no run directory was given"):
        render([])


def test_a_newer_run_format_asks_for_an_upgrade(make_run):
    run = make_run()
    (run / "run.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(OutputError, match=r"newer burnish \(run format 2, this one reads up to 1\); upgrade burnish"):
        render([run])


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"format": "new"}'])
def test_a_damaged_run_file_says_so(make_run, text):
    run = make_run()
    (run / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"run\.json.* damaged"):
        render([run])


def test_a_measurement_without_metrics_is_named_by_its_row(tmp_path):
    Ledger(tmp_path).append("measurement", checkpoint="a", protocol={"hash": "b"})
    with pytest.raises(DataError, match=r"ledger\.jsonl:1: a measurement has no 'metrics'"):
        render([tmp_path])


def test_a_row_that_is_no_object_is_named(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="does not say what kind of row it is"):
        render([tmp_path])


def test_rows_of_unknown_kinds_are_counted_and_passed_over(make_run):
    run = make_run()
    Ledger(run, node="start").append("weather", sky="blue")
    assert read_run(run).num_unknown_rows == 1


def test_without_a_run_file_the_tree_comes_from_the_hashes(make_run):
    run = read_run(make_run(state=False))
    assert {node.name: node.parent for node in run.nodes} == {
        "nearest 3 bit": START,
        "yaqa 3 bit": START,
        "yaqa 4 bit": START,
        "healed": "yaqa 3 bit",
    }


def test_only_the_newest_checkpoint_of_a_node_is_shown(make_run):
    directory = make_run(state=False)
    ledger = Ledger(directory, node="healed")
    old = read_run(directory).checkpoints["healed"]
    row = next(row for row in ledger.rows if row["row"] == "measurement" and row["node"] == "healed")
    ledger.append("stage", stage="distill", checkpoint="f" * 64, seconds=1.0)
    ledger.measurement(checkpoint="f" * 64, path="x", protocol=row["protocol"], metrics=row["metrics"])
    shown = [column.digest for column in checkpoints([read_run(directory)])]
    assert "f" * 64 in shown and old not in shown


def renamed(directory, old: str, new: str) -> None:
    """As the runner leaves it: the node ran again under its new name, and `run.json` knows only that."""
    state = json.loads((directory / "run.json").read_text().replace(json.dumps(old), json.dumps(new)))
    (directory / "run.json").write_text(json.dumps(state))
    lines = (directory / "ledger.jsonl").read_text().splitlines()
    again = [line.replace(json.dumps(old), json.dumps(new)) for line in lines if f'"node": {json.dumps(old)}' in line]
    (directory / "ledger.jsonl").write_text("\n".join([*lines, *again]) + "\n")


def test_a_node_that_the_recipe_no_longer_has_is_not_shown(make_run, nodes, rows):
    directory = make_run([replace(nodes[1], tables={"layers": rows.layers}), nodes[2]])
    renamed(directory, "yaqa 3 bit", "new name")
    run = read_run(directory)
    assert list(run.checkpoints) == ["start", "new name", "yaqa 4 bit"]
    assert {table.node for table in run.tables} == set(run.costs) - {"yaqa 4 bit"} == {"new name"}
    assert "yaqa 3 bit" not in render([directory])


def test_what_was_measured_beside_the_recipe_is_shown(make_run):
    directory = make_run()
    row = next(row for row in Ledger(directory).rows if row["row"] == "measurement")
    Ledger(directory, node="elsewhere").measurement(
        checkpoint="e" * 64, path="x", protocol=row["protocol"], metrics=row["metrics"]
    )
    assert read_run(directory).checkpoints["elsewhere"] == "e" * 64


def test_a_node_whose_settings_changed_has_no_checkpoint_until_it_ran(make_run, nodes):
    """The recipe was changed and run again, and the run was killed within the node."""
    directory = make_run()
    state = json.loads((directory / "run.json").read_text())
    entry = next(entry for entry in state["tree"] if entry["name"] == "yaqa 4 bit")
    entry["status"] = "running"
    del entry["hash"]
    (directory / "run.json").write_text(json.dumps(state))
    assert "yaqa 4 bit" not in read_run(directory).checkpoints


def test_a_checkpoint_that_was_measured_under_another_name_is_still_found(make_run):
    """Two nodes that come out the same are measured once."""
    directory = make_run()
    same = read_run(directory).checkpoints["yaqa 4 bit"]
    Ledger(directory, node="twin").append("stage", stage="quantize", checkpoint=same, seconds=1.0)
    (directory / "run.json").unlink()
    twin = next(column for column in checkpoints([read_run(directory)]) if column.node == "twin")
    assert twin.measured


def test_protocol_differences_name_nested_and_missing_fields():
    first = {"context": 1024, "model": {"dtype": "float32"}, "hash": "a"}
    second = {"context": 1024, "model": {"dtype": "bfloat16"}, "threads": 2, "hash": "b"}
    assert protocol_differences(first, second) == [("model.dtype", "float32", "bfloat16"), ("threads", None, 2)]
