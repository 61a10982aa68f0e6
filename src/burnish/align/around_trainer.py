"""What stages do around a trainer of transformers: quiet libraries, a bar, float32 weights, the state to go on from."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import MultiProcessAdapter
from transformers.trainer_callback import TrainerCallback

from burnish.data.preferences import import_datasets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from burnish.align.stage import Align, Grpo
    from burnish.core.progress import Task
    from burnish.core.stage import Context
    from burnish.train.watch import Watch


class _Passed(logging.Handler):
    """Hands warnings on as lines of the stage's own."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"TRL: {record.getMessage().removeprefix('[RANK 0] ')}")


@contextlib.contextmanager
def libraries_quiet(say: Callable[[str], None]) -> Iterator[None]:
    """The stage has a bar and messages of its own: those of datasets and transformers stay out of them.

    What TRL warns of is about the user's data (a prompt whose last tokens merge with the answer's), so it is said.
    """
    from transformers.utils import logging as transformers_logging

    datasets = import_datasets()
    trl, passed = logging.getLogger("trl"), _Passed(say)
    before, verbosity, inherited = trl.propagate, transformers_logging.get_verbosity(), os.environ.get("TQDM_DISABLE")
    bars = [
        enable
        for enable, is_shown in (
            (datasets.enable_progress_bars, not datasets.are_progress_bars_disabled()),
            (transformers_logging.enable_progress_bar, transformers_logging.is_progress_bar_enabled()),
        )
        if is_shown
    ]
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    trl.addHandler(passed)
    trl.propagate = False
    MultiProcessAdapter.warning_once.cache_clear()  # once a process otherwise, and silent for every later data set
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        for enable in bars:
            enable()
        transformers_logging.set_verbosity(verbosity)
        trl.removeHandler(passed)
        trl.propagate = before
        if inherited is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = inherited


def on_device(module: PreTrainedModel, ctx: Context) -> PreTrainedModel:
    """A float32 copy on the stage's device."""
    return copy.deepcopy(module).float().to(torch.device(ctx.device))  # type: ignore[arg-type]  # their stubs


def trainer_arguments(settings: Align | Grpo, ctx: Context, states: Path) -> dict[str, Any]:
    """What every trainer is told of where it works, of what it keeps, and that the stage speaks for it."""
    on_gpu = ctx.device.startswith("cuda")
    return {
        "output_dir": str(states),
        "seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
    }


def last_state(directory: Path) -> str | None:
    """The newest whole state of an interrupted run, or None. The trainer writes its summary last."""
    whole = [path for path in directory.glob("checkpoint-*") if _is_whole(path / "trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def _is_whole(summary: Path) -> bool:
    try:
        json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class Bar(TrainerCallback):
    """Moves the progress bar once per optimizer step, from those that the state which training goes on from has."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.task.total, self.task.done, self.task.before = state.max_steps, state.global_step, state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.task.advance()


class NothingToLearn(TrainerCallback):
    """Says so, once, where all answers to every problem have earned the same for many updates.

    Args:
        say: takes the sentence.
    """

    UPDATES = 10

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.in_a_row = say, 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        # of the groups that are learned from, where others took the places of some
        share = logs.get("unmoved_groups", logs.get("frac_reward_zero_std"))
        if share is None:
            return
        self.in_a_row = self.in_a_row + 1 if share == 1.0 else 0
        if self.in_a_row == self.UPDATES:
            self.say(
                f"in {self.UPDATES} updates no two answers to a problem have earned differently, so nothing is "
                "learned: take harder or easier problems, more rollouts, or a higher temperature"
            )


class Watching(TrainerCallback):
    """Lets a watch look at the model, as the loop of `burnish.train` does: every so many steps, and after the last.

    Args:
        watch: what looks.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.watch.begin(kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % self.watch.every and not last:
            return
        module, training = kwargs["model"], kwargs["model"].training
        fused = module.__dict__.pop("forward", None)  # TRL's head; what looks knows the class's own forward
        module.eval()
        with torch.no_grad():
            ended = self.watch.look(state.global_step, module)
        module.train(training)
        if fused is not None:
            module.forward = fused
        if ended or last:
            control.should_training_stop = True
            control.should_save = False  # a state goes on training, and this is the end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watch.end(kwargs["optimizer"])
