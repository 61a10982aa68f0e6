"""`burnish events`: fit, evaluate, forecast and simulate streams of events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.core.outside import MAX_SEED
from burnish.events.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from burnish.core.page import Table
    from burnish.events.data import EventDataset
    from burnish.events.forecaster import EventForecaster
    from burnish.events.model import EventModel
    from burnish.events.run import Reading

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
OptionalOut = Annotated[Path | None, Parameter(name=["--out", "-o"])]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))]
Levels = Annotated[tuple[float, ...], Parameter(consume_multiple=True)]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]
if TYPE_CHECKING:
    ModelName = str
else:  # the choices are the rows of the table
    ModelName = Literal[tuple(MODELS)]


@Parameter(name="*")
@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    Attributes:
        sequence: Column of the sequence an event belongs to; without the default one all rows are one sequence.
        time: Column of the times, numbers or dates.
        type: Column of the types; without the default one all events are of one type.
        x: First column of the place, for the models of places.
        y: Second column of the place, for the models of places.
        sphere: The place is a longitude and a latitude in degrees: the date line joins, and distances are on the earth.
        vertex: Column of the vertex (0, 1, ...); structured-thp needs it.
        covariates: Columns of numbers that are known at each event and may matter for the next.
        exogenous: Table of times (and sequences) with numbers that change between events; a row holds until the next.
        start: When observation began, if known, as the times are given: the waits for first events then count.
        end: When observation ended, if known: the time without an event up to it then counts.
        sort: Sort each sequence by time instead of refusing unsorted rows.
        unit: Name of the time unit, for reports.
    """

    sequence: str = "sequence_id"
    time: str = "time"
    type: str = "mark"
    x: str | None = None
    y: str | None = None
    sphere: Annotated[bool, Parameter(negative=())] = False
    vertex: str | None = None
    covariates: Names = ()
    exogenous: Path | None = None
    start: str | None = None
    end: str | None = None
    sort: bool = False
    unit: str = ""


@Parameter(name="*")
@dataclass(frozen=True)
class Network:
    """The model, what it minimises, its size, and what it sees.

    Attributes:
        model: By default smurf-thp, with --x and --y place-mixture; structured-thp is for a graph.
        objective: Likelihood, or score matching with or without a term for the mass.
        time_coordinate: Of score matching: log (consistent) or gap (as published).
        hidden_size: Width of the Transformer.
        num_layers: Layers of the Transformer.
        calendar: Cycles that the events may follow: day, week, year where times are dates, else lengths such as 24.
        edges: Table whose first two columns are the edges of the graph; structured-thp needs it.
    """

    model: ModelName | None = None
    objective: Literal["likelihood", "score", "score+mass"] = "likelihood"
    time_coordinate: Literal["log", "gap"] = "log"
    hidden_size: int = 64
    num_layers: int = 2
    calendar: Names = ()
    edges: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: Passes over the training data, at most.
        batch_size: Sequences per step [default: 32, fewer where an epoch would have less than 20 steps].
        lr: Learning rate.
        patience: Epochs without a better validation loss after which training ends; 0 never ends it early.
        seed: Of the split and of training.
    """

    epochs: int = 30
    batch_size: int | None = None
    lr: float = 3e-3
    patience: int = 5
    seed: Seed = 0


@Parameter(name="*")
@dataclass(frozen=True)
class HeldOut:
    """How validation and test data are kept apart.

    Attributes:
        split_by: Hold out whole sequences, or the end of each; auto does the first where there are ten or more.
        split_column: Column that says of every sequence whether it is of train, val or test.
        fractions: Shares of training, validation and test data.
    """

    split_by: Literal["auto", "sequence", "time"] = "auto"
    split_column: str | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)


def fit(
    data: Path,
    /,
    *,
    out: Out,
    columns: Columns = Columns(),
    network: Network = Network(),
    training: Training = Training(),
    parts: HeldOut = HeldOut(),
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
    overwrite:
        Replace a forecaster at OUT.
    """
    from burnish.core.apart import check_apart
    from burnish.core.progress import Progress
    from burnish.core.store import Store
    from burnish.events.forecaster import check_free
    from burnish.events.models import model_class
    from burnish.events.run import split

    state = out.parent / f"{out.name}.fit"
    check_apart([out, state], [data, network.edges, columns.exogenous])
    check_free(out, overwrite=overwrite)
    kind = model_class(network.model or ("smurf-thp" if columns.x is None and columns.y is None else "place-mixture"))
    reading = _reading(columns, kind, parts.split_column)
    dataset, names = reading.read_with(data, columns.exogenous)
    reading = replace(reading, exogenous=names, dates=dataset.dates)
    for note in dataset.notes:
        _say(note)
    train, validation, _ = split(dataset, parts.split_by, parts.fractions, training.seed, parts.split_column)
    forecaster = _forecaster(kind, dataset, network, columns.vertex)
    _say(
        f"{len(dataset):,} sequences, {dataset.num_events:,} events, {dataset.num_marks} types; training on "
        f"{len(train):,} sequences, validating on {len(validation):,}"
    )
    batch_size = _batch_size(train) if training.batch_size is None else training.batch_size
    given = asdict(training) | {"batch_size": batch_size}
    history = forecaster.fit(train, validation, **given, state_dir=state, progress=Progress())
    for note in (*forecaster.notes, str(forecaster.calibrate(validation))):
        _say(note)
    _save(forecaster, out, overwrite, reading, (train, validation))
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
    exogenous: Path | None = None,
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
    exogenous:
        The table of values that change between events, of a forecaster that was fitted with one.
    """
    from burnish.core.apart import check_apart
    from burnish.core.errors import DataError
    from burnish.core.progress import Progress
    from burnish.events.report import score_table, write_report
    from burnish.events.run import Fitted
    from burnish.events.spatial import add_location_scores

    target = out or forecaster / "report.html"
    check_apart([target], [data, exogenous])
    fitted = Fitted.load(forecaster)
    loaded = fitted.forecaster
    dataset = _read(fitted.reading, data, exogenous, loaded)
    part = "all events, also those that fitting has seen"
    if not all:
        dataset, part = fitted.seen.unseen(dataset)
        if not dataset.num_events:
            raise DataError("has no event that fitting has not seen", where=str(data), fix="pass --all to score them")
    result = loaded.score(dataset, bootstrap=bootstrap, progress=Progress())
    location = add_location_scores(loaded, dataset, result).shown if loaded.model.has_location else None
    write_report(target, loaded, dataset, result, source=f"{data.name}, {part}", location=location)
    _print_scores(score_table(result), f"{data.name}: {part}")
    for note in result.notes:
        _say(note)
    print(f"report: {target}")


@Parameter(name="*")
@dataclass(frozen=True)
class Waited:
    """How long was waited since the last event.

    Attributes:
        elapsed: So long; the quantiles are then of the rest of the wait.
        now: Until this time, as the times are given: each sequence has then waited since its last event.
        as_of: A table with the column of the sequences and a column now or elapsed, for each sequence its own.
    """

    elapsed: float = 0.0
    now: str | None = None
    as_of: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Renamed:
    """Columns that have another name than in the table of the fit.

    Attributes:
        sequence: Column of the sequences, if not that of the fit.
        time: Column of the times, if not that of the fit.
        type: Column of the types, if not that of the fit.
    """

    sequence: str | None = None
    time: str | None = None
    type: str | None = None


def forecast(
    forecaster: Path,
    data: Path,
    /,
    *,
    out: OptionalOut = None,
    quantiles: Levels = (0.05, 0.25, 0.5, 0.75, 0.95),
    next: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))] = 1,
    waited: Waited = Waited(),
    conformal: bool = False,
    seed: Seed = 0,
    renamed: Renamed = Renamed(),
    exogenous: Path | None = None,
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
    next:
        So many events ahead, a row each; those after the first by 500 drawn futures.
    conformal:
        Move the levels so that as many of the validation waits of the fit were below each as it says.
    seed:
        Of drawn futures.
    exogenous:
        The table of values that change between events, where fitted with one; the last ones are taken as lasting.
    """
    from burnish.core.apart import check_apart
    from burnish.events.forecaster import CONFIG_FILE, WEIGHTS_FILE
    from burnish.events.run import Asked, Fitted, Waits, table_of_forecasts

    check_apart([out], [data, waited.as_of, exogenous, forecaster / CONFIG_FILE, forecaster / WEIGHTS_FILE])
    _check_ours(out, "sequence", "last_time", "prob_no_event", "type_prob")
    fitted = Fitted.load(forecaster)
    reading = _renamed(fitted.reading, renamed)
    waits = Waits.given(waited.elapsed, waited.now, waited.as_of, reading.sequence)
    dataset = _read(reading, data, exogenous, fitted.forecaster)
    rows = table_of_forecasts(fitted.forecaster, dataset, Asked(quantiles, waits, next, conformal, seed))
    _write(rows, out, f"forecasts: {out} ({len(dataset):,} sequences)")


def anomalies(
    forecaster: Path,
    data: Path,
    /,
    *,
    out: OptionalOut = None,
    renamed: Renamed = Renamed(),
    exogenous: Path | None = None,
) -> None:
    """For every event of a table, how surprising its time and type were given what came before, as CSV.

    The p-value is the share of events of the validation part of the fit that surprised as much: of usual events one in
    a hundred is below 0.01. The PIT says how: near 0 an event came too early, near 1 too late.

    Parameters
    ----------
    forecaster:
        Directory from `burnish events fit`.
    data:
        A table; the first event of a sequence has nothing before it and no row.
    out:
        The CSV file [default: standard output].
    exogenous:
        The table of values that change between events, of a forecaster that was fitted with one.
    """
    from burnish.core.apart import check_apart
    from burnish.events.anomaly import table_of_surprises
    from burnish.events.forecaster import CONFIG_FILE, WEIGHTS_FILE
    from burnish.events.run import Fitted

    check_apart([out], [data, exogenous, forecaster / CONFIG_FILE, forecaster / WEIGHTS_FILE])
    _check_ours(out, "sequence", "event", "surprise", "p_value")
    fitted = Fitted.load(forecaster)
    reading = _renamed(fitted.reading, renamed)
    dataset = _read(reading, data, exogenous, fitted.forecaster)
    rows = table_of_surprises(fitted.forecaster, dataset)
    _write(rows, out, f"surprises: {out} ({len(dataset):,} sequences)")


def simulate(
    *,
    out: Out,
    preset: Literal["hawkes3", "hawkes2"] = "hawkes3",
    num_sequences: int = 1000,
    num_events: int = 60,
    seed: Seed = 0,
    truth: bool = True,
    overwrite: bool = False,
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
    overwrite:
        Replace a file at OUT.
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
    if out.exists() and not overwrite:  # a table of events may be anyone's
        raise OutputError("exists already", where=str(out), fix="choose another place with -o, or pass --overwrite")
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


def _read(reading: Reading, data: Path, exogenous: Path | None, forecaster: EventForecaster) -> EventDataset:
    """A table of after the fit, and a word where its clock is another."""
    dataset, _ = reading.read_with(data, exogenous, forecaster.mark_names)
    if note := reading.other_clock(dataset, data):
        _say(note)
    return dataset


def _renamed(reading: Reading, renamed: Renamed) -> Reading:
    """How a table is read that was not there at the fit: it has no split, and what it observes has no known end."""
    names = {"sequence": renamed.sequence, "time": renamed.time, "mark": renamed.type}
    return replace(reading.with_columns(**names), group=None, end=None)


def _check_ours(out: Path | None, *columns: str) -> None:
    """Refuses to write a table over a file that is not an older one of the same kind, which has these columns."""
    from burnish.core.outside import check_kind

    def is_ours(head: bytes) -> bool:
        found = head.partition(b"\n")[0].decode("utf-8", errors="replace").strip().split(",")
        return set(columns) <= set(found)

    if out is not None:
        check_kind(out, is_ours)


def _write(rows: Iterable[list[str]], out: Path | None, done: str) -> None:
    """A table as CSV to standard output or to a file, whole or not at all."""
    import csv
    import shutil
    import sys
    import tempfile

    from burnish.core.checkpoint.durable import replacing

    if out is None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout)
        return
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(done)


def _reading(columns: Columns, kind: type[EventModel], split_column: str | None) -> Reading:
    from burnish.core.errors import SettingsError
    from burnish.events.run import Reading

    x, y = columns.x, columns.y
    if (x is None) != (y is None):
        raise SettingsError("a place needs both columns", fix="give --x and --y")
    if x is None and kind.has_location:
        what = f"{kind.kind} forecasts places, but no columns for them were given"
        raise SettingsError(what, fix="give --x and --y")
    if x is not None and x == y:
        raise SettingsError(f"both columns of the place are {x!r}", fix="give two with --x and --y")
    given = {name: value for name, value in asdict(columns).items() if name not in ("x", "y", "type", "exogenous")}
    place = None if x is None or y is None else (x, y)
    return Reading(**given, mark=columns.type, location=place, group=split_column)


def _forecaster(kind: type[EventModel], dataset: EventDataset, network: Network, vertex: str | None) -> EventForecaster:
    """The model for these data, of this size, to be fitted."""
    from burnish.core.errors import SettingsError
    from burnish.events.forecaster import EventForecaster
    from burnish.events.run import periods

    settings = {}
    if kind.has_encoder:
        settings = {"hidden_size": network.hidden_size, "num_layers": network.num_layers}
        settings |= {
            "periods": periods(network.calendar, dates=dataset.dates),
            "num_covariates": dataset.num_covariates,
            "num_exogenous": dataset.num_exogenous,
        }
    elif network.calendar or dataset.num_covariates or dataset.num_exogenous:
        raise SettingsError(
            f"{kind.kind} sees neither a calendar, covariates nor exogenous values", fix="leave them out"
        )
    if kind.has_graph:
        settings |= {"num_vertices": dataset.num_vertices, "edges": _edges(network.edges, vertex, kind.kind)}
    model = kind(dataset.num_marks, **settings)
    return EventForecaster(model, objective=network.objective, time_coordinate=network.time_coordinate)


def _save(
    forecaster: EventForecaster,
    out: Path,
    overwrite: bool,
    reading: Reading,
    parts: tuple[EventDataset, ...],
) -> None:
    from burnish.events.seen import Seen

    forecaster.save_pretrained(out, overwrite=overwrite, reading=asdict(reading), seen=Seen.of(*parts).to_json())


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
