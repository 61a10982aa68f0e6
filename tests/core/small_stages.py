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


class Judge(Stage):
    """Accepts only sequence classifiers, which a language model is not."""

    name = "judge"
    version = 1
    accepts = frozenset({Kind.SEQUENCE_CLASSIFIER})
