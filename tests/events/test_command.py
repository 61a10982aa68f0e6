"""`burnish events`: two commands from a CSV to a forecaster and a report, and clear refusals."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import warm
from browser import CHROMIUM, WIDTHS, check_layout
from burnish import cli
from burnish.core.errors import BurnishError

app = cli.app["events"]

SMALL = ["--hidden-size", "16", "--num-layers", "1", "--epochs", "2", "--batch-size", "16"]


def call(*arguments: object) -> None:
    app([str(a) for a in arguments], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    call("simulate", "--num-sequences", "30", "--num-events", "20", "-o", folder / "h.csv")
    call("fit", folder / "h.csv", "-o", folder / "model", *SMALL)
    return folder


def test_report_is_one_file_with_the_drawings(folder: Path, capsys) -> None:
    call("evaluate", folder / "model", folder / "h.csv", "--bootstrap", "10")
    page = (folder / "model" / "report.html").read_text()
    for title in ("Calibration", "Probability integral transform", "Interval width", "Forecasts on sequence"):
        assert title in page
    assert page.count('class="chart narrow"') == 4
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert "that fitting has not seen" in page
    assert "Intervals asked to hold 90\N{NO-BREAK SPACE}%" in page
    assert "most likely of type" in page
    assert "CRPS" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary on this machine")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_every_screen(folder: Path, tmp_path: Path, width: int) -> None:
    call("evaluate", folder / "model", folder / "h.csv", "--bootstrap", "2", "-o", tmp_path / "report.html")
    check_layout((tmp_path / "report.html").read_text(), width, tmp_path)


def test_a_place_that_cannot_be_written_to_is_named(folder: Path) -> None:
    with pytest.raises(BurnishError, match=r"config\.json/r\.html: cannot be written"):
        call(
            "evaluate",
            folder / "model",
            folder / "h.csv",
            "--bootstrap",
            "0",
            "-o",
            folder / "model/config.json/r.html",
        )


def test_forecast_writes_one_row_a_sequence(folder: Path) -> None:
    call("forecast", folder / "model", folder / "h.csv", "-o", folder / "next.csv", "--elapsed", "0.5")
    lines = (folder / "next.csv").read_text().splitlines()
    assert len(lines) == 31
    waits = [float(value) for value in lines[1].split(",")[2:7]]
    assert waits == sorted(waits)


@pytest.mark.parametrize("wait", [("--now", "nan"), ("--elapsed", "nan"), ("--elapsed", "-1"), ("--elapsed", "1e300")])
def test_a_refused_forecast_prints_nothing(folder: Path, capsys, wait: tuple[str, str]) -> None:
    with pytest.raises(BurnishError):
        call("forecast", folder / "model", folder / "h.csv", f"{wait[0]}={wait[1]}")
    assert capsys.readouterr().out == ""


def test_the_events_themselves_are_no_exogenous_table(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes((folder / "h.csv").read_bytes())
    for table in (folder / "h.csv", copy):
        with pytest.raises(BurnishError, match="is the table of the events itself"):
            call("fit", folder / "h.csv", "-o", tmp_path / "m", "--exogenous", table, *SMALL)


def test_a_file_that_is_not_ours_stays(folder: Path, capsys) -> None:
    foreign = folder / "notes.csv"
    foreign.write_text("name,salary\nann,1\n")
    for command in ("forecast", "anomalies"):
        with pytest.raises(BurnishError, match="exists and is another kind of file"):
            call(command, folder / "model", folder / "h.csv", "-o", foreign)
    with pytest.raises(BurnishError, match=r"notes\.csv: exists already"):
        call("simulate", "--num-sequences", "2", "-o", foreign)
    assert foreign.read_text() == "name,salary\nann,1\n"
    for command in ("forecast", "anomalies"):
        made = [call(command, folder / "model", folder / "h.csv", "-o", folder / f"{command}.csv") for _ in range(2)]
        assert made == [None, None]  # its own older table may be replaced
    call("simulate", "--num-sequences", "2", "-o", foreign, "--overwrite")
    assert foreign.read_text().startswith('"sequence_id","time","mark"')


def test_fit_again_is_refused_without_overwrite(folder: Path) -> None:
    with pytest.raises(BurnishError, match="exists already"):
        call("fit", folder / "h.csv", "-o", folder / "model", *SMALL)


def test_wrong_column_names_the_nearest(folder: Path) -> None:
    with pytest.raises(BurnishError, match="did you mean 'time'"):
        call("fit", folder / "h.csv", "-o", folder / "other", "--time", "tme")


def test_smash_needs_place_columns(folder: Path) -> None:
    with pytest.raises(BurnishError, match="--x and --y"):
        call("fit", folder / "h.csv", "-o", folder / "other", "--model", "smash")


def test_a_finished_fit_leaves_no_state_behind(folder: Path) -> None:
    assert not (folder / "model.fit").exists()


@pytest.mark.slow
def test_smash_report_shows_the_place(tmp_path: Path, places) -> None:
    rows = ["sequence_id,time,mark,lon,lat"]
    for s in places.sequences:
        rows += [f"{s.name},{t},{k},{x},{y}" for t, k, (x, y) in zip(s.times, s.marks, s.locations, strict=True)]
    (tmp_path / "p.csv").write_text("\n".join(rows) + "\n")
    call("fit", tmp_path / "p.csv", "-o", tmp_path / "m", "--model", "smash", "--x", "lon", "--y", "lat", *SMALL)
    call("evaluate", tmp_path / "m", tmp_path / "p.csv", "--bootstrap", "0", "--all", "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Where the next event was expected" in page
    assert "energy score" in page


def test_structured_thp_needs_its_graph(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="--vertex and --edges"):
        call("fit", folder / "h.csv", "-o", tmp_path / "m", "--model", "structured-thp", *SMALL)


def test_structured_thp_from_two_tables(tmp_path: Path) -> None:
    rows = [f"{s},{t / 3},{t % 2},{(t + s) % 3}" for s in range(12) for t in range(1, 9)]
    (tmp_path / "g.csv").write_text("sequence_id,time,mark,node\n" + "\n".join(rows) + "\n")
    (tmp_path / "edges.csv").write_text("from,to\n0,1\n1,2\n")
    graph = ["--model", "structured-thp", "--vertex", "node", "--edges", tmp_path / "edges.csv"]
    call("fit", tmp_path / "g.csv", "-o", tmp_path / "m", *graph, *SMALL)
    call("evaluate", tmp_path / "m", tmp_path / "g.csv", "--bootstrap", "0")
    assert "structured-thp" in (tmp_path / "m" / "report.html").read_text()


def test_small_tables_get_small_batches(folder: Path) -> None:
    settings = json.loads((folder / "model" / "config.json").read_text())["training"]
    assert settings["batch_size"] == 16  # as given
    call("fit", folder / "h.csv", "-o", folder / "auto", *SMALL[:6])
    settings = json.loads((folder / "auto" / "config.json").read_text())["training"]
    assert settings["batch_size"] == 1  # 24 training sequences: twenty steps an epoch


def test_batches_of_none_are_refused(folder: Path) -> None:
    with pytest.raises(BurnishError, match="batch_size is 0"):
        call("fit", folder / "h.csv", "-o", folder / "zero", *SMALL[:6], "--batch-size", "0")


def test_importing_the_command_imports_no_torch() -> None:
    code = "import burnish.cli.events, sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})


@pytest.mark.slow
def test_a_killed_fit_continues_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    call("simulate", "--num-sequences", "60", "--num-events", "40", "-o", tmp_path / "h.csv")
    command = ["events", "fit", tmp_path / "h.csv", *SMALL[:4], "--epochs", "25", "--patience", "0", "-o"]
    log, state = tmp_path / "log", tmp_path / "killed.fit" / "fit" / "state.safetensors"
    warm.run(log, *command, tmp_path / "whole")
    killed = warm.Command(log, *command, tmp_path / "killed")
    assert killed.wait_until(state.exists), killed.output
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    warm.run(log, *command, tmp_path / "killed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
