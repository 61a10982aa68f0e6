"""The one training loop. Pre-training, fine-tuning, distillation and quantization-aware training are loss functions
over it; what differs between one process and many is a `World`.

    fit(model, rows, causal_lm_loss, NorMuon.for_model(model, lr=1e-3), ctx, Loop(steps=1000, batch_size=32))

A step: draw the rows of this step number; for each micro-batch add up the gradient of the *sum* over tokens; add up
the weights over micro-batches and processes; divide once, clip, step. So every token of a step counts the same.
Nothing depends on wall time or on earlier draws: rows, dropout and learning rate are functions of the step number, so
a training that was killed and resumed ends with the very same weights. One that goes on with changed settings does not,
and says so: `Fit.changes`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from burnish.core.checkpoint import text_digest
from burnish.core.errors import NumericalError, SettingsError
from burnish.core.store import Key
from burnish.optim.constrained.pstorm import PStorm
from burnish.optim.optimizer import MatrixOptimizer
from burnish.optim.wsam import WSAM
from burnish.train.best import Best
from burnish.train.bound import Bound, Bounded
from burnish.train.losses import ROWS, STEP, STEPS, Batch, LossFn, detached, means
from burnish.train.maths.schedule import Schedule
from burnish.train.sampler import Sampler
from burnish.train.saved import States
from burnish.train.speed import Throughput
from burnish.train.trackers import Trackers
from burnish.train.watch import Watch
from burnish.train.world import ALONE, World

if TYPE_CHECKING:
    from burnish.core.stage import Context

METRICS_FILE = "metrics.jsonl"

MOST_SKIPPED = 0.05
"""Share of the steps, and one step in any case, that may have a gradient that is not finite."""

CONTINUE = "to go on from the last saved state pass --continue-with-changes"


class Rows(Protocol):
    """Training data: `burnish.data.packing.PackedRows`, or anything that gives batches by row number."""

    def __len__(self) -> int: ...

    @property
    def hash(self) -> str:
        """Names the content, so that a state is not continued on other data."""
        ...

    def take(self, rows: list[int]) -> dict[str, Tensor]:
        """A batch with at least `input_ids`."""
        ...


@dataclass(frozen=True)
class Loop:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: rows per step, over all processes.
        micro_batch_size: rows per forward pass; None is all rows of the step.
        schedule: learning rate over the steps, times the rate that each group of the optimizer was made with.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        precision: "float32", or "bfloat16" for bfloat16 products with float32 weights and state.
        on_nonfinite: "stop" with an error that names the parameter, or "skip" the step.
        eval_every: steps between two measurements on the held-out rows; 0 measures at the end only.
        keep_best: end with the weights of the lowest loss on the held-out rows, those of the start among them.
        save_every: steps between two saved states; 0 saves none.
        save_async: with several processes, go on training while a state is written (it is copied first).
        log_every: steps per row of the loss table; 0 chooses so that there are at most 400 rows.
        compile: run the forward pass through torch.compile.
        seed: of the order of rows and of dropout.
    """

    steps: int
    batch_size: int
    micro_batch_size: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    max_grad_norm: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    eval_every: int = 0
    keep_best: bool = False
    save_every: int = 100
    save_async: bool = False
    log_every: int = 0
    compile: bool = False
    seed: int = 0


@dataclass
class Fit:
    """What a training did.

    Attributes:
        steps: steps in all; fewer than were asked for where a watch has ended the training.
        resumed_from: steps that an earlier process had done.
        skipped: steps without an update because a gradient was not finite, as {step, parameter}.
        changes: what was set otherwise than before when the training was continued, as {after_step, change}.
        tokens: input tokens of all steps.
        rows: the loss table {step, loss, validation_loss, lr, gradient_norm, tokens_per_second, tokens}, and
            {flops_per_second, mfu} of one device where they are known.
        validation: metrics on the held-out rows of the weights that are kept, empty without any.
    """

    steps: int
    resumed_from: int
    skipped: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    tokens: int
    rows: list[dict[str, Any]]
    validation: dict[str, float]


def fit(
    model: nn.Module,
    data: Rows,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    ctx: Context,
    loop: Loop,
    *,
    validation: Rows | None = None,
    world: World = ALONE,
    key: Key | None = None,
    bounded: Bounded | None = None,
    speed: Throughput | None = None,
    trackers: Trackers | None = None,
    watch: Watch | None = None,
) -> Fit:
    """Trains `model` in place and adds the table `loss` to the ledger.

    Args:
        model: on its device already, in the dtype to train in.
        data: rows to train on.
        loss_fn: see `burnish.train.losses`.
        optimizer: any torch optimizer; the learning rates of its groups are the peaks.
        ctx: `work_dir` takes the states (and gives the one to go on from), `progress` and `ledger` the news.
        loop: how to train.
        validation: rows to measure on, never trained on.
        world: of how many processes this is one.
        key: everything beside the data that the trained weights depend on, by named parts; a state is continued only
            where it is the same, but for the parts in `ctx.may_change`. Not given, it is a digest of the model as it is
            now, the optimizer and `loop`; a loss with settings of its own needs them named.
        bounded: other data whose loss stays below a level, in one process; adds the tables `constraints`, over steps,
            and `bound`, what held-out rows of it say.
        speed: what a token costs, for the loss table.
        trackers: where the rows of the loss table go too, from the main process.
        watch: what looks at the model every so many steps and may end the training, in one process.

    Raises:
        SettingsError: impossible settings, or fewer steps than the state to continue from has done.
        NumericalError: a gradient is not finite, and `on_nonfinite` is "stop", or more than one step in twenty had one.
        CheckpointError: `work_dir` holds the state of another training.
        OutputError: a state could not be written.
    """
    _check(data, loop, world, validation)
    if watch is not None and world.size > 1:
        raise SettingsError("what is watched is trained by one process only", fix="leave `launch` out")
    parts = (validation, world, key, bounded, speed, trackers, watch)
    return _Training(model, data, loss_fn, optimizer, ctx, loop, *parts).run()


def evaluate(
    model: nn.Module,
    data: Rows,
    loss_fn: LossFn,
    *,
    micro_batch_size: int,
    precision: str = "float32",
    world: World = ALONE,
) -> dict[str, float]:
    """Mean loss (and metrics) per unit of weight over all rows, in evaluation mode.

    Raises:
        SettingsError: no row has a token that counts.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    names: list[str] = []
    sums: Tensor | None = None
    with torch.no_grad(), _autocast(device, precision):
        # Every process does the same number of forward passes, for they wait for each other's weights. One that has no
        # rows left does row 0 once more, and it does not count.
        for first in range(0, len(data), world.num_shares * micro_batch_size):
            start = first + world.share * micro_batch_size
            rows = list(range(start, min(start + micro_batch_size, len(data))))
            loss = loss_fn(model, world.cut(_to(data.take(rows or [0]), device)))
            names = sorted(loss.metrics)
            part = detached(loss, names)
            part = part if rows else torch.zeros_like(part)
            sums = part if sums is None else sums + part
    world.after_forward(model)
    model.train(was_training)
    if sums is None:
        raise SettingsError("there are no held-out rows to measure on")
    total, weight, *metrics = world.sum_(sums).tolist()
    if not weight > 0:
        raise SettingsError("no held-out row has a token that counts in the loss")
    return means(total, weight, dict(zip(names, metrics, strict=True)))


def _check(data: Rows, loop: Loop, world: World, validation: Rows | None) -> None:
    micro = loop.micro_batch_size or loop.batch_size
    if loop.steps < 1 or loop.batch_size < 1 or micro < 1:
        raise SettingsError(f"steps {loop.steps}, batch_size {loop.batch_size} and micro_batch_size {micro} must be 1+")
    if loop.batch_size % world.num_shares:
        who = "processes" if world.num_shares == world.size else "groups of processes"
        raise SettingsError(
            f"a batch of {loop.batch_size} rows cannot be shared evenly by {world.num_shares} {who}",
            fix="use a multiple, or another number of processes",
        )
    if len(data) == 0:
        raise SettingsError("there are no rows to train on")
    if loop.keep_best and validation is None:
        what = "keep_best needs held-out rows to measure on"
        raise SettingsError(what, where="keep_best", fix="give validation, or a holdout")
    if loop.keep_best and world.size > 1:
        raise SettingsError("keep_best is for one process only", where="keep_best", fix="leave keep_best out")


class _Training:
    """One call of `fit`; its attributes are what the steps share."""

    def __init__(
        self,
        model: nn.Module,
        data: Rows,
        loss_fn: LossFn,
        optimizer: torch.optim.Optimizer,
        ctx: Context,
        loop: Loop,
        validation: Rows | None,
        world: World,
        key: Key | None,
        bounded: Bounded | None,
        speed: Throughput | None,
        trackers: Trackers | None,
        watch: Watch | None,
    ) -> None:
        self.model, self.data, self.loss_fn, self.optimizer = model, data, loss_fn, optimizer
        self.ctx, self.loop, self.validation, self.world = ctx, loop, validation, world
        self.speed, self.watch = speed, watch
        self.trackers = trackers if world.is_main else None
        self.forward: Any = torch.compile(model) if loop.compile else model
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.device = self.named[0][1].device
        self.sampler = Sampler(len(data), loop.batch_size, loop.seed)
        self.log_every = loop.log_every or math.ceil(loop.steps / 400)
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        parts = self._default_key() if key is None else dict(key)
        if bounded is not None:
            parts["bound"] = bounded.key
        self.bound = None if bounded is None else Bound(bounded)
        self.states = States(ctx.work_dir, parts | {"data": data.hash}, ctx.may_change)
        self.best = Best(ctx.work_dir, self.states.key) if loop.keep_best else None
        self.rows: list[dict[str, Any]] = []
        self.window = _Window()
        self.skipped: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.tokens = 0

    def _default_key(self) -> dict[str, Any]:
        watching = ("eval_every", "save_every", "save_async", "log_every")
        settings = {name: value for name, value in asdict(self.loop).items() if name not in watching}
        changing = ("params", "lr", "num_steps")  # from step to step
        groups = [{k: v for k, v in g.items() if k not in changing} for g in self.optimizer.param_groups]
        return settings | {
            "model": self.world.digest(self.model),
            "optimizer": f"{type(self.optimizer).__name__} {text_digest(groups)}",
            "lr": self.peaks,
        }

    # -- from the first step to the last -----------------------------------------------------------------------------

    def run(self) -> Fit:
        try:
            return self._run()
        finally:
            if self.trackers is not None:
                self.trackers.close()

    def _run(self) -> Fit:
        self.world.prepare(self.model, self.states.key)
        first = self._resume()
        loop = self.loop
        if self.trackers is not None:
            self.trackers.start(first)
        if self.bound is not None and first == 0:
            self._start_bound(self.bound)
        if self.best is not None and self.best.step < 0:
            self.best.offer(0, self._evaluate(), self.model)
        if self.watch is not None and first == 0:
            self.watch.begin(self.optimizer)
        self.model.train()
        done, validation = first, dict[str, float]()
        length = self.data.take([0])["input_ids"].shape[1]
        with (
            _restored_randomness(self.device),
            self.ctx.progress.task(
                "training", total=loop.steps * loop.batch_size * length, unit="tokens", done=self.tokens
            ) as task,
        ):
            for step in range(first, loop.steps):
                before = self.tokens
                self._step(step)
                task.advance(self.tokens - before)
                done = step + 1
                due = loop.eval_every and done % loop.eval_every == 0
                last = self._ended(done) or done == loop.steps
                if self.validation is not None and (due or last):
                    validation = self._evaluate()
                    if self.best is not None:
                        self.best.offer(done, validation, self.model)
                if done % self.log_every == 0 or last or validation:
                    task.note(f"loss {self._log(done, validation):.4g}")
                if last:
                    break
                validation = {}
                if loop.save_every and done % loop.save_every == 0:
                    self._save(done)
        self.world.finish()
        if self.watch is not None:
            self.watch.end(self.optimizer)
        if self.best is not None:
            self.best.put_into(self.model)
            validation = self.best.metrics
        if self.world.is_main:
            self.ctx.progress.log(self._result(done, validation))
            self.ctx.ledger.table("loss", self.rows)
            for name, rows in (("skipped steps", self.skipped), ("changes on the way", self.changes)):
                if rows:
                    self.ctx.ledger.table(name, rows)
            if self.bound is not None:
                self._report_bound(self.bound)
        return Fit(done, first, self.skipped, self.changes, self.tokens, self.rows, validation)

    def _ended(self, done: int) -> bool:
        """Whether a watch that is due ends the training; one is due after the last step as well."""
        if self.watch is None or (done % self.watch.every and done < self.loop.steps):
            return False
        self.model.eval()
        with torch.no_grad():
            ended = self.watch.look(done, self.model)
        self.model.train()
        return ended

    def _result(self, done: int, validation: dict[str, float]) -> str:
        """One line for logs, where no progress bar has shown it."""
        last = self.rows[-1] if self.rows else {}
        held_out = f", on held-out rows {validation['loss']:.4g}" if validation else ""
        if self.best is not None:
            held_out += f" (of step {self.best.step:,}, the best and the one that is kept)"
        loss = f"{last['loss']:.4g}" if "loss" in last else "unknown, for the last steps had no gradient"
        each = last.get("tokens_per_second", 0.0) / self.world.size
        speed = f"; {self.speed.words(each)}" if self.speed is not None and each else ""
        return f"after {done:,} steps and {self.tokens:,} tokens the loss is {loss}{held_out}{speed}"

    def _step(self, step: int) -> None:
        started = time.monotonic()
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.loop.schedule(step, self.loop.steps)
        self.optimizer.zero_grad(set_to_none=True)
        sums, names = self._gradients(step)
        total, weight, *metrics, tokens = self.world.sum_(sums).tolist()
        self.tokens += int(tokens)
        self.window.tokens += int(tokens)
        violation = self._add_bound(step, weight)
        norm = self._divide_and_clip(step, weight)
        if norm is not None:
            self._update(step, weight, norm)
            self.window.norm = norm
        if self.bound is not None and violation is not None:
            self.bound.observe(step, violation)
        if weight > 0 and math.isfinite(total):
            self.window.add(total, weight, dict(zip(names, metrics, strict=True)))
        self.window.seconds += time.monotonic() - started

    def _add_bound(self, step: int, weight: float) -> float | None:
        """Adds the gradient of the bound where there is one; its violation on the batch of the step."""
        if self.bound is None or not weight > 0:
            return None
        put, precision = lambda batch: _to(batch, self.device), self.loop.precision
        return self.bound.add_gradient(step, weight, self.forward, put, lambda: _autocast(self.device, precision))

    def _update(self, step: int, weight: float, norm: float) -> None:
        """Steps the optimizer; one of ours needs not read all gradients once more to see that they are finite."""
        if isinstance(self.optimizer, PStorm):
            self._two_point_update(self.optimizer, step, weight)
            return
        if isinstance(self.optimizer, WSAM):
            self._uphill_update(self.optimizer, step, weight)
            return
        if isinstance(self.optimizer, MatrixOptimizer):
            ours = {id(parameter) for _, parameter in self.named}
            if all(id(parameter) in ours for group in self.optimizer.param_groups for parameter in group["params"]):
                self.optimizer.step(gradient_norm=norm)
                return
        self.optimizer.step()

    def _two_point_update(self, optimizer: PStorm, step: int, weight: float) -> None:
        """PStorm's second gradient is that of the same step at the point before; it is never clipped."""
        here = optimizer.gradients()
        before = optimizer.gradients_before(lambda: self._gradients_again(step, weight))
        for gradient in before.values():
            gradient.div_(weight)
        bad = [name for name, p in self.named if p in before and not before[p].isfinite().all()]
        if bad:
            self._skip_or_stop(step + 1, bad[0])
        else:
            optimizer.move(here, before)

    def _uphill_update(self, optimizer: WSAM, step: int, weight: float) -> None:
        """WSAM's second gradient is that of the same step at a point uphill, clipped like the first."""
        first = optimizer.gradients()
        with optimizer.uphill(first):
            optimizer.zero_grad(set_to_none=True)
            self._gradients_again(step, weight)
        if self._divide_and_clip(step, weight) is not None:
            optimizer.move(first)

    def _gradients_again(self, step: int, weight: float) -> None:
        """The gradient sums of a step where the weights are now: of its rows, and with the same weight of the bound."""
        self._gradients(step)
        self._add_bound(step, weight)

    def _gradients(self, step: int) -> tuple[Tensor, list[str]]:
        """Adds up the gradient of the sum over the tokens of this process's rows of the step.

        Returns:
            Total, weight, metrics and the number of input tokens of these rows; the names of the metrics.
        """
        rows = self.sampler.rows(step)
        share = len(rows) // self.world.num_shares
        rows = rows[self.world.share * share : (self.world.share + 1) * share]
        micro = self.loop.micro_batch_size or share
        sums: Tensor | None = None
        names: list[str] = []
        tokens = 0
        for number, start in enumerate(range(0, share, micro)):
            chosen = rows[start : start + micro]
            place = {STEP: torch.tensor(step), STEPS: torch.tensor(self.loop.steps), ROWS: torch.tensor(chosen)}
            batch = self.world.cut(_to(self.data.take(chosen) | place, self.device))
            tokens += batch["input_ids"].numel()
            torch.manual_seed(((self.loop.seed * 1_000_003 + step) * 1009 + number) * 1009 + self.world.rank)
            with _autocast(self.device, self.loop.precision):
                loss = self.loss_fn(self.forward, batch)
            loss.total.backward()
            names = sorted(loss.metrics)
            part = detached(loss, names)
            sums = part if sums is None else sums + part
        assert sums is not None, "a step has at least one row"
        return torch.cat([sums, sums.new_tensor([tokens])]), names

    @torch.no_grad()
    def _divide_and_clip(self, step: int, weight: float) -> float | None:
        """Turns gradients of the sum into gradients of the mean, clipped; returns their norm, None to skip the step."""
        gradients = [p.grad for _, p in self.named if p.grad is not None]
        if not gradients or not weight > 0:
            return None
        norm = self.world.norm(gradients) / weight
        if not math.isfinite(norm):
            self._skip_or_stop(step + 1, self._first_nonfinite())
            return None
        # PStorm limits its steps itself: gradients cut by different factors would not correct each other.
        limit = None if isinstance(self.optimizer, PStorm) else self.loop.max_grad_norm
        factor = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        torch._foreach_mul_([self.world.local(gradient) for gradient in gradients], factor / weight)
        return norm

    def _skip_or_stop(self, step: int, parameter: str) -> None:
        if self.loop.on_nonfinite == "stop":
            raise NumericalError(
                f"the gradient of {parameter} is not finite in step {step}",
                fix=f"lower lr, or set on_nonfinite to skip; {CONTINUE}",
            )
        self.skipped.append({"step": step, "parameter": parameter})
        if len(self.skipped) > max(1, int(MOST_SKIPPED * self.loop.steps)):
            raise NumericalError(
                f"{len(self.skipped)} of {step} steps had a gradient that is not finite, the last that of {parameter}",
                fix=f"lower lr; {CONTINUE}, to start again pass --restart",
            )
        self.ctx.progress.log(f"step {step} is skipped: the gradient of {parameter} is not finite")

    def _first_nonfinite(self) -> str:
        gradients = [(name, self.world.local(p.grad)) for name, p in self.named if p.grad is not None]
        bad = self.world.sum_(torch.tensor([float(not g.isfinite().all()) for _, g in gradients], device=self.device))
        for (name, _), processes in zip(gradients, bad.tolist(), strict=True):
            if processes:
                return name
        return "no single parameter, but their sum,"

    # -- news --------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, float]:
        assert self.validation is not None, "asked for only where there are held-out rows"
        micro = self.loop.micro_batch_size or self.loop.batch_size
        return evaluate(
            self.model,
            self.validation,
            self.loss_fn,
            micro_batch_size=micro,
            precision=self.loop.precision,
            world=self.world,
        )

    def _bound_loss(self, bound: Bound) -> float:
        """On the held-out rows of the bounded data."""
        bounded, precision = bound.bounded, self.loop.precision
        micro = bounded.micro_batch_size or bounded.batch_size
        found = evaluate(self.model, bounded.held_out, bounded.loss_fn, micro_batch_size=micro, precision=precision)
        return found["loss"]

    def _start_bound(self, bound: Bound) -> None:
        def loss_of(batch: Batch) -> tuple[float, float]:
            with torch.no_grad(), _autocast(self.device, self.loop.precision):
                total, weight = detached(bound.bounded.loss_fn(self.model, _to(batch, self.device)), []).tolist()
            return total, weight

        held_out = self._bound_loss(bound)
        self.model.eval()
        bound.start(self.loop.steps, held_out, loss_of)

    def _report_bound(self, bound: Bound) -> None:
        found = bound.verdict(self._bound_loss(bound))
        self.ctx.ledger.table("constraints", bound.table)
        self.ctx.ledger.table("bound", [found])
        self.ctx.progress.log(
            f"the bound {found['level']:.4g} is {found['status']}: {found['held_out_after']:.4g} nats on held-out "
            f"rows, {found['held_out_before']:.4g} before, multiplier {found['multiplier']:.3g}"
        )

    def _log(self, step: int, validation: dict[str, float]) -> float:
        row = {"step": step, **self.window.means(), **{f"validation_{k}": v for k, v in validation.items()}}
        row |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": self.window.norm,
            "tokens_per_second": self.window.tokens / max(self.window.seconds, 1e-9),
            "tokens": self.tokens,
        }
        if self.speed is not None:
            row |= self.speed.row(row["tokens_per_second"] / self.world.size)
        self.rows.append(row)
        if self.trackers is not None:
            self.trackers.log({key: value for key, value in row.items() if key != "step"}, step)
        self.window = _Window(norm=self.window.norm)
        if self.world.is_main:
            self._metrics_file.parent.mkdir(parents=True, exist_ok=True)
            with self._metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row.get("loss", float("nan"))

    # -- interruption ------------------------------------------------------------------------------------------------

    @property
    def _metrics_file(self) -> Path:
        return self.ctx.work_dir / METRICS_FILE

    def _save(self, step: int) -> None:
        extra = {"rows": self.rows, "window": asdict(self.window), "skipped": self.skipped, "changes": self.changes}
        extra |= {"tokens": self.tokens, "next_place": self.sampler.place(step)}
        if self.bound is not None:
            extra |= {"bound": self.bound.state()}
        if self.best is not None:
            extra |= {"best": self.best.state()}
        if self.watch is not None:
            extra |= {"watch": self.watch.state()}
        wait = not self.loop.save_async
        self.world.save(self.states, step, self.model, self.optimizer, extra=extra, wait=wait)

    def _resume(self) -> int:
        resumed = self.world.load(self.states, self.model, self.optimizer)
        if resumed is None:
            if self.world.is_main:
                self._metrics_file.unlink(missing_ok=True)
            return 0
        step, extra = resumed.step, resumed.extra
        if step >= self.loop.steps:
            raise SettingsError(
                f"steps is {self.loop.steps:,}, but {step:,} are done already", fix="use more, or pass --restart"
            )
        self.rows, self.window = extra["rows"], _Window(**extra["window"])
        self.skipped, self.tokens = extra["skipped"], extra["tokens"]
        if self.bound is not None:
            self.bound.go_on(extra["bound"], self.loop.steps)
        if self.best is not None:
            self.best.go_on(extra["best"])
        if self.watch is not None:
            self.watch.go_on(extra["watch"])
        self.changes = extra["changes"] + [{"after_step": step, "change": text} for text in resumed.changes.values()]
        self.sampler.go_on(step, extra["next_place"])
        if self.world.is_main:  # what was logged after the state was saved will be logged again
            self._metrics_file.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        changes = f" with changes ({'; '.join(resumed.changes.values())})" if resumed.changes else ""
        self.ctx.progress.log(f"continuing after step {step:,} of {self.loop.steps:,}{changes}")
        return step


@dataclass
class _Window:
    """Sums since the last row of the loss table."""

    total: float = 0.0
    weight: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, total: float, weight: float, metrics: dict[str, float]) -> None:
        self.total += total
        self.weight += weight
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        if not self.weight:
            return {}
        return means(self.total, self.weight, self.metrics)


def _to(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def _restored_randomness(device: torch.device) -> Iterator[None]:
    """Dropout can only draw from the global generator; the loop seeds it per step and gives it back as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
