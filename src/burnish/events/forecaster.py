"""A model, how it was trained, and the questions one asks it.

    forecaster = EventForecaster(SmurfTHP(num_marks=22), objective="likelihood")
    forecaster.fit(train, validation, epochs=30, seed=0)
    forecaster.next_event(history).quantile(0.9, elapsed=4.0)
    forecaster.score(test).scores
    forecaster.save_pretrained("forecaster")

A saved forecaster is a directory with config.json and model.safetensors, written whole or not at all.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from burnish._version import __version__
from burnish.core.checkpoint import check_place, read_safetensors_header, weight_files
from burnish.core.checkpoint.durable import saving
from burnish.core.errors import CheckpointError, DataError, OutputError, SettingsError
from burnish.core.outside import answered_for, read_object
from burnish.core.progress import Progress
from burnish.core.settings import first_mistake
from burnish.events import metrics
from burnish.events.anomaly import surprises
from burnish.events.baselines import Baselines
from burnish.events.batches import Window, window_begin
from burnish.events.conformal import HeldOutCalibration, SplitConformal
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvent, NextEvents
from burnish.events.evaluation import ForecastEvaluation, evaluate
from burnish.events.fit_state import FitHistory
from burnish.events.model import EventModel, Objective, TrainingStatistics
from burnish.events.models import MODELS, model_class
from burnish.events.sequence import EventSequence
from burnish.events.training import TrainingSettings, train

if TYPE_CHECKING:
    from burnish.events.stream import EventStream

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "burnish-events"
FORMAT = 3


class EventForecaster:
    """Fits a model, answers questions about the next event, and measures the answers.

    Args:
        model: one of the table in `burnish.events.models`.
        objective: "likelihood", "score" or "score+mass"; the last two for models with a score head.
        time_coordinate: "log" or "gap", for the score objectives.
        **details: other fields of `Objective`.
    """

    def __init__(
        self, model: EventModel, *, objective: str = "likelihood", time_coordinate: str = "log", **details: Any
    ) -> None:
        self.model = model
        self.objective = Objective(objective, time_coordinate, **details)
        if objective not in model.objectives:
            raise SettingsError(
                f"{model.kind} cannot be trained with the objective {objective!r}",
                fix=f"use {' or '.join(model.objectives)}",
            )
        self.mark_names = tuple(str(k) for k in range(model.num_marks))
        self.unit = ""
        self.notes: tuple[str, ...] = ()
        self.training: dict[str, Any] = {}
        self.baselines: Baselines | None = None
        self.conformal: SplitConformal | None = None
        self.calm: NDArray[np.float64] | None = None
        self._exact: tuple[list[tuple[int, int]], EventModel] | None = None
        if objective != "likelihood" and time_coordinate == "gap":
            self.notes += (
                "score matching in the raw gap is biased for point processes (their density is positive at zero); "
                "use the log time coordinate unless the bias is the point",
            )

    @property
    def renormalise(self) -> bool:
        """Whether forecasts divide out a mass that the objective leaves undetermined."""
        return self.objective.name == "score"

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        training: EventDataset,
        validation: EventDataset,
        *,
        state_dir: str | Path | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> FitHistory:
        """Fits the model; the epoch with the best validation loss is kept.

        Weights are drawn anew from the seed, so equal calls give bit-equal forecasters.

        Args:
            training, validation: with the same marks.
            state_dir: directory for the state after every epoch; the same call continues from it.
            progress: for the bar.
            **settings: see `TrainingSettings`: epochs, batch_size, lr, patience, max_grad_norm, seed.

        Raises:
            DataError, SettingsError: the data do not fit the model, or hold nothing to learn from.
            CheckpointError: `state_dir` holds the state of another fit.
        """
        how = TrainingSettings(**settings)
        self._check_data(training, validation)
        resolution = 0.0
        if not (self.model.has_tie_head and self.objective.name == "likelihood"):
            training, validation, resolution = self._without_ties(training, validation, how.seed)
        self.model.statistics = TrainingStatistics.of(training, clock_resolution=resolution)
        self._note_ties()
        self.mark_names, self.unit = training.mark_names, training.unit
        self.baselines = Baselines.fit(training)
        reset_parameters(self.model, how.seed)
        self.model.prepare(training, how.seed)
        packed = self.model.pack(training)
        if packed.num_cut:
            self.notes += (
                f"{packed.num_cut} sequences are longer than {self.model.window} events and were cut into windows "
                f"with {self.model.context} events of history",
            )
        history = train(
            self.model,
            packed,
            self.model.pack(validation),
            self.objective,
            how,
            state_dir=None if state_dir is None else Path(state_dir),
            progress=progress,
        )
        self.training = asdict(how) | {
            "best_epoch": history.best_epoch,
            "epochs_run": len(history.train),
            "start_loss": history.start,
            "validation_loss": history.validation,
            "train_loss": history.train,
            "num_parameters": self.model.num_parameters,
            "num_train_events": training.num_events,
        }
        self.model.eval()
        return history

    def calibrate(self, held_out: EventDataset) -> HeldOutCalibration:
        """Takes the levels of `conformal`, and what surprise is usual, from events that the fit did not learn from.

        Returns:
            Whether moving the levels makes them truer on these events.
        """
        result = self.score(held_out, bootstrap=0)
        self.conformal = SplitConformal.of(result.events["pit"])
        self.calm = np.sort(surprises(result))
        return HeldOutCalibration.of(*(result.events[name] for name in ("pit", "sequence", "index")))

    def update(self, training: EventDataset, validation: EventDataset, **settings: Any) -> FitHistory:
        """Goes on from the fitted weights with newer events; what was validated best is kept, the start included.

        Units, the Hawkes process and other facts of the first training data stay, and so do the types.

        Args:
            training, validation: newer events; what came before may stand in them as context.
            **settings: see `TrainingSettings`; by default 5 epochs with a tenth of the first learning rate.
        """
        how = TrainingSettings(**{"epochs": 5, "lr": 3e-4, **settings})
        self._check_data(training, validation)
        if self.model.statistics.tie_share == 0:
            step = self.model.statistics.clock_resolution or None
            ties = training.num_ties or validation.num_ties or step
            if ties:
                training, validation = training.dequantise(step, seed=how.seed), validation.dequantise(step, seed=1)
        packed = [self.model.pack(part) for part in (training, validation)]
        history = train(self.model, packed[0], packed[1], self.objective, how)
        self.training = self.training | {"updated_with": training.num_events, "updated_best_epoch": history.best_epoch}
        self.conformal = self.calm = None  # of the weights before
        self.model.eval()
        return history

    def _note_ties(self) -> None:
        if self.model.statistics.tie_share > 0:
            self.notes += (
                f"{100 * self.model.statistics.tie_share:.3g} % of the events come at the time of the one before: the "
                "probability of that is a part of the forecast",
            )

    def _check_data(self, training: EventDataset, validation: EventDataset) -> None:
        if training.num_marks != self.model.num_marks:
            raise SettingsError(
                f"the model has {self.model.num_marks} marks, but the data {training.num_marks}",
                fix=f"build it with num_marks={training.num_marks}",
            )
        for name, part in (("training", training), ("validation", validation)):
            if part.num_events == 0:
                raise DataError(f"the {name} part is empty", fix="give more sequences, or other split fractions")
        if self.model.has_location and not training.has_locations:
            raise DataError(f"{self.model.kind} needs locations, and the events have none", fix="give --x and --y")
        if training.num_covariates != self.model.num_covariates:
            raise SettingsError(
                f"the model takes {self.model.num_covariates} covariates, the events have {training.num_covariates}",
                fix=f"build it with num_covariates={training.num_covariates}",
            )
        if training.num_exogenous != self.model.num_exogenous:
            raise SettingsError(
                f"the model takes {self.model.num_exogenous} exogenous values, the events have "
                f"{training.num_exogenous}",
                fix=f"build it with num_exogenous={training.num_exogenous}",
            )
        if training.num_exogenous and self.objective.name != "likelihood":
            raise SettingsError(
                "exogenous values cut gaps into pieces, of which the score objectives know nothing",
                fix="use the objective likelihood",
            )
        if training.num_ties and training.num_ties == len(training.inner_gaps()):
            raise DataError("all events happen at the same time", fix="check the time column and its unit")

    def _without_ties(
        self, training: EventDataset, validation: EventDataset, seed: int
    ) -> tuple[EventDataset, EventDataset, float]:
        """Both parts with events of one instant spread over the clock's step, and that step, 0 where there are none."""
        if not training.num_ties and not validation.num_ties:
            return training, validation, 0.0
        resolution = training.clock_resolution
        training = training.dequantise(resolution, seed=seed)
        self.notes += (training.notes[-1],)
        return training, validation.dequantise(resolution, seed=seed + 1), resolution

    # -- asking ------------------------------------------------------------------------------------------------------

    def next_events(self, dataset: EventDataset) -> NextEvents:
        """The law of the event after the last one of every sequence."""
        return NextEvents(self.exact, self._last_condition(dataset), renormalise=self.renormalise)

    def next_event(self, history: EventSequence) -> NextEvent:
        """The law of the event after a history."""
        if len(history) and history.marks.max() >= self.model.num_marks:
            raise DataError(
                f"has mark {int(history.marks.max())}, but the model knows {self.model.num_marks} marks",
                where="history",
                fix="map unknown types to a known one, or fit again with them",
            )
        dataset = EventDataset((history,), self.mark_names)
        return NextEvent(self.next_events(dataset), self.mark_names)

    @property
    def exact(self) -> EventModel:
        """The model in float64, as forecasts and streams ask it: their rounding stays unseen."""
        model = self.model
        if model.dtype == torch.float64:
            return model.eval()
        weights = [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
        if self._exact is None or self._exact[0] != weights:
            self._exact = weights, copy.deepcopy(model).double().eval()
        twin = self._exact[1]
        twin.statistics, twin.window, twin.context = model.statistics, model.window, model.context
        return twin

    @torch.no_grad()
    def _last_condition(self, dataset: EventDataset) -> dict[str, Tensor]:
        """Conditions after the last events, each encoded by itself: what else is asked changes no bit of an answer."""
        model = self.exact
        packed = model.pack(dataset)
        parts: list[dict[str, Tensor]] = []
        for index, sequence in enumerate(dataset.sequences):
            n = len(sequence)
            if n == 0:
                raise DataError(f"sequence {sequence.name!r} has no event to forecast from", fix="leave it out")
            begin = window_begin(n, model.window, model.context)
            batch = packed.gather([Window(index, begin, n, n)])
            parts.append(model.condition_after(batch, model.states(batch), slice(None), n - begin))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def stream(self, *, start: float | None = None) -> EventStream:
        """Online use: feed events one at a time and ask in between; `start` as for a sequence."""
        from burnish.events.stream import EventStream

        return EventStream(self, start=start)

    def score(
        self, test: EventDataset, *, bootstrap: int = 200, progress: Progress | None = None
    ) -> ForecastEvaluation:
        """Metrics on events 2..N of every sequence, with bootstrap errors, baselines beside."""
        notes: tuple[str, ...] = ()
        resolution = self.model.statistics.clock_resolution
        if (test.num_ties or resolution) and self.model.statistics.tie_share == 0:
            test = test.dequantise(resolution or None, seed=2)
            notes = (test.notes[-1],)
        result = evaluate(
            self.model,
            test,
            renormalise=self.renormalise,
            baselines=self.baselines,
            bootstrap=bootstrap,
            progress=progress,
        )
        if self.conformal is not None:
            moved = self.conformal.cdf(result.events["pit"])
            result.scores["calibration_score_conformal"] = metrics.calibration_score(moved)
        return replace(result, notes=result.notes + notes)

    # -- saving ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False, **extra: Any) -> Path:
        """Writes config.json and model.safetensors, whole or not at all.

        Raises:
            OutputError: the directory exists and is not a forecaster, or is one and `overwrite` is not given.
        """
        from safetensors.torch import save_file

        target = Path(directory)
        check_free(target, overwrite=overwrite)
        baselines = None
        if self.baselines is not None:
            baselines = {
                "rate": self.baselines.rate,
                "mark_shares": self.baselines.mark_shares.tolist(),
                "transitions": self.baselines.transitions.tolist(),
                "gaps": [np.quantile(gaps, np.linspace(0, 1, 1001)).tolist() for gaps in self.baselines.gaps],
            }
        config = {
            "model_type": MODEL_TYPE,
            "format": FORMAT,
            "burnish_version": __version__,
            "torch_version": torch.__version__,
            **self.model.config(),
            "objective": asdict(self.objective),
            "mark_names": list(self.mark_names),
            "unit": self.unit,
            "notes": list(self.notes),
            "training": self.training,
            "conformal": None if self.conformal is None else [self.conformal.pit.tolist(), self.conformal.num_events],
            "calm": None if self.calm is None else _thinned(self.calm),
            "baselines": baselines,
            "extra": extra,
        }
        with saving(target, replace=overwrite) as staging:
            (staging / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
            state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
            save_file(state, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        return target

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Reads what `save_pretrained` wrote.

        Raises:
            CheckpointError: not a forecaster, damaged, or written in another format.
        """
        from safetensors.torch import load_file

        path = Path(directory)
        config = read_forecaster_config(path)
        weights = weight_files(path)[0]
        shapes = {name: entry["shape"] for name, entry in read_safetensors_header(weights).items()}
        with answered_for("holds no forecaster that can be made", where=str(path), fix="fit it again"):
            model = _built(config, shapes, str(path))
            state = load_file(weights)
            model.to(next(iter(state.values())).dtype)
            model.load_state_dict(state)
            objective = asdict(config.objective)
            forecaster = cls(model.eval(), objective=objective.pop("name"), **objective)
        forecaster.mark_names, forecaster.unit = config.mark_names, config.unit
        forecaster.notes, forecaster.training = config.notes, config.training
        if config.conformal is not None:
            pit, num_events = config.conformal
            forecaster.conformal = SplitConformal(np.array(pit), num_events)
        forecaster.calm = None if config.calm is None else np.array(config.calm)
        if (saved := config.baselines) is not None:
            shares, transitions = np.array(saved.mark_shares), np.array(saved.transitions)
            forecaster.baselines = Baselines(saved.rate, shares, tuple(map(np.array, saved.gaps)), transitions)
        return forecaster


def check_free(target: Path, *, overwrite: bool) -> None:
    """Opens the place of a forecaster, before the work as well as after it.

    Raises:
        OutputError: it cannot be written to, holds something else, or holds a forecaster and `overwrite` is not given.
    """
    check_place(target)
    if is_forecaster(target) and not overwrite:
        raise OutputError("exists already", where=str(target), fix="choose another place, or pass --overwrite")
    if not is_forecaster(target) and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError("exists and is not an event forecaster", where=str(target), fix="choose another place")


def _thinned(values: NDArray[np.float64]) -> list[float]:
    """At most 10,001 quantiles of sorted values."""
    if len(values) <= 10_001:
        return values.tolist()
    return np.quantile(values, np.linspace(0, 1, 10_001), method="higher").tolist()


def is_forecaster(path: Path) -> bool:
    """Whether a directory holds a saved forecaster of any format."""
    config = path / CONFIG_FILE
    return config.is_file() and f'"{MODEL_TYPE}"' in config.read_text(encoding="utf-8", errors="replace")


class SavedBaselines(BaseModel):
    """Of the naive forecasts: numbers of `Baselines`."""

    rate: float
    mark_shares: list[float]
    transitions: list[list[float]]
    gaps: list[list[float]]


class SavedForecaster(BaseModel):
    """What config.json of a forecaster must hold: it may come from anywhere."""

    model: Literal[tuple(MODELS)]  # pyright: ignore[reportInvalidTypeForm]
    settings: dict[str, Any]
    statistics: TrainingStatistics
    window: int = Field(ge=2)
    context: int = Field(ge=0)
    objective: Objective
    mark_names: tuple[str, ...]
    unit: str
    notes: tuple[str, ...]
    training: dict[str, Any]
    conformal: tuple[list[float], int] | None
    calm: list[float] | None
    baselines: SavedBaselines | None
    extra: dict[str, Any]


def _built(config: SavedForecaster, shapes: dict[str, list[int]], where: str) -> EventModel:
    """The model of a configuration without its weights, made only where these are of its size."""
    kind, settings = model_class(config.model), config.settings
    fits = len(config.mark_names) == settings.get("num_marks") and settings.get("num_layers", 0) <= len(shapes)
    if fits:
        with torch.device("meta"):
            fits = shapes == {name: list(tensor.shape) for name, tensor in kind(**settings).state_dict().items()}
    if not fits:
        raise CheckpointError("its weights do not fit its config.json", where=where, fix="fit it again")
    model = kind(**settings)
    model.statistics, model.window, model.context = config.statistics, config.window, config.context
    return model


def read_forecaster_config(path: Path) -> SavedForecaster:
    """config.json of a saved forecaster, checked for its format.

    Raises:
        CheckpointError: there is none, or it is damaged, of another version, or not what is written here.
    """
    if not is_forecaster(path):
        raise CheckpointError(
            "is not a saved event forecaster", where=str(path), fix="make one with burnish events fit"
        )
    config = read_object(path / CONFIG_FILE)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"was written in format {config.get('format')} by burnish {config.get('burnish_version', 'unknown')}, "
            f"but this burnish reads format {FORMAT}",
            where=str(path),
            fix="fit it again, or use the burnish that wrote it",
        )
    try:
        return SavedForecaster.model_validate(config)
    except ValidationError as error:
        said = first_mistake(error)
        raise CheckpointError(said, where=str(path / CONFIG_FILE), fix="fit it again") from None


def reset_parameters(model: EventModel, seed: int) -> None:
    """Draws the weights anew, as the constructor does, from a seed and without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(**model.settings)
    model.load_state_dict({name: value.to(model.dtype) for name, value in fresh.state_dict().items()})
