"""The loss table for the programs that people watch trainings with: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is reached through its own package, an optional one, with its own settings: WANDB_MODE, MLFLOW_TRACKING_URI and the
like say where rows go, and without them TensorBoard and MLflow write into a directory of the run. A tracker that fails
is said once and left out from then on; the training does not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from burnish.core.errors import MissingExtraError, SettingsError, nearest

if TYPE_CHECKING:
    from burnish.core.progress import Progress

DIRECTORY = "tracking"
"""In the work directory of a node; the run keeps it beside the losses."""

Row = Mapping[str, float]


class Tracker(Protocol):
    """What takes rows."""

    def log(self, row: Row, step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows of steps that are done once more replace those of the process that was interrupted.
        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first + 1)
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(self, row: Row, step: int) -> None:
        for key, value in row.items():
            self.writer.add_scalar(f"train/{key}", value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """Trackio's functions are those of Weights & Biases."""

    package = "wandb"

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first: int) -> None:
        import importlib

        self.module: Any = importlib.import_module(self.package)
        directory.mkdir(parents=True, exist_ok=True)
        place = {"dir": str(directory)} if self.package == "wandb" else {}
        self.module.init(project="burnish", name=name, config=dict(settings), **place)

    def log(self, row: Row, step: int) -> None:
        self.module.log(dict(row), step=step)

    def close(self) -> None:
        self.module.finish()


class _Trackio(_Wandb):
    package = "trackio"


class _Mlflow:
    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first: int) -> None:
        import importlib

        self.module: Any = importlib.import_module("mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            directory.mkdir(parents=True, exist_ok=True)
            self.module.set_tracking_uri(f"sqlite:///{(directory / 'mlflow.db').absolute()}")
        self.module.start_run(run_name=name)
        self.module.log_params({key: str(value)[:500] for key, value in settings.items()})

    def log(self, row: Row, step: int) -> None:
        self.module.log_metrics(dict(row), step=step)

    def close(self) -> None:
        self.module.end_run()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
"""By the name of the package and of the extra."""


class Trackers:
    """All trackers of a training.

    Args:
        names: of `TRACKERS`.
        directory: where those that write files write them.
        run: what the run is called.
        settings: of the training, for people to read.
        progress: where a tracker that fails is said.
    """

    def __init__(
        self, names: list[str], directory: Path, run: str, settings: Mapping[str, Any], progress: Progress
    ) -> None:
        self.names, self.directory, self.run, self.settings = names, directory, run, settings
        self.progress = progress
        self.open: dict[str, Tracker] = {}

    def start(self, first: int) -> None:
        """Opens all of them, for a training that goes on after so many steps."""
        for name in self.names:
            self._try(name, "start", lambda n: self.open.update({n: self._opened(n, first)}))

    def log(self, row: Row, step: int) -> None:
        """Gives a row of the loss table to each."""
        for name in list(self.open):
            self._try(name, "take a row", lambda n: self.open[n].log(row, step))

    def close(self) -> None:
        """Ends each."""
        for name in list(self.open):
            self._try(name, "end", lambda n: self.open[n].close())
        self.open.clear()

    def _opened(self, name: str, first: int) -> Tracker:
        return TRACKERS[name](self.directory, self.run, self.settings, first)

    def _try(self, name: str, what: str, act: Callable[[str], object]) -> None:
        try:
            act(name)
        except Exception as error:  # noqa: BLE001 - whatever another program does, the training is not lost to it
            self.open.pop(name, None)
            cause = (str(error).splitlines() or [""])[0]
            self.progress.log(
                f"{name} could not {what} ({type(error).__name__}: {cause}); the training goes on without it, and its "
                "losses are in metrics.jsonl"
            )


def tracker_names(text: str) -> list[str]:
    """The trackers of `report_to`, in order.

    Raises:
        SettingsError: there is none of that name.
        MissingExtraError: its package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            guess = nearest(name, list(TRACKERS))
            advice = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(TRACKERS)}"
            raise SettingsError(f"there is no tracker {name!r}", where="report_to", fix=advice)
        if find_spec(name) is None:
            raise MissingExtraError(name, name, f"report_to {name}")
    return names
