"""Datasets of the hub, here a local directory: read as they come, and gone on with at the row where a stream broke."""

import json

import datasets
import pytest

import burnish
from burnish.core.errors import DataError
from burnish.core.progress import Progress
from burnish.data import data_hash, hub, read_rows
from burnish.data.attempt import try_rows
from burnish.data.hub import HubData, spooled
from burnish.train.stage import Train
from small_models import small_config

ROWS = [{"text": f"Row {number} says that foxes jump over dogs. " * 3, "id": number} for number in range(60)]
NAME = "hf://datasets/someone/foxes"


class Breaking:
    """A stream that breaks off when so many rows have come, and says how many it gave."""

    def __init__(self, dataset, rows):
        self.dataset, self.rows, self.given = dataset, rows, 0

    def __iter__(self):
        for row in self.dataset:
            if self.given == self.rows:
                raise ConnectionResetError("the line is dead")
            self.given += 1
            yield row

    def load_state_dict(self, state):
        self.dataset.load_state_dict(state)

    def state_dict(self):
        return self.dataset.state_dict()


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Makes the dataset, in three files; its streams, of which `breaks` says after how many rows each breaks."""
    directory = tmp_path / "foxes"
    directory.mkdir()
    for part in range(3):
        lines = (json.dumps(row) for row in ROWS[20 * part : 20 * part + 20])
        (directory / f"part{part}.jsonl").write_text("\n".join(lines))
    streams, breaks = [], []

    def open_(pinned):
        found = datasets.load_dataset(str(directory), split=pinned.split, streaming=True)
        streams.append(Breaking(found, breaks[len(streams)] if len(streams) < len(breaks) else None))
        return streams[-1]

    monkeypatch.setattr(hub, "_open", open_)
    monkeypatch.setattr(hub, "commit_of", lambda id, revision: "c0ffee" if revision is None else revision)
    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
    return streams, breaks


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


TEXTS = [{"text": row["text"]} for row in ROWS]


def test_a_dataset_is_read_once_with_the_columns_of_a_text(opened, tmp_path):
    file = spooled(NAME, tmp_path / "streams", Progress(enabled=False))
    assert read(file) == TEXTS
    assert spooled(NAME, tmp_path / "streams", Progress(enabled=False)) == file
    assert len(opened[0]) == 1


@pytest.mark.parametrize("breaks", [[0], [1], [25, 0, 7, 20], [20, 20, 19]])
def test_a_stream_that_breaks_goes_on_at_its_row(opened, tmp_path, breaks, capsys):
    opened[1].extend(breaks)
    assert read(spooled(NAME, tmp_path / "streams", Progress(enabled=True))) == TEXTS
    assert sum(stream.given for stream in opened[0]) == len(ROWS)  # none comes twice
    said = capsys.readouterr().err
    assert f"broke off after {breaks[0]} rows (the line is dead); it goes on there" in said


def test_a_stream_that_stays_broken_is_gone_on_with_by_the_next_call(opened, tmp_path):
    opened[1].extend([31, 0, 0])
    with pytest.raises(DataError, match="foxes: broke off after 31 rows"):
        spooled(NAME, tmp_path / "streams", Progress(enabled=False))
    (entry,) = (tmp_path / "streams").iterdir()
    with (entry / "rows.jsonl").open("a") as file:  # as a killed process leaves it: rows after the place that was kept
        file.write('{"text": "half of')
    assert read(spooled(NAME, tmp_path / "streams", Progress(enabled=False))) == TEXTS
    assert sum(stream.given for stream in opened[0]) == len(ROWS)


def test_only_the_first_rows_are_read_where_that_is_asked_for(opened, tmp_path):
    opened[1].extend([11])
    file = spooled(f"{NAME}?rows=23", tmp_path / "streams", Progress(enabled=False))
    assert read(file) == TEXTS[:23]
    assert sum(stream.given for stream in opened[0]) == 23


def test_a_commit_names_the_content_and_nothing_is_read_for_it(opened, monkeypatch):
    names = [NAME, f"{NAME}?rows=9", f"{NAME}@main", f"{NAME}?split=test", f"{NAME}?config=en"]
    assert len({data_hash(name) for name in names}) == len(names)
    before = data_hash(NAME)
    monkeypatch.setattr(hub, "commit_of", lambda id, revision: "decade")
    assert data_hash(NAME) != before
    assert not opened[0]


def test_other_rooms_read_rows_as_they_come(opened, tokenizer):
    assert read_rows(NAME) == [row["text"] for row in ROWS]
    try_rows(tokenizer, NAME, small_config(), where="data")
    assert opened[0][1].given < len(ROWS)
    opened[1].extend([None, None, 5])
    with pytest.raises(DataError, match="broke off after 5 rows"):
        read_rows(NAME)


def test_a_training_on_a_broken_stream_has_the_weights_of_one_on_a_file(opened, tiny_llama, tmp_path):
    file = tmp_path / "foxes.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    stage = Train(context=32, batch=4, steps=3, lr=0.01, holdout=0.1)
    expected = stage(burnish.load(tiny_llama), data=str(file)).module.state_dict()
    opened[1].extend([17, 3])
    found = stage(burnish.load(tiny_llama), data=NAME, work_dir=tmp_path / "work").module.state_dict()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a/b/c",
        "a/b?rows=0",
        "a/b?rows=-1",
        "a/b?rows=ten",
        "a/b?split=",
        "a/b?sort=up",
        "a b/c",
        "a/b@",
        "a/b?rows=",
    ],
)
def test_what_names_no_dataset_is_refused(wrong):
    with pytest.raises(DataError, match="is no dataset of the hub; write hf://datasets/OWNER/NAME"):
        HubData.parse(hub.PREFIX + wrong)


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="someone/foxes: cannot be found, or the hub does not answer"):
        data_hash(NAME)
