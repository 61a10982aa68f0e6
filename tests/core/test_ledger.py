import json
from pathlib import Path

import pytest

from burnish.core.errors import DataError
from burnish.core.ledger import LEDGER_FILE, Ledger, protocol_hash, read_rows

PROTOCOL = {"text": "wikitext2-test", "tokens": 4096, "dtype": "float32"}


def test_a_measurement_is_found_again_by_checkpoint_and_protocol(tmp_path: Path):
    Ledger(tmp_path, node="a").measurement(checkpoint="c1", path="p", protocol=PROTOCOL, metrics={"kl": {"value": 0.1}})
    ledger = Ledger(tmp_path)
    found = ledger.measured("c1", PROTOCOL)
    assert found is not None
    assert found["metrics"]["kl"]["value"] == 0.1
    assert ledger.measured("c2", PROTOCOL) is None
    assert ledger.measured("c1", PROTOCOL | {"dtype": "bfloat16"}) is None


def test_a_protocol_is_named_by_its_content_not_by_the_order_of_its_keys():
    assert protocol_hash(PROTOCOL) == protocol_hash(dict(reversed(PROTOCOL.items())))
    assert protocol_hash(PROTOCOL) == protocol_hash(PROTOCOL | {"hash": "whatever"})


def test_sequences_come_back_as_written(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.write_sequences("c", PROTOCOL, {"nats": [1.0, 2.5], "tokens": [10, 20]})
    assert ledger.read_sequences("c", PROTOCOL) == {"nats": [1.0, 2.5], "tokens": [10, 20]}


def test_a_row_cut_by_a_crash_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path):
    Ledger(tmp_path).append("stage", stage="a", checkpoint="1")
    with (tmp_path / LEDGER_FILE).open("ab") as file:
        file.write(b'{"row": "stage", "stage": "cu')
    Ledger(tmp_path).append("stage", stage="b", checkpoint="2")
    assert [row["stage"] for row in read_rows(tmp_path / LEDGER_FILE)] == ["a", "b"]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path):
    path = tmp_path / LEDGER_FILE
    path.write_text('{"row": "note", "node": ""}\nscribble\n{"row": "note", "node": ""}\n')
    with pytest.raises(DataError, match=r"ledger\.jsonl:2: is not a ledger row"):
        read_rows(path)


MEASURED = {"row": "measurement", "node": "a", "checkpoint": "c", "protocol": {"hash": "h"}, "metrics": {}}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "does not say what kind of row it is"),
        ({"row": 3}, "does not say what kind of row it is"),
        ({"row": "stage", "node": "a"}, "a stage has no 'stage'"),
        ({"row": "stage", "node": "a", "stage": "s", "checkpoint": 5}, "a stage has checkpoint that is a number"),
        ({"row": "stage", "node": "a", "stage": "s", "checkpoint": "c", "seconds": "long"}, "a cost that is no number"),
        (MEASURED | {"metrics": []}, "a measurement has metrics that is a list"),
        (MEASURED | {"protocol": {}}, "a measurement has a protocol without 'hash'"),
        (MEASURED | {"metrics": {"kl": {"value": "small"}}}, "a measurement has kl without a value that is a number"),
        (MEASURED | {"metrics": {"kl": 3}}, "a measurement has kl without a value that is a number"),
        ({"row": "table", "node": "a", "name": "layers", "rows": [1]}, "a table has a row that is no object"),
    ],
)
def test_a_row_that_was_edited_is_named_by_its_line(tmp_path: Path, row: object, said: str):
    path = tmp_path / LEDGER_FILE
    path.write_text(f"{json.dumps({'row': 'note', 'node': ''})}\n\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=f"ledger.jsonl:3: .*{said}; remove that line"):
        read_rows(path)


def test_damaged_values_of_sequences_are_named(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.write_sequences("c", PROTOCOL, {"nats": [1.0]})
    (file,) = (tmp_path / "sequences").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"\.parquet: cannot be read .*; delete it"):
        ledger.read_sequences("c", PROTOCOL)


def test_a_value_that_is_not_finite_is_never_written(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Ledger(tmp_path).append("stage", loss=float("nan"))


def test_values_of_sequences_are_on_the_disk_before_they_take_their_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("burnish.core.checkpoint.durable.fsync", lambda path: synced.append((path, path.is_file())))
    ledger = Ledger(tmp_path)
    ledger.write_sequences("abc", {"text": "t"}, {"loss": [1.0]})
    ((temporary, written),) = synced
    assert written and temporary.name.endswith(".tmp")
    assert ledger.read_sequences("abc", {"text": "t"}) == {"loss": [1.0]}
    assert [path.suffix for path in (tmp_path / "sequences").iterdir()] == [".parquet"]
