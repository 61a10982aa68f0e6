"""Real stages, small enough to watch: the runner's tests run them in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from burnish.core.errors import NumericalError
from burnish.core.kinds import Kind
from burnish.core.stage import VOLATILE, CheckpointRef, Context, DataRef, Stage
from burnish.core.store import Store

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model


class Scale(Stage):
    """Multiplies every matrix by a factor."""

    name = "scale"
    version = 1
    memory_settings: ClassVar[str] = "--factor"

    factor: float = Field(default=0.5, gt=0, description="what weights are multiplied by")
    text: DataRef | None = Field(default=None, description="a file whose length is added to nothing, but hashed")
    teacher: CheckpointRef | None = Field(default=None, description="a checkpoint whose first matrix is added")
    pause: float = Field(default=0, json_schema_extra=VOLATILE, description="seconds to wait before the work")
    fault: str = Field(default="", json_schema_extra=VOLATILE, description="how to fail: error, memory, kill or crash")

    def run(self, model: Model, ctx: Context) -> Model:
        import torch

        time.sleep(self.pause)
        if self.fault == "error":
            raise NumericalError("the gradient of layer 3 is not finite", fix="lower the learning rate")
        if self.fault == "memory":
            raise MemoryError
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "crash":
            raise ZeroDivisionError("a bug")
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(self.factor)
        if self.teacher is not None:
            from burnish.core.checkpoint import load

            teacher = load(ctx.inputs["teacher"]).module
            with torch.no_grad():
                next(iter(model.module.parameters())).add_(next(iter(teacher.parameters())))
        ctx.ledger.table("layers", [{"name": "all", "relative_error": abs(1 - self.factor)}])
        return model.derive(module=model.module)


class Grow(Stage):
    """Adds to every norm step by step, and keeps how far it is."""

    name = "grow"
    version = 1
    changeable = frozenset({"rate"})

    steps: int = Field(default=4, ge=1, description="steps")
    rate: float = Field(default=0.25, description="what a step adds")
    every: int = Field(default=1, json_schema_extra=VOLATILE, description="steps between two states")
    stop_after: int = Field(default=0, json_schema_extra=VOLATILE, description="the step after which it is killed")

    def run(self, model: Model, ctx: Context) -> Model:
        key = {"model": model.identity, "steps": self.steps} | ({} if ctx.may_change else {"rate": self.rate})
        store = Store(ctx.work_dir / "states")
        names = store.names()
        done = int(names[-1].removeprefix("step-")) if names else 0
        if not ctx.may_change and names:
            assert store.find(names[-1], key) is not None
        total = float((store.directory / names[-1] / "total").read_text()) if names else 0.0
        model.lineage.continued = [{"after_step": done, "change": name} for name in sorted(ctx.may_change)]
        for step in range(done + 1, self.steps + 1):
            total += self.rate
            if step % self.every == 0:
                with store.writing(f"step-{step:03d}", key) as path:
                    (path / "total").write_text(str(total))
            if step == self.stop_after:
                os.kill(os.getpid(), signal.SIGKILL)
        model.module.model.norm.weight.data.add_(total)
        result = model.derive(module=model.module)
        result.lineage.continued = model.lineage.continued
        return result


class Judge(Stage):
    """Accepts only sequence classifiers, which a language model is not."""

    name = "judge"
    version = 1
    accepts = frozenset({Kind.SEQUENCE_CLASSIFIER})
