"""Odd tables: the right answer or one sentence; a log with dates, codes and no ids becomes a forecaster."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from burnish import cli
from burnish.core.errors import BurnishError
from burnish.events import EventDataset, EventForecaster, EventSequence
from burnish.events.columns import shown_time
from burnish.events.run import Fitted, Reading

app = cli.app["events"]

SMALL = ["--hidden-size", "8", "--num-layers", "1", "--epochs", "1"]


def call(*arguments: object) -> None:
    app([str(a) for a in arguments], exit_on_error=False, print_error=False, result_action="return_value")


def read(tmp_path: Path, text: str | bytes, name: str = "t.csv", **columns) -> EventDataset:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return EventDataset.from_csv(path, **columns)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "1970-01-01T00:00:00.5"), (1e10, "2286-11-20T17:46:40"), (1e25, "beyond all dates")],
)
def test_a_date_after_that_of_any_nanosecond_is_shown(seconds: float, shown: str) -> None:
    one = EventSequence(np.zeros(1), np.zeros(1, int))
    assert shown_time(one, seconds, True) == shown


# -- tables that mean something: what they mean ----------------------------------------------------------------------

GOOD = {
    "plain": ("sequence_id,time,mark\na,1,x\na,2.5,y\n", [[0, 1.5]], ("x", "y")),
    "windows line ends": ("sequence_id,time,mark\r\na,1,x\r\na,2.5,y\r\n", [[0, 1.5]], ("x", "y")),
    "byte order mark": ("\ufeffsequence_id,time,mark\na,1,x\na,2.5,y\n", [[0, 1.5]], ("x", "y")),
    "no last line end": ("sequence_id,time,mark\na,1,x\na,2.5,y", [[0, 1.5]], ("x", "y")),
    "semicolons": ("sequence_id;time;mark\na;1;x\na;2.5;y\n", [[0, 1.5]], ("x", "y")),
    "tabs": ("sequence_id\ttime\tmark\na\t1\tx\na\t2.5\ty\n", [[0, 1.5]], ("x", "y")),
    "bars": ("sequence_id|time|mark\na|1|x\na|2.5|y\n", [[0, 1.5]], ("x", "y")),
    "quotes": ('"sequence_id","time","mark"\n"a","1","x, y"\n"a","2.5","z"\n', [[0, 1.5]], ("x, y", "z")),
    "more columns": ("sequence_id,time,mark,note\na,1,x,hi\na,2.5,y,\n", [[0, 1.5]], ("x", "y")),
    "columns in another order": ("mark,time,sequence_id\nx,1,a\ny,2.5,a\n", [[0, 1.5]], ("x", "y")),
    "only times": ("time\n1\n2.5\n", [[0, 1.5]], ("event",)),
    "no ids": ("time,mark\n1,x\n2.5,y\n", [[0, 1.5]], ("x", "y")),
    "no types": ("sequence_id,time\na,1\nb,1\na,2.5\nb,4\n", [[0, 1.5], [0, 3]], ("event",)),
    "one event": ("time,mark\n7,x\n", [[0]], ("x",)),
    "ties": ("time,mark\n1,x\n1,y\n2,x\n", [[0, 0, 1]], ("x", "y")),
    "negative times": ("time,mark\n-3,x\n-1.5,y\n", [[0, 1.5]], ("x", "y")),
    "status codes": ("time,mark\n1,500\n2.5,200\n", [[0, 1.5]], ("200", "500")),
    "codes as floats": ("time,mark\n1,500.0\n2.5,200.0\n", [[0, 1.5]], ("200", "500")),
    "negative codes": ("time,mark\n1,-1\n2.5,0\n", [[0, 1.5]], ("-1", "0")),
    "true and false": ("time,mark\n1,true\n2.5,false\n", [[0, 1.5]], ("False", "True")),
    "types called NA and null": ("time,mark\n1,NA\n2.5,null\n", [[0, 1.5]], ("NA", "null")),
    "types in another script": ("time,mark\n1,\u00fc\n2.5,\u706b\n", [[0, 1.5]], ("\u00fc", "\u706b")),
    "dates": ("time,mark\n2024-03-01 00:00:59,x\n2024-03-01 00:01:00.5,y\n", [[0, 1.5]], ("x", "y")),
    "dates with T and Z": ("time,mark\n2024-03-01T00:00:59Z,x\n2024-03-01T00:01:00.5Z,y\n", [[0, 1.5]], ("x", "y")),
    "dates with zones": (
        "time,mark\n2024-03-01T01:00:59+01:00,x\n2024-03-01T00:01:00.5+00:00,y\n",
        [[0, 1.5]],
        ("x", "y"),
    ),
    "days": ("time,mark\n2024-02-28,x\n2024-03-01,y\n", [[0, 172800]], ("x", "y")),
    "times of day": ("time,mark\n12:00:00,x\n12:00:02,y\n", [[0, 2]], ("x", "y")),
    "epoch seconds": ("time,mark\n1700000000,x\n1700000001.5,y\n", [[0, 1.5]], ("x", "y")),
    "epoch nanoseconds": (
        "time,mark\n1700000000000000001,x\n1700000000000000003,y\n",
        [[0, 2]],
        ("x", "y"),
    ),
    "blank lines": ("time,mark\n1,x\n\n2.5,y\n\n", [[0, 1.5]], ("x", "y")),
    "old line ends": ("time,mark\r1,x\r2.5,y\r", [[0, 1.5]], ("x", "y")),
    "an index without a name": (",time,mark\n0,1,x\n1,2.5,y\n", [[0, 1.5]], ("x", "y")),
    "types over two lines": ('time,mark\n1,"a\nb"\n2.5,c\n', [[0, 1.5]], ("a\nb", "c")),
    "fractions after a comma": (
        'time,mark\n"2024-03-01 00:00:59,5",x\n"2024-03-01 00:01:01,0",y\n',
        [[0, 1.5]],
        ("x", "y"),
    ),
    "large but apart": ("time,mark\n1e17,x\n1.00000000000016e17,y\n", [[0, 16000]], ("x", "y")),
    "numbers with exponents": ("time,mark\n1e0,x\n2.5e0,y\n", [[0, 1.5]], ("x", "y")),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_table_is_read_right(name: str, tmp_path: Path) -> None:
    text, gaps, types = GOOD[name]
    dataset = read(tmp_path, text)
    assert [s.gaps.tolist() for s in dataset.sequences] == gaps
    assert dataset.mark_names == types


# -- tables that do not: the sentence --------------------------------------------------------------------------------

BAD = {
    "empty file": ("", "the file is empty"),
    "only a header": ("time,mark\n", "has no events"),
    "no header": ("1,x\n2.5,y\n", "has no header: its first line is '1, x'"),
    "a header of dates": ("2024-03-01,x\n2024-03-02,y\n", "has no header"),
    "no times": ("tiem,mark\n1,x\n", "no column 'time'.*did you mean 'tiem'"),
    "two columns of times": ("time,time,mark\n1,1,x\n", "more than one column 'time'"),
    "empty time": ("time,mark\n1,x\n,y\n", "'time' is empty in row 2"),
    "empty type": ("time,mark\n1,x\n2,\n", "'mark' is empty in row 2"),
    "blank type": ("time,mark\n1,x\n2, \n", "'mark' is empty in row 2"),
    "empty id": ("sequence_id,time,mark\na,1,x\n,2,x\n", "'sequence_id' is empty in row 2"),
    "not a number": ("time,mark\n1,x\nnan,y\n", "'time' is not a number in row 2"),
    "enormous": ("time,mark\n1,x\n1e300,y\n", r"event 1 has the time 1e\+300, and times reach to 1e\+100"),
    "minute": ("time,mark\n0,x\n1e-300,y\n", "events 1e-300 apart, and gaps are 0 or at least 1e-100"),
    "infinite": ("time,mark\n1,x\ninf,y\n", "'time' is not a number in row 2"),
    "words for times": ("time,mark\nnoon,x\n", "'noon' in row 1, which is not a time"),
    "log dates": ("time,mark\n10/Oct/2000:13:55:36,x\n", "in row 1, which is not a time"),
    "decimal commas": ("time;mark\n1,5;x\n2,5;y\n", "'1,5' in row 1, which is not a time"),
    "unsorted": ("time,mark\n2,x\n1,y\n", r"times go back at event 1 \(2 then 1\); pass --sort"),
    "unsorted dates": ("time,mark\n2024-03-02,x\n2024-03-01,y\n", r"2024-03-02T00:00:00 then 2024-03-01T00:00:00"),
    "fractions for types": ("time,mark\n1,0.5\n2,1.5\n", "numbers with fractions, not types"),
    "a type for every event": ("time,mark\n" + "".join(f"{i},t{i}\n" for i in range(50)), "50 different types"),
    "ragged rows": ("time,mark\n1,x\n2\n", "not a table"),
    "numbers beyond float64": (
        "time,mark\n92233720368547758080,x\n92233720368547758090,y\n",
        "float64 does not tell such times from their neighbours",
    ),
    "another encoding": ("time,mark\n1,\xfc\n2.5,y\n".encode("latin-1"), "'mark' is not text in UTF-8"),
    "antiquity": ("time,mark\n0001-01-01,x\n0001-01-02,y\n", "dates that are not between 1678 and 2261"),
    "comments": ("# a log\ntime,mark\n1,x\n", "not a table"),
    "dates among numbers": ("time,mark\n1,x\n2024-01-01,y\n", "'1' in row 1, which is not a time"),
    "thousands": ('time;mark\n"1,000.5";x\n', "'1,000.5' in row 1, which is not a time"),
    "yes and no for times": ("time,mark\ntrue,x\nfalse,y\n", "holds bool, not times"),
    "names in capitals": ("Time,mark\n1,x\n", "did you mean 'Time'"),
    "not text": (b"\x00\xff\x00\x01time", "not a table|no column"),
    "text in two bytes a letter": ("time,mark\n1,x\n".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_odd_table_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    with pytest.raises(BurnishError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["start", "end"])
def test_an_observation_without_bounds_is_refused(end: str, tmp_path: Path) -> None:
    start, stop = (-1e300, None) if end == "start" else (None, float("inf"))
    with pytest.raises(BurnishError, match=f"{end}s at .* no time up to"):
        read(tmp_path, "time\n1\n2\n", start=start, end=stop)


# -- one sequence reads the same anywhere ----------------------------------------------------------------------------


def test_dates_read_the_same_alone_and_in_a_larger_file(tmp_path: Path) -> None:
    rows = [f"b,2024-05-01T00:00:0{i}.12345678{i},x\n" for i in range(5)]
    alone = read(tmp_path, "sequence_id,time,mark\n" + "".join(rows))
    among = read(tmp_path, "sequence_id,time,mark\na,1971-01-01T00:00:00,x\n" + "".join(rows))
    assert alone.sequences[0].times.tolist() == among.sequences[1].times.tolist()
    assert alone.sequences[0].epoch == among.sequences[1].epoch


def test_a_known_start_and_end_are_on_the_clock_of_the_file(tmp_path: Path) -> None:
    text = "time,mark\n2024-03-01T00:00:10,x\n2024-03-01T00:00:20,y\n"
    [sequence] = read(tmp_path, text, start="2024-03-01", end="2024-03-01T00:01:00Z").sequences
    assert sequence.gaps.tolist() == [10.0, 10.0]
    assert sequence.end is not None and sequence.end - sequence.times[-1] == 40.0
    with pytest.raises(BurnishError, match="start is 'noon', but the times are dates"):
        read(tmp_path, text, start="noon")


# -- from a log to forecasts -----------------------------------------------------------------------------------------


def log_lines(count: int, end: str = "\n") -> str:
    rng = np.random.default_rng(0)
    at = np.datetime64("2024-05-01T00:00:00.000000", "us") + np.cumsum(rng.exponential(3e6, count)).astype(
        "timedelta64[us]"
    )
    codes = rng.choice([200, 404, 500], size=count, p=[0.8, 0.15, 0.05])
    return end.join(["when,status", *(f"{t},{code}" for t, code in zip(at, codes, strict=True)), ""])


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    (folder / "log.csv").write_text(log_lines(300))
    call("fit", folder / "log.csv", "-o", folder / "model", "--time", "when", "--type", "status", *SMALL)
    return folder


def forecasts(log: Path, text: str, capsys, *options: object) -> list[dict[str, str]]:
    (log / "now.csv").write_text(text)
    capsys.readouterr()
    call("forecast", log / "model", log / "now.csv", *options)
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_log_with_dates_codes_and_no_ids_becomes_a_forecaster(log: Path, capsys) -> None:
    [row] = forecasts(log, log_lines(300), capsys)
    assert row["type"] in ("200", "404", "500")
    assert row["last_time"].startswith("2024-05-01T00:")
    assert row["last_time"] < row["time_0.05"] < row["time_0.95"]
    call("evaluate", log / "model", log / "log.csv", "--bootstrap", "0")
    assert "1 sequences with 30 events that fitting has not seen" in capsys.readouterr().out


def test_line_ends_do_not_make_a_seen_file_new(log: Path, capsys) -> None:
    (log / "crlf.csv").write_text(log_lines(300, "\r\n"), newline="")
    capsys.readouterr()
    call("evaluate", log / "model", log / "crlf.csv", "--bootstrap", "0")
    assert "with 30 events that fitting has not seen" in capsys.readouterr().out


def test_a_log_that_grew_is_scored_where_it_grew(log: Path, capsys) -> None:
    (log / "grown.csv").write_text(log_lines(400))
    fitted = Fitted.load(log / "model")
    dataset = fitted.reading.read(log / "grown.csv", fitted.forecaster.mark_names)
    rest, _ = fitted.seen.unseen(dataset)
    used = sum(round(300 * share) for share in (0.8, 0.1))
    assert used <= rest.sequences[0].context < 300 or rest.num_events == 400  # another draw of 400 begins otherwise


def test_stream_file_and_grown_stream_forecast_the_same_number(log: Path, capsys) -> None:
    [row] = forecasts(log, log_lines(300), capsys, "--quantiles", "0.5", "0.9", "--elapsed", "1.5")
    fitted = Fitted.load(log / "model")
    [sequence] = fitted.reading.read(log / "log.csv", fitted.forecaster.mark_names).sequences
    stream = fitted.forecaster.stream()
    for time, mark in zip(sequence.times, sequence.marks, strict=True):
        stream.observe(float(time), int(mark))
    assert [row["wait_0.5"], row["wait_0.9"]] == [f"{stream.quantile(q, 1.5):.6g}" for q in (0.5, 0.9)]


def test_now_is_the_wait_since_each_last_event(log: Path, capsys) -> None:
    lines = log_lines(300)
    last = lines.splitlines()[-1].split(",")[0]
    later = str(np.datetime64(last, "us") + np.timedelta64(1500, "ms"))
    [by_now] = forecasts(log, lines, capsys, "--now", later)
    [by_elapsed] = forecasts(log, lines, capsys, "--elapsed", "1.5")
    assert by_now == by_elapsed
    with pytest.raises(BurnishError, match=f"has an event at {last[:19]}"):
        forecasts(log, lines, capsys, "--now", "2024-05-01T00:00:01")


def test_other_column_names_at_the_forecast(log: Path, capsys) -> None:
    expected = forecasts(log, log_lines(300), capsys)
    renamed = log_lines(300).replace("when,status", "moment,code")
    assert forecasts(log, renamed, capsys, "--time", "moment", "--type", "code") == expected


def test_numbers_where_the_fit_had_dates_are_seconds_or_refused(log: Path, capsys) -> None:
    [by_dates] = forecasts(log, log_lines(50), capsys)
    seconds = [line.split(",") for line in log_lines(50).splitlines()[1:]]
    since = [(np.datetime64(when.rstrip("Z"), "ns").astype(np.int64), status) for when, status in seconds]
    [by_seconds] = forecasts(log, "when,status\n" + "".join(f"{int(t) / 1e9!r},{s}\n" for t, s in since), capsys)
    assert float(by_seconds["wait_0.5"]) == pytest.approx(float(by_dates["wait_0.5"]), rel=1e-4)
    forecasts(log, "when,status\n0,200\n3,200\n", capsys)
    with pytest.raises(BurnishError, match="which as seconds since 1970 is no date, and the fit had dates"):
        forecasts(log, "when,status\n" + "".join(f"{t // 10**6},{s}\n" for t, s in since), capsys)


@pytest.mark.parametrize(("unit", "refused"), [("", False), ("Seconds", False), ("hours", True)])
def test_dates_where_the_fit_had_numbers_are_seconds_or_refused(unit: str, refused: bool) -> None:
    dates = EventDataset((EventSequence(np.arange(2.0), np.zeros(2, int)),), ("a",), dates=True)
    if refused:
        with pytest.raises(BurnishError, match="has dates, and the times of the fit were numbers, in hours"):
            Reading(unit=unit, dates=False).other_clock(dates, Path("t.csv"))
    else:
        assert "their seconds are taken" in str(Reading(unit=unit, dates=False).other_clock(dates, Path("t.csv")))
    assert Reading(unit=unit).other_clock(dates, Path("t.csv")) is None


def test_a_place_needs_two_columns(tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="both columns of the place are 'x'"):
        call("fit", tmp_path / "t.csv", "-o", tmp_path / "m", "--x", "x", "--y", "x", *SMALL)


def test_merging_files_changes_no_forecast(log: Path, capsys) -> None:
    def with_ids(text: str, name: str) -> str:
        return "".join(f"{name},{line}\n" for line in text.splitlines()[1:])

    header = "id,when,status\n"
    one, two = with_ids(log_lines(120), "one"), with_ids(log_lines(50), "two")
    alone = [*forecasts(log, header + one, capsys, "--sequence", "id")]
    alone += forecasts(log, header + two, capsys, "--sequence", "id")
    assert forecasts(log, header + two + one, capsys, "--sequence", "id") == alone[::-1]


def test_a_split_column_says_the_parts(tmp_path: Path) -> None:
    rows = ["sequence_id,time,mark,part"]
    for name, part in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")):
        rows += [f"{name},{t},{t % 2},{part}" for t in range(1, 12)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    call("fit", tmp_path / "t.csv", "-o", tmp_path / "m", "--split-column", "part", *SMALL)
    fitted = Fitted.load(tmp_path / "m")
    rest, _ = fitted.seen.unseen(fitted.reading.read(tmp_path / "t.csv"))
    assert [s.name for s in rest.sequences] == ["d"]


def test_a_forecaster_with_one_type_reads_files_without_types(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text("time\n" + "".join(f"{t * t / 7}\n" for t in range(1, 80)))
    call("fit", tmp_path / "t.csv", "-o", tmp_path / "m", *SMALL)
    assert EventForecaster.from_pretrained(tmp_path / "m").mark_names == ("event",)


READERS: list[Callable[[Path], EventDataset]] = [EventDataset.from_csv, EventDataset.from_jsonl]


def test_dates_in_json_lines_are_dates(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"time": "2024-03-01T00:00:59Z"}\n{"time": "2024-03-01T00:01:00.5Z"}\n')
    (tmp_path / "t.csv").write_text("time\n2024-03-01T00:00:59Z\n2024-03-01T00:01:00.5Z\n")
    tables = [reader(path) for reader, path in zip(READERS, sorted(tmp_path.iterdir()), strict=True)]
    assert [t.sequences[0].gaps.tolist() for t in tables] == [[0.0, 1.5]] * 2
    assert tables[0].sequences[0].epoch == tables[1].sequences[0].epoch
