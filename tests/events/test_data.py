"""Reading and checking events: good tables in every format, and every kind of bad one."""

import json
from pathlib import Path

import numpy as np
import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.events import EventDataset, EventSequence
from burnish.events.hawkes import PRESETS, simulate_hawkes

CSV = "machine,hours,alarm\nm1,0.5,hot\nm1,2.0,cold\nm2,0.7,hot\nm2,0.9,hot\nm2,3.5,cold\n"
COLUMNS = {"sequence": "machine", "time": "hours", "mark": "alarm"}


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(CSV)
    return path


def test_csv_with_named_columns(csv: Path) -> None:
    dataset = EventDataset.from_csv(csv, **COLUMNS)
    assert [len(s) for s in dataset.sequences] == [2, 3]
    assert dataset.mark_names == ("cold", "hot")
    assert dataset.sequences[1].times.tolist() == [0.7, 0.9, 3.5]


def test_formats_agree(csv: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(csv)
    frame.to_parquet(tmp_path / "log.parquet")
    lines = [json.dumps(row) for row in frame.to_dict("records")]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    whole = frame.groupby("machine").agg(list).reset_index().to_dict("records")
    (tmp_path / "whole.jsonl").write_text("\n".join(json.dumps(row) for row in whole))
    expected = EventDataset.from_csv(csv, **COLUMNS)
    for found in (
        EventDataset.from_pandas(frame, **COLUMNS),
        EventDataset.from_parquet(tmp_path / "log.parquet", **COLUMNS),
        EventDataset.from_jsonl(tmp_path / "log.jsonl", **COLUMNS),
        EventDataset.from_jsonl(tmp_path / "whole.jsonl", **COLUMNS),
    ):
        assert found.mark_names == expected.mark_names
        for mine, theirs in zip(found.sequences, expected.sequences, strict=True):
            assert np.array_equal(mine.times, theirs.times)
            assert np.array_equal(mine.marks, theirs.marks)


def test_timestamps_become_seconds_without_rounding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,mark\n2024-01-01 00:00:00.000001,a\n2024-01-01 00:00:00.000004,b\n2024-01-01 00:01:00,a\n")
    dataset = EventDataset.from_csv(path, sequence=None)
    assert dataset.unit == "seconds"
    assert dataset.sequences[0].gaps[1] == pytest.approx(3e-6, rel=1e-9)


def test_absolute_seconds_count_from_the_first_event() -> None:
    sequence = EventSequence([1.7e9, 1.7e9 + 3.0], [0, 0])
    assert sequence.gaps.tolist() == [0.0, 3.0]


def test_absolute_seconds_in_a_table_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,mark\n1700000000.0,a\n1700000003.5,b\n1700000009.0,a\n")
    dataset = EventDataset.from_csv(path, sequence=None)
    assert dataset.sequences[0].start is None
    assert "unknown" in dataset.notes[0]


def test_whole_number_types_are_a_vocabulary_in_order_of_size(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,mark\n0.5,404\n1.5,200\n1.7,1000\n")
    dataset = EventDataset.from_csv(path, sequence=None)
    assert dataset.mark_names == ("200", "404", "1000")
    assert dataset.sequences[0].marks.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,mark\n2.0,a\n1.0,b\n", "go back"),
        ("time,mark\n1.0,a\n,b\n", "row 2"),
        ("time,mark\n1.0,a\nnan,b\n", "row 2"),
        ("time,mark\nnoon,a\n", "'noon' in row 1"),
        ("time,mark\n", "no events"),
        ("tiem,mark\n1.0,a\n", "did you mean 'tiem'"),
    ],
)
def test_bad_tables_are_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        EventDataset.from_csv(path, sequence=None)


def test_unsorted_rows_can_be_sorted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,mark\n2.0,a\n1.0,b\n")
    assert EventDataset.from_csv(path, sequence=None, sort=True).sequences[0].times.tolist() == [1.0, 2.0]


def test_interleaved_sequences_are_separated(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sequence_id,time,mark\nb,1,x\na,1,x\nb,2,x\na,3,x\n")
    dataset = EventDataset.from_csv(path)
    assert sorted(s.gaps[1] for s in dataset.sequences) == [1.0, 2.0]


def test_unknown_mark_names_the_nearest(csv: Path) -> None:
    with pytest.raises(DataError, match=r"'hot'.*did you mean 'hott'"):
        EventDataset.from_csv(csv, mark_names=("cold", "hott"), **COLUMNS)


@pytest.mark.parametrize("bad", [{"times": [0.0, float("nan")]}, {"times": [0.0, -1.0]}, {"marks": [0, -1]}])
def test_bad_sequences_are_refused(bad: dict) -> None:
    with pytest.raises(DataError):
        EventSequence(**({"times": [0.0, 1.0], "marks": [0, 0]} | bad))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        EventDataset.from_csv(tmp_path / "none.csv")


def test_split_parts_are_disjoint_and_complete(hawkes: EventDataset) -> None:
    names = [{s.name for s in part.sequences} for part in hawkes.split((0.7, 0.2, 0.1), seed=1)]
    assert set.union(*names) == {s.name for s in hawkes.sequences}
    assert sum(map(len, names)) == len(hawkes)


def test_split_of_too_few_sequences_is_refused(hawkes: EventDataset) -> None:
    two = hawkes.with_sequences(hawkes.sequences[:2])
    with pytest.raises(DataError, match="empty"):
        two.split((0.8, 0.1, 0.1))


def test_split_by_time_keeps_the_gap_across_the_cut(hawkes: EventDataset) -> None:
    past, future = hawkes.split_by_time((0.5, 0.5))
    whole = hawkes.sequences[0]
    tail = future.sequences[0]
    assert np.concatenate([past.sequences[0].gaps, tail.gaps[tail.context :]]).tolist() == whole.gaps.tolist()


def test_unknown_group_is_refused(hawkes: EventDataset) -> None:
    with pytest.raises(SettingsError, match="group"):
        hawkes.group("train")


def test_dequantising_breaks_ties_and_keeps_the_order_of_marks() -> None:
    tied = EventSequence([0.0, 1.0, 1.0, 2.0], [0, 1, 2, 0])
    dataset = EventDataset((tied,), ("a", "b", "c"))
    assert dataset.num_ties == 1
    loose = dataset.dequantise(seed=0)
    assert (np.diff(loose.sequences[0].times) > 0).all()
    assert np.array_equal(loose.sequences[0].marks, tied.marks)
    assert np.floor(loose.sequences[0].times).tolist() == tied.times.tolist()
    assert "1 tied" in loose.notes[-1]


def test_a_hub_data_set_reads_like_its_table(csv: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.csv").write_text(CSV)
    found = EventDataset.from_hub(str(folder), **COLUMNS)
    expected = EventDataset.from_csv(csv, **COLUMNS)
    assert found.mark_names == expected.mark_names
    assert [s.times.tolist() for s in found] == [s.times.tolist() for s in expected]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("sequence_id,time,time,mark\n1,1,1,a\n")
    with pytest.raises(DataError, match="more than one column 'time'"):
        EventDataset.from_csv(tmp_path / "c.csv")


@pytest.mark.parametrize("size", [{"num_events": 1}, {"end": 0.0}, {"end": 1e-6}])
def test_a_simulation_without_gaps_is_refused(size: dict) -> None:
    with pytest.raises(SettingsError, match="two events"):
        simulate_hawkes(PRESETS["hawkes3"], 2, **size)
