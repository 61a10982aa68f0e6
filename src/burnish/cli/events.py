"""`burnish events`: fit, evaluate, forecast and simulate streams of events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from burnish.core.page import Table
    from burnish.events.data import EventDataset
    from burnish.events.forecaster import EventForecaster

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
OptionalOut = Annotated[Path | None, Parameter(name=["--out", "-o"])]
ModelName = Literal["smurf-thp", "thp", "structured-thp", "smash", "lognormal-mixture", "exponential-hawkes"]


def fit(
    data: Path,
    /,
    *,
    out: Out,
    model: ModelName = "smurf-thp",
    objective: Literal["likelihood", "score", "score+mass"] = "likelihood",
    time_coordinate: Literal["log", "gap"] = "log",
    sequence: str = "sequence_id",
    time: str = "time",
    type: str = "mark",
    x: str | None = None,
    y: str | None = None,
    vertex: str | None = None,
    edges: Path | None = None,
    origin: Literal["auto", "zero", "first"] = "auto",
    sort: bool = False,
    unit: str = "",
    hidden_size: int = 64,
    num_layers: int = 2,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float = 3e-3,
    patience: int = 5,
    split_by: Literal["sequence", "time"] = "sequence",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Fit a forecaster to a table of events: one row an event, with a sequence, a time and a type.

    Part of the data is kept apart for `burnish events evaluate`. A fit that is interrupted continues when the same
    command is given again.

    Parameters
    ----------
    data:
        A .csv, .tsv, .parquet or .jsonl file.
    out:
        Directory of the fitted forecaster.
    model:
        The first is the best choice for times and types; smash is for places, structured-thp for a graph.
    objective:
        Likelihood, or score matching with or without a term for the mass.
    time_coordinate:
        Of score matching: log (consistent) or gap (as published).
    sequence:
        Column that says which sequence an event belongs to.
    time:
        Column of the times, numbers or dates.
    type:
        Column of the types.
    x:
        First column of the place; smash needs it.
    y:
        Second column of the place; smash needs it.
    vertex:
        Column of the vertex (0, 1, ...); structured-thp needs it.
    edges:
        Table whose first two columns are the edges of the graph; structured-thp needs it.
    origin:
        Whether observation starts at time 0 (zero), at an unknown time (first), or what looks right (auto).
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
        Hold out whole sequences, or the end of each sequence.
    fractions:
        Shares of training, validation and test data.
    seed:
        Of the split and of training.
    overwrite:
        Replace a forecaster at OUT.
    """
    from burnish.core.errors import OutputError
    from burnish.core.progress import Progress
    from burnish.core.store import Store
    from burnish.events.forecaster import MODELS, EventForecaster, is_forecaster

    if out.exists() and not overwrite:
        made = is_forecaster(out)
        raise OutputError(
            "exists already" if made else "exists and is not an event forecaster",
            where=str(out),
            fix="choose another place with -o, or pass --overwrite" if made else "choose another place with -o",
        )
    columns = {"sequence": sequence, "time": time, "mark": type, "location": _location(x, y, model), "vertex": vertex}
    reading = columns | {"origin": origin, "sort": sort, "unit": unit}
    dataset = _read(data, reading, None)
    for note in dataset.notes:
        _say(note)
    split = {"by": split_by, "fractions": list(fractions), "seed": seed, "data": _digest(data)}
    training, validation, _ = _split(dataset, split)
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "num_layers": num_layers}
    if model == "exponential-hawkes":
        sizes = {}
    if model == "structured-thp":
        sizes |= {"num_vertices": dataset.num_vertices, "edges": _edges(edges, vertex)}
    forecaster = EventForecaster(
        MODELS[model](dataset.num_marks, **sizes), objective=objective, time_coordinate=time_coordinate
    )
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
    forecaster.save_pretrained(out, overwrite=overwrite, reading=reading, split=split)
    Store(state).clear()
    best = history.validation[history.best_epoch]
    print(
        f"forecaster: {out} (best epoch {history.best_epoch + 1} of {len(history.train)}, validation loss {best:.4f})"
    )


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

    Given the file it was fitted on, only the part that was kept apart is used.

    Parameters
    ----------
    forecaster:
        Directory from `burnish events fit`.
    data:
        A table with the same columns.
    out:
        The report [default: report.html in the forecaster's directory].
    all:
        Use every sequence even of the file that it was fitted on.
    bootstrap:
        Resamplings for the errors, 0 for none.
    """
    from burnish.core.progress import Progress
    from burnish.events.forecaster import EventForecaster
    from burnish.events.report import score_table, write_report
    from burnish.events.spatial import add_location_scores

    loaded, dataset, extra = _load(forecaster, data)
    part = "all sequences"
    if not all and extra["split"]["data"] == _digest(data):
        dataset = _split(dataset, extra["split"])[2]
        part = "the part that was kept apart from fitting"
    assert isinstance(loaded, EventForecaster)
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
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    elapsed: float = 0.0,
) -> None:
    """For every sequence of a table, when the next event comes and of which type, as CSV.

    Parameters
    ----------
    forecaster:
        Directory from `burnish events fit`.
    data:
        A table with the same columns; the last event of each sequence is where its forecast starts.
    out:
        The CSV file [default: standard output].
    quantiles:
        Levels of the wait.
    elapsed:
        Time already waited since the last event; the quantiles are then of the rest of the wait.
    """
    import csv
    import sys

    from burnish.core.checkpoint import write_atomically

    loaded, dataset, _ = _load(forecaster, data)
    law = loaded.next_events(dataset)
    waits = law.quantile(list(quantiles), elapsed)
    marks = law.mark_probs()
    rows = [["sequence", "last_time", *(f"wait_{q:g}" for q in quantiles), "prob_no_event", "type", "type_prob"]]
    for i, sequence in enumerate(dataset.sequences):
        top = int(marks[i].argmax())
        values = [f"{float(wait):.6g}" for wait in waits[i]]
        rest = [f"{float(law.prob_no_event[i]):.4g}", loaded.mark_names[top], f"{float(marks[i, top]):.4f}"]
        rows.append([sequence.name, f"{sequence.times[-1]:.10g}", *values, *rest])
    if out is None:
        csv.writer(sys.stdout).writerows(rows)
        return
    import io

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
    seed: int = 0,
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

    from burnish.core.errors import OutputError
    from burnish.events.hawkes import PRESETS, simulate_hawkes, truth_table

    if out.suffix not in (".csv", ".parquet"):
        raise OutputError("is neither .csv nor .parquet", where=str(out))
    dataset = simulate_hawkes(PRESETS[preset], num_sequences, num_events=num_events, seed=seed)
    table = pa.table(truth_table(PRESETS[preset], dataset))
    if not truth:
        table = table.select(["sequence_id", "time", "mark"])
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = csv.write_csv if out.suffix == ".csv" else parquet.write_table
    writer(table, str(out))
    print(f"events: {out} ({num_sequences:,} sequences of {num_events})")


# -- shared ----------------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    import sys

    print(message, file=sys.stderr)


def _location(x: str | None, y: str | None, model: str) -> tuple[str, str] | None:
    from burnish.core.errors import SettingsError

    if (x is None) != (y is None):
        raise SettingsError("a place needs both columns", fix="give --x and --y")
    if x is None or y is None:
        if model == "smash":
            raise SettingsError("smash forecasts places, but no columns for them were given", fix="give --x and --y")
        return None
    return x, y


def _edges(path: Path | None, vertex: str | None) -> list[list[int]]:
    import pyarrow as pa

    from burnish.core.errors import DataError, SettingsError
    from burnish.events.reading import read_any

    if path is None or vertex is None:
        raise SettingsError("structured-thp needs a graph", fix="give --vertex and --edges")
    table = read_any(path)
    if table.num_columns < 2 or not all(pa.types.is_integer(column.type) for column in table.columns[:2]):
        raise DataError("its first two columns are not vertex numbers", where=str(path), fix="write from,to per edge")
    return [list(pair) for pair in zip(*(column.to_pylist() for column in table.columns[:2]), strict=True)]


def _batch_size(training: EventDataset) -> int:
    """32 sequences, or fewer so that an epoch has twenty steps: a small table needs many small ones."""
    windows = sum(max(1, len(sequence) // 384) for sequence in training.sequences)
    return max(1, min(32, windows // 20))


def _digest(path: Path) -> str:
    from burnish.core.checkpoint import hash_file

    return hash_file(path)


def _read(path: Path, reading: dict[str, Any], mark_names: tuple[str, ...] | None) -> EventDataset:
    from burnish.events.data import EventDataset
    from burnish.events.reading import from_table, read_any

    table = read_any(path, sequence=reading["sequence"], time=reading["time"])
    location = reading["location"]
    place = None if location is None else (location[0], location[1])
    columns: dict[str, Any] = reading | {"location": place, "mark_names": mark_names}
    return EventDataset(**from_table(table, where=str(path), **columns))


def _split(dataset: EventDataset, split: dict[str, Any]) -> tuple[EventDataset, ...]:
    if split["by"] == "time":
        return dataset.split_by_time(split["fractions"])
    return dataset.split(split["fractions"], seed=split["seed"])


def _load(directory: Path, data: Path) -> tuple[EventForecaster, EventDataset, dict[str, Any]]:
    from burnish.core.errors import CheckpointError
    from burnish.events.forecaster import EventForecaster, read_forecaster_config

    extra = read_forecaster_config(directory)["extra"]
    if "reading" not in extra:
        raise CheckpointError(
            "does not say which columns to read, because it was not made by burnish events fit",
            where=str(directory),
            fix="use it from Python",
        )
    loaded = EventForecaster.from_pretrained(directory)
    return loaded, _read(data, extra["reading"], loaded.mark_names), extra


def _print_scores(table: Table, title: str) -> None:
    import sys

    from rich.console import Console

    from burnish.core.page.console import console_table

    print(title)
    Console(width=None if sys.stdout.isatty() else 130).print(console_table(table))
