"""A stage: settings that turn one checkpoint into another.

A stage declares what it accepts and produces; `plan` works on configurations alone (no weights), `run` does the work.
Importing a stage's module must stay cheap: the method is imported inside `run`.

    class Quantize(Stage):
        name = "quantize"
        version = 1
        bits: int = Field(default=4, ge=2, le=8, description="bits per weight")
        calibration: DataRef | None = Field(default=None, description="text to collect activation statistics from")

        def plan(self, before: Plan) -> Plan: ...
        def run(self, model: Model, ctx: Context) -> Model: ...

In Python a stage is called: `q = burnish.Quantize(bits=3)(model, calibration=texts)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from burnish.core.errors import RecipeError, SettingsError
from burnish.core.kinds import PREDICTS_TEXT, STREAMED, UNPACK, Kind, Plan, Weights, packing
from burnish.core.outside import MAX_SEED
from burnish.core.progress import Progress
from burnish.core.settings import VOLATILE, CheckpointRef, DataRef, Device, Settings

if TYPE_CHECKING:
    import torch

    from burnish.core.checkpoint import Lineage, Model
    from burnish.core.ledger import Ledger
    from burnish.core.recipe import Node

__all__ = ["VOLATILE", "CheckpointRef", "Context", "DataRef", "Settings", "Stage"]


@dataclass
class Context:
    """What a running stage is given.

    Attributes:
        inputs: for every reference field that is set, the resolved path (or the in-memory object a Python caller gave).
        work_dir: private scratch of this node; survives a crash, so what is kept to go on from goes here, through
            `core.store`.
        device: "cpu", "cuda", "cuda:1" ...
        generator: the source of every random draw; seeded from the stage's `seed`.
        progress: bars and log lines.
        ledger: where tables that explain the stage go (`ctx.ledger.table("layers", rows)`).
        may_change: settings that may differ from those of the interrupted run whose state is in `work_dir`; empty
            unless the user asked to continue with changes.
    """

    inputs: dict[str, Any]
    work_dir: Path
    device: str
    generator: torch.Generator
    progress: Progress
    ledger: Ledger
    may_change: frozenset[str] = frozenset()


class Made(Protocol):
    """What a stage makes: a `Model`, a `Data`, or a checkpoint of another kind, which writes itself.

    Attributes:
        lineage: where it comes from; the runner replaces it by one that names the node.
    """

    lineage: Lineage

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path: ...


class Stage(Settings):
    """Settings of one step, and the step itself. Subclasses set `name` and `version` and override `plan` and `run`.

    Attributes:
        name: the verb of the recipe and of the command line.
        version: raised whenever the numbers that the stage makes change, so that finished nodes run again.
        summary: one line for `burnish methods` and the plan.
        accepts, accepts_weights: what it can be given.
        accepts_adapter: whether it carries a LoRA adapter that lies beside the weights, or reads the model with it.
        beside_packed: whether with a `lora_rank` it trains such an adapter beside packed weights.
        makes_data: whether `run` gives a `burnish.core.made_data.Data`, which other nodes name where they name data.
        memory_settings: what to lower when memory runs out, for the error message.
        changeable: settings that may change, where the user says so, when a run goes on from a state of its result;
            None where nothing of that kind is kept, but only what `core.store` keys by all that it depends on.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str] = ""
    accepts: ClassVar[frozenset[Kind]] = frozenset({Kind.CAUSAL_LM})
    accepts_weights: ClassVar[frozenset[Weights]] = frozenset({Weights.DENSE})
    accepts_adapter: ClassVar[bool] = False
    beside_packed: ClassVar[bool] = False
    makes_data: ClassVar[bool] = False
    memory_settings: ClassVar[str] = ""
    changeable: ClassVar[frozenset[str] | None] = None

    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="seed of every random draw")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N", json_schema_extra=VOLATILE)

    # -- to override -------------------------------------------------------------------------------------------------

    def plan(self, before: Plan) -> Plan:
        """The checkpoint this stage would make of `before`; raises `SettingsError` on impossible settings."""
        return before.of_data() if self.makes_data else before

    def run(self, model: Model, ctx: Context) -> Made:
        """The checkpoint itself, or the data."""
        raise NotImplementedError(f"stage {self.name!r} does not define run()")

    def expand(self, node: Node, before: Callable[[], Plan]) -> tuple[Node, ...]:
        """The nodes of a recipe that this one stands for; itself, unless its stage is made of several.

        Args:
            node: as written. The last node that is returned has its name.
            before: gives the plan of its parent.
        """
        return (node,)

    @property
    def takes_weights(self) -> frozenset[Weights]:
        """What of `accepts_weights`, or beyond it, these settings can be given."""
        return self.accepts_weights

    @property
    def takes_adapter(self) -> bool:
        """Whether these settings can be given weights with an adapter beside them."""
        return self.accepts_adapter

    # -- shared ------------------------------------------------------------------------------------------------------

    def parts(self, parent_hash: str | None, reference_hashes: dict[str, str] | None) -> dict[str, Any]:
        """What the result depends on by name, in so far as it is known: settings, and hashes of what is read."""
        parts = {"stage": f"{self.name} {self.version}"} | self.canonical() | (reference_hashes or {})
        return parts if parent_hash is None else parts | {"input": parent_hash}

    def key(self, parent_hash: str, reference_hashes: dict[str, str]) -> str:
        """The skip key: equal keys mean equal results, so a finished node with this key need not run again."""
        content = {
            "stage": self.name,
            "version": self.version,
            "settings": self.canonical(),
            "parent": parent_hash,
            "references": reference_hashes,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_accepts(self, before: Plan, *, where: str) -> None:
        """Refuses a checkpoint of the wrong kind, or a packed one where dense weights are needed."""
        if before.kind not in self.accepts:
            wanted = " or ".join(sorted(self.accepts))
            given = "data" if before.kind is Kind.DATA else f"a {before.kind}"
            advice = "give `from:` a node that makes a checkpoint" if before.kind is Kind.DATA else None
            raise RecipeError(f"{self.name} needs a {wanted} checkpoint, but is given {given}", where=where, fix=advice)
        if before.adapter and not self.takes_adapter:
            raise RecipeError(
                f"{self.name} would lose the LoRA adapter that lies beside the weights, in `adapter`",
                where=where,
                fix=f"add it to the weights first: {UNPACK}",
            )
        if before.weights not in self.takes_weights:
            wanted = " or ".join(sorted(self.takes_weights))
            advice = "put it before the stage that packs the weights"
            if self.beside_packed and not getattr(self, "lora_rank", 0):  # with one they are refused all the same
                advice = f"train an adapter beside them with lora_rank: 16, {advice}"
            if (method := packing(before.config).get("quant_method")) is not None:
                other = f"make it dense with {UNPACK}" if method in STREAMED else "name the dense original"
                advice += f", or {other}: quantization_config in config.json has quant_method {method!r}"
            raise RecipeError(
                f"{self.name} needs {wanted} weights, but is given {before.weights} ones", where=where, fix=advice
            )

    def check_reference(self, field: str, kind: Kind, *, where: str) -> None:
        """Refuses a checkpoint of the wrong kind for a setting that names one; what is named here predicts text."""
        if kind not in PREDICTS_TEXT:
            raise RecipeError(f"{field} must be a {Kind.CAUSAL_LM} checkpoint, but is a {kind}", where=where)

    def __call__(
        self,
        model: Model,
        *,
        work_dir: str | Path | None = None,
        progress: bool = False,
        continue_with_changes: bool = False,
        **inputs: Any,
    ) -> Any:
        """Runs the stage in memory. Reference fields may be given as paths or as objects (texts, a `Model`).

        Args:
            model: the input.
            work_dir: where resumable state goes; a temporary directory when not given.
            progress: whether to show bars.
            continue_with_changes: go on from the state in `work_dir` where settings have changed that may.
            **inputs: reference fields by name.

        Returns:
            A `Model`; of a stage that makes data, a `Data`.
        """
        import weakref
        from contextlib import ExitStack
        from tempfile import TemporaryDirectory

        from burnish.core.checkpoint import DeferredModel, pick_device
        from burnish.core.ledger import Ledger

        known = self.references()
        for key in inputs:
            if key not in known:
                raise SettingsError(
                    f"{self.name} takes no input {key!r}", fix=f"its inputs are {', '.join(known) or 'none'}"
                )
        given = {place: value for place, _, value in self.named()} | inputs
        before = model.plan()
        self.check_accepts(before, where=self.name)
        # An input that is given as an object counts as named, so that a plan that asks for it is content.
        self.model_copy(update={key: key for key in inputs}).plan(before)
        with ExitStack() as stack:
            work = work_dir or stack.enter_context(TemporaryDirectory(prefix="burnish-"))
            ctx = Context(
                inputs=given,
                work_dir=Path(work),
                device=pick_device(self.device),
                generator=seeded_generator(self.seed),
                progress=Progress(enabled=progress),
                ledger=Ledger(None),
                may_change=(self.changeable or frozenset()) if continue_with_changes else frozenset(),
            )
            made = self.run(model, ctx)
            if isinstance(made, DeferredModel):  # what it is made of when it is saved may lie there
                weakref.finalize(made, stack.pop_all().close)
            return made


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator; every random draw of a stage comes from one that was passed down, never the global one."""
    import torch

    return torch.Generator(device="cpu").manual_seed(seed)
