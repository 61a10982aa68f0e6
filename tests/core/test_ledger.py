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
    Ledger(tmp_path).append("stage", stage="a")
    with (tmp_path / LEDGER_FILE).open("ab") as file:
        file.write(b'{"row": "stage", "stage": "cu')
    Ledger(tmp_path).append("stage", stage="b")
    assert [row["stage"] for row in read_rows(tmp_path / LEDGER_FILE)] == ["a", "b"]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path):
    path = tmp_path / LEDGER_FILE
    path.write_text('{"row": "stage"}\nscribble\n{"row": "stage"}\n')
    with pytest.raises(DataError, match=r"ledger\.jsonl:2: is not a ledger row"):
        read_rows(path)


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
