"""`burnish events`: fit, evaluate, forecast and simulate streams of events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.core.outside import MAX_SEED
from burnish.events.models import MODELS

if TYPE_CHECKING:
    from burnish.core.page import Table
    from burnish.events.data import EventDataset
    from burnish.events.model import EventModel

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
OptionalOut = Annotated[Path | None, Parameter(name=["--out", "-o"])]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))]
Levels = Annotated[tuple[float, ...], Parameter(consume_multiple=True)]
if TYPE_CHECKING:
    ModelName = str
else:  # the choices are the rows of the table
    ModelName = Literal[tuple(MODELS)]


def fit(
    data: Path,
    /,
    *,
    out: Out,
    model: ModelName | None = None,
    objective: Literal["likelihood", "score", "score+mass"] = "likelihood",
    time_coordinate: Literal["log", "gap"] = "log",
    sequence: str = "sequence_id",
    time: str = "time",
    type: str = "mark",
    x: str | None = None,
    y: str | None = None,
    vertex: str | None = None,
    edges: Path | None = None,
    start: str | None = None,
    end: str | None = None,
    sort: bool = False,
    unit: str = "",
    hidden_size: int = 64,
    num_layers: int = 2,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float = 3e-3,
    patience: int = 5,
    split_by: Literal["auto", "sequence", "time"] = "auto",
    split_column: str | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: Seed = 0,
    overwrite: bool = False,
) -> None:
    """Fit a forecaster to a table of events: one row an event, with a time and, where there are, a sequence and a type.

    Part of the data is kept apart for `burnish events evaluate`. A fit that is interrupted continues when the same
    command is given again.

    Parameters
    ----------
    data:
        A .csv, .tsv, .parquet or .jsonl file.
    out:
        Directory of the fitted forecaster.
    model:
        By default smurf-thp, with --x and --y place-mixture; structured-thp is for a graph.
    objective:
        Likelihood, or score matching with or without a term for the mass.
    time_coordinate:
        Of score matching: log (consistent) or gap (as published).
    sequence:
        Column that says which sequence an event belongs to; without the default one all rows are one sequence.
    time:
        Column of the times, numbers or dates.
    type:
        Column of the types; without the default one all events are of one type.
    x:
        First column of the place, for the models of places.
    y:
        Second column of the place, for the models of places.
    vertex:
        Column of the vertex (0, 1, ...); structured-thp needs it.
    edges:
        Table whose first two columns are the edges of the graph; structured-thp needs it.
    start:
        When observation began, if known, as the times are given: the waits for first events then count.
    end:
        When observation ended, if known: the time without an event up to it then counts.
    sort:
        Sort each sequence by time instead of refusing unsorted rows.
    unit:
        Name of the time unit, for reports.
    hidden_size:
        Width of the Transformer.
    num_layers:
        Layers of the Transformer.
    epochs:
        Passes over the training data, at most.
    batch_size:
        Sequences per step [default: 32, fewer where an epoch would have less than 20 steps].
    lr:
        Learning rate.
    patience:
        Epochs without a better validation loss after which training ends; 0 never ends it early.
    split_by:
        Hold out whole sequences, or the end of each sequence; auto does the first where there are ten or more.
    split_column:
        Column that says of every sequence whether it is of train, val or test.
    fractions:
        Shares of training, validation and test data.
    seed:
        Of the split and of training.
    overwrite:
        Replace a forecaster at OUT.
    """
    from dataclasses import asdict

    from burnish.core.progress import Progress
    from burnish.core.store import Store
    from burnish.events.forecaster import EventForecaster
    from burnish.events.models import model_class
    from burnish.events.run import Reading, split
    from burnish.events.seen import Seen

    _check_free(out, overwrite)
    kind = model_class(model or ("smurf-thp" if x is None and y is None else "place-mixture"))
    place = _location(x, y, kind)
    reading = Reading(sequence, time, type, place, vertex, split_column, start, end, sort=sort, unit=unit)
    dataset = reading.read(data)
    for note in dataset.notes:
        _say(note)
    training, validation, _ = split(dataset, split_by, fractions, seed, split_column)
    graph = {"num_vertices": dataset.num_vertices, "edges": _edges(edges, vertex, kind.kind)} if kind.has_graph else {}
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers} if kind.has_encoder else {}
    network = kind(dataset.num_marks, **sizes, **graph)
    forecaster = EventForecaster(network, objective=objective, time_coordinate=time_coordinate)
    _say(
        f"{len(dataset):,} sequences, {dataset.num_events:,} events, {dataset.num_marks} types; training on "
        f"{len(training):,} sequences, validating on {len(validation):,}"
    )
    state = out.parent / f"{out.name}.fit"
    history = forecaster.fit(
        training,
        validation,
        epochs=epochs,
        batch_size=_batch_size(training) if batch_size is None else batch_size,
        lr=lr,
        patience=patience,
        seed=seed,
        state_dir=state,
        progress=Progress(),
    )
    for note in forecaster.notes:
        _say(note)
    seen = Seen.of(training, validation).to_json()
    forecaster.save_pretrained(out, overwrite=overwrite, reading=asdict(reading), seen=seen)
    Store(state).clear()
    kept = f"best epoch {history.best_epoch + 1} of {len(history.train)}"
    if history.best_epoch < 0:
        kept = f"none of {len(history.train)} epochs was better than the start"
    print(f"forecaster: {out} ({kept}, validation loss {history.best:.4f})")


def evaluate(
    forecaster: Path,
    data: Path,
    /,
    *,
    out: OptionalOut = None,
    all: bool = False,
    bootstrap: int = 200,
) -> None:
    """Measure a forecaster on events it has not seen and write an HTML report with calibration plots.

    What fitting has seen is left out, whatever file it comes in.

    Parameters
    ----------
    forecaster:
        Directory from `burnish events fit`.
    data:
        A table, read as the fit read its own.
    out:
        The report [default: report.html in the forecaster's directory].
    all:
        Use every event, also those that fitting has seen.
    bootstrap:
        Resamplings for the errors, 0 for none.
    """
    from burnish.core.errors import DataError
    from burnish.core.progress import Progress
    from burnish.events.report import score_table, write_report
    from burnish.events.run import Fitted
    from burnish.events.spatial import add_location_scores

    fitted = Fitted.load(forecaster)
    loaded, dataset = fitted.forecaster, fitted.reading.read(data, fitted.forecaster.mark_names)
    part = "all events, also those that fitting has seen"
    if not all:
        dataset, part = fitted.seen.unseen(dataset)
        if not dataset.num_events:
            raise DataError("has no event that fitting has not seen", where=str(data), fix="pass --all to score them")
    result = loaded.score(dataset, bootstrap=bootstrap, progress=Progress())
    location = add_location_scores(loaded, dataset, result) if loaded.model.has_location else None
    target = out or forecaster / "report.html"
    write_report(target, loaded, dataset, result, source=f"{data.name}, {part}", location=location)
    _print_scores(score_table(result), f"{data.name}: {part}")
    for note in result.notes:
        _say(note)
    print(f"report: {target}")


def forecast(
    forecaster: Path,
    data: Path,
    /,
    *,
    out: OptionalOut = None,
    quantiles: Levels = (0.05, 0.25, 0.5, 0.75, 0.95),
    elapsed: float = 0.0,
    now: str | None = None,
    sequence: str | None = None,
    time: str | None = None,
    type: str | None = None,
) -> None:
    """For every sequence of a table, when the next event comes, of which type and where, as CSV.

    Parameters
    ----------
    forecaster:
        Directory from `burnish events fit`.
    data:
        A table; the last event of each sequence is where its forecast starts.
    out:
        The CSV file [default: standard output].
    quantiles:
        Levels of the wait.
    elapsed:
        Time already waited since the last event; the quantiles are then of the rest of the wait.
    now:
        The time as of which to forecast, as the times are given: each sequence has then waited since its last event.
    sequence:
        Column of the sequences, if not that of the fit.
    time:
        Column of the times, if not that of the fit.
    type:
        Column of the types, if not that of the fit.
    """
    import csv
    import io
    import sys
    from dataclasses import replace

    from burnish.core.checkpoint import write_atomically
    from burnish.core.errors import SettingsError
    from burnish.events.run import Fitted, table_of_forecasts

    if elapsed and now is not None:
        raise SettingsError("both --elapsed and --now say how long was waited", fix="give one of them")
    fitted = Fitted.load(forecaster)
    reading = replace(fitted.reading.with_columns(sequence=sequence, time=time, mark=type), group=None, end=None)
    dataset = reading.read(data, fitted.forecaster.mark_names)
    rows = table_of_forecasts(fitted.forecaster, dataset, quantiles=quantiles, elapsed=elapsed, now=now)
    if out is None:
        csv.writer(sys.stdout).writerows(rows)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(out, text.getvalue())
    print(f"forecasts: {out} ({len(dataset):,} sequences)")


def simulate(
    *,
    out: Out,
    preset: Literal["hawkes3", "hawkes2"] = "hawkes3",
    num_sequences: int = 1000,
    num_events: int = 60,
    seed: Seed = 0,
    truth: bool = True,
) -> None:
    """Write an exactly simulated Hawkes process with, for every event, what an ideal forecaster would have said.

    Parameters
    ----------
    out:
        A .csv or .parquet file.
    preset:
        Three types with moderate excitation, or two types that excite each other.
    num_sequences:
        Sequences to simulate.
    num_events:
        Events of each.
    seed:
        Of the simulation.
    truth:
        Add the true intensity, compensator, PIT and type probabilities.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    from burnish.core.checkpoint import check_place
    from burnish.core.checkpoint.durable import replacing
    from burnish.core.errors import OutputError
    from burnish.events.hawkes import PRESETS, simulate_hawkes, truth_table

    if out.suffix not in (".csv", ".parquet"):
        raise OutputError("is neither .csv nor .parquet", where=str(out))
    check_place(out)
    dataset = simulate_hawkes(PRESETS[preset], num_sequences, num_events=num_events, seed=seed)
    table = pa.table(truth_table(PRESETS[preset], dataset))
    if not truth:
        table = table.select(["sequence_id", "time", "mark"])
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = csv.write_csv if out.suffix == ".csv" else parquet.write_table
    with replacing(out) as temporary:  # a full disk leaves no half of a table, and what was there
        writer(table, str(temporary))
    print(f"events: {out} ({num_sequences:,} sequences of {num_events})")


# -- shared ----------------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    import sys

    print(message, file=sys.stderr)


def _check_free(out: Path, overwrite: bool) -> None:
    from burnish.core.errors import OutputError
    from burnish.events.forecaster import is_forecaster

    if out.exists() and not overwrite:
        made = is_forecaster(out)
        raise OutputError(
            "exists already" if made else "exists and is not an event forecaster",
            where=str(out),
            fix="choose another place with -o, or pass --overwrite" if made else "choose another place with -o",
        )


def _location(x: str | None, y: str | None, kind: type[EventModel]) -> tuple[str, str] | None:
    from burnish.core.errors import SettingsError

    if (x is None) != (y is None):
        raise SettingsError("a place needs both columns", fix="give --x and --y")
    if x is None or y is None:
        if kind.has_location:
            what = f"{kind.kind} forecasts places, but no columns for them were given"
            raise SettingsError(what, fix="give --x and --y")
        return None
    return x, y


def _edges(path: Path | None, vertex: str | None, model: str) -> list[list[int]]:
    import pyarrow as pa

    from burnish.core.errors import DataError, SettingsError
    from burnish.events.reading import read_any

    if path is None or vertex is None:
        raise SettingsError(f"{model} needs a graph", fix="give --vertex and --edges")
    table = read_any(path)
    if table.num_columns < 2 or not all(pa.types.is_integer(column.type) for column in table.columns[:2]):
        raise DataError("its first two columns are not vertex numbers", where=str(path), fix="write from,to per edge")
    return [list(pair) for pair in zip(*(column.to_pylist() for column in table.columns[:2]), strict=True)]


def _batch_size(training: EventDataset) -> int:
    """32 sequences, or fewer so that an epoch has twenty steps: a small table needs many small ones."""
    windows = sum(max(1, len(sequence) // 384) for sequence in training.sequences)
    return max(1, min(32, windows // 20))


def _print_scores(table: Table, title: str) -> None:
    import sys

    from rich.console import Console

    from burnish.core.page.console import console_table

    print(title)
    Console(width=None if sys.stdout.isatty() else 130).print(console_table(table))
