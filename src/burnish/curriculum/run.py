"""What the stage `curriculum` does: one training after the other, each from the weights that the one before has left.

    WORK/phases/01-easy-0f3a.../key.json          what it depends on, all that came before included
    WORK/phases/01-easy-0f3a.../model             the weights after it, as a checkpoint
    WORK/phases/01-easy-0f3a.../said.json         its looks, its losses, and why it ended
    WORK/phases/01-easy-0f3a.../optimizer.safetensors
    WORK/training/01-easy-0f3a...                 states of the training that is under way

A phase is a stretch of training, or two where the guard mixes earlier rows in. A finished stretch is never done again,
and within one the training goes on from its last state; so a run that was killed ends with the very same weights. Names
end with a digest of the key: where a later phase is changed, the earlier ones still stand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.core.checkpoint import Model, load
from burnish.core.errors import DataError
from burnish.core.ledger import Ledger
from burnish.core.stage import Context
from burnish.core.store import Key, Store, digest_of
from burnish.curriculum.held_out import MeasuredSet, check_apart, held_out, texts_of, training_rows
from burnish.curriculum.mixing import places, shares
from burnish.curriculum.watching import Looking, Values, lost_in_words
from burnish.data import data_hash, files_digest
from burnish.data.packing import PackedRows
from burnish.train import run as training
from burnish.train.rows import packed
from burnish.verify import Verifier, verifier

if TYPE_CHECKING:
    from burnish.curriculum.phase import Phase
    from burnish.curriculum.rewarded import Environments
    from burnish.curriculum.stage import Curriculum
    from burnish.train.stage import Train

MODEL, SAID, OPTIMIZER = "model", "said.json", "optimizer.safetensors"
JOINED = ("loss", "rl_training")
"""Tables that go on from one stretch of training to the next."""
LONGEST = 4096
"""Letters of a text that is kept to draw problems apart from it; none has longer ones."""
NAMED = {"rl_solved": "part", "rl_counts": "what"}
"""Those of a stretch that stand in one table, and the column that names the stretch too."""


def run(settings: Curriculum, model: Model, ctx: Context) -> Model:
    """The model after the last phase; tables of phases, of looks and of losses go into the ledger.

    Raises:
        DataError: held-out rows that are trained on, or data that changed on the way.
        SettingsError, NumericalError, CheckpointError, OutputError: see `burnish.train.loop.fit`.
    """
    with _grader(settings) as grader, closing(_Phases(settings, ctx, model, grader)) as phases:
        check_apart(settings, ctx.inputs, phases.questions)
        result = phases.run()
    ctx.ledger.table("phases", phases.ended)
    ctx.ledger.table("held out", phases.looks)
    for name, rows in phases.joined.items():
        ctx.ledger.table(name, rows)
    return model.derive(module=result.module)


@contextmanager
def _grader(settings: Curriculum) -> Iterator[Verifier | None]:
    if settings.verifier is None:
        yield None
        return
    with verifier(settings.verifier) as found:
        yield found


@dataclass
class _Phases:
    """One run of a curriculum; its attributes are what the phases share.

    Attributes:
        done: steps so far.
        past: key of everything that has led to the present weights.
        ended, looks: rows of the tables.
        joined: {table: rows of all stretches} of what trainings say step by step.
    """

    settings: Curriculum
    ctx: Context
    start: Model
    grader: Verifier | None
    done: int = 0
    past: str = ""
    optimizer: Path | None = None
    ended: list[dict[str, Any]] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)
    joined: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.start
        self.store = Store(self.ctx.work_dir / "phases")
        self.hashes = {place: _hash(value) for place, value in self.ctx.inputs.items()}
        self.environments = self._environments()
        self.held_out = [
            held_out(self.settings, phase, self._input(place, "held_out"), self.start, self.grader, self.ctx)
            if phase.env is None
            else self._of_environments.asked[place]
            for place, phase in enumerate(self.settings.phases)
        ]
        self.values = Values(1 if self.grader is not None or self.environments is not None else -1, {})

    def _environments(self) -> Environments | None:
        """Those of phases that have one, apart from what phases of data train and are measured on."""
        of_data = [place for place, phase in enumerate(self.settings.phases) if phase.env is None]
        if len(of_data) == len(self.settings.phases):
            return None
        from burnish.curriculum.rewarded import Environments

        trained, measured = (
            {text for place in of_data for text in texts_of(self._input(place, name)) if len(text) <= LONGEST}
            for name in ("data", "held_out")
        )
        found = Environments(self.settings, trained, measured)
        self.hashes |= {f"phases.{place}.env": env.digest for place, env in found.trained.items()}
        self.hashes |= {f"phases.{place}.held_out": one.env.digest for place, one in found.asked.items()}
        return found

    @property
    def _of_environments(self) -> Environments:
        assert self.environments is not None, "a phase has one"
        return self.environments

    @property
    def questions(self) -> dict[str, set[str]]:
        """{phase: what its environment measures on}."""
        return {} if self.environments is None else self.environments.questions

    def close(self) -> None:
        if self.environments is not None:
            self.environments.close()

    def run(self) -> Model:
        """Every phase, or those until the guard stops."""
        self._begin()
        for place, phase in enumerate(self.settings.phases):
            before, at, mixed_from = self.model, self.done, None
            self.values.own = self.values.known[phase.name][-1:]
            if self.settings.reset_optimizer:
                self.optimizer = None
            said = self._stretch(place, phase.steps)
            stops = said["guarded"] and self.settings.guard == "stop"
            if said["guarded"] and not stops:
                mixed_from = self.done
                said = self._stretch(place, at + phase.steps - self.done, mixed=True)
            row = {"phase": phase.name, "from_step": at, "to_step": self.done, "ended": said["why"]}
            self.ended.append(row | {"mixed_from": mixed_from, "forgotten": lost_in_words(said["lost"])})
            self.ctx.progress.log(f"{phase.name}: ended after step {self.done:,}: {said['why']}")
            if stops:
                self.ctx.progress.log(f"the curriculum ends here, with the weights of before {phase.name}")
                self.model = before
                break
        return self.model

    def _begin(self) -> None:
        """How the start does on every held-out set."""
        key = {"stage": f"{self.settings.name} {self.settings.version}", "model": self.start.identity}
        key |= {"held_out": self._measured_on()}
        name = f"00-start-{digest_of(key)[:12]}"
        if self.store.find(name, key) is None:
            module: Any = self.start.module
            module = module.to(torch.device(self.ctx.device)).eval()
            found = [(one.name, self._measure(one.name, module)) for one in self.held_out]
            rows = [{"at_step": 0, "phase": "start", "held_out": of} | row | {"boundary": True} for of, row in found]
            with self.store.writing(name, key) as path:
                (path / SAID).write_text(json.dumps({"rows": rows}), encoding="utf-8")
        self._go_on(name, key)

    def _stretch(self, place: int, steps: int, *, mixed: bool = False) -> dict[str, Any]:
        """Trains on a phase for at most so many steps; what it said is read back from the store."""
        phase, key = self.settings.phases[place], self._key(place, steps, mixed=mixed)
        name = f"{place + 1:02d}-{phase.name}{'-mixed' if mixed else ''}-{digest_of(key)[:12]}"
        if self.store.find(name, key) is None:
            self._check_unchanged()
            work = self.ctx.work_dir / "training" / name
            work.mkdir(parents=True, exist_ok=True)
            with self.store.writing(name, key) as path:
                watch = Looking(
                    self.settings,
                    place,
                    steps,
                    self.done,
                    self._measure,
                    self.values.copy(),
                    mixed,
                    self.optimizer,
                    path / OPTIMIZER if self._goes_on_from_optimizer(phase) else None,
                )
                ctx = replace(self.ctx, inputs={}, work_dir=work, ledger=Ledger(None))
                self.ctx.progress.log(
                    f"{phase.name}{', earlier rows mixed in' if mixed else ''}: from step {self.done:,}"
                )
                if phase.env is None:
                    model = self._trained(place, steps, ctx, watch, mixed=mixed)
                else:
                    model = self._of_environments.train(place, steps, self.model, ctx, watch, mixed=mixed)
                said = {"rows": watch.rows, "why": watch.why, "lost": watch.lost, "guarded": watch.guarded}
                said |= {"of": f"{phase.name}{', mixed' if mixed else ''}"}
                said |= {"steps": watch.taken, "tables": [row for row in ctx.ledger.rows if row["row"] == "table"]}
                model.save(path / MODEL)
                (path / SAID).write_text(json.dumps(said), encoding="utf-8")
            shutil.rmtree(work)
        return self._go_on(name, key)

    def _trained(self, place: int, steps: int, ctx: Context, watch: Looking, *, mixed: bool) -> Model:
        """The model after training on rows."""
        phase = self.settings.phases[place]
        settings = self.settings.training(phase, steps)
        return training.run(
            settings,
            self.model,
            replace(ctx, inputs={"data": training_rows(phase, self._input(place, "data"))}),
            prepare=lambda rows, _: self._with_earlier(rows, place, settings) if mixed else rows,
            watch=watch,
        )

    def _go_on(self, name: str, key: Key) -> dict[str, Any]:
        """Takes up what an entry of the store holds, as if it had just been done."""
        path = self.store.directory / name
        said = json.loads((path / SAID).read_text(encoding="utf-8"))
        self.past = digest_of(key)
        self.looks += said["rows"]
        known: dict[str, list[float]] = {}
        for row in self.looks:
            known.setdefault(row["held_out"], []).append(self.values.sign * row["value"])
        own = self.values.own + [
            self.values.sign * row["value"] for row in said["rows"] if row["held_out"] == row["phase"]
        ]
        self.values = Values(self.values.sign, known, own)
        if "steps" not in said:
            return said
        for table in said["tables"]:
            if table["name"] in JOINED:
                rows = self.joined.setdefault(table["name"], [])
                rows += [row | {"step": self.done + row["step"]} for row in table["rows"]]
            elif (column := NAMED.get(table["name"])) is not None:
                rows = self.joined.setdefault(table["name"], [])
                rows += [row | {column: f"{said['of']}: {row[column]}"} for row in table["rows"]]
            else:
                self.ctx.ledger.table(table["name"], table["rows"])
        self.done += said["steps"]
        self.optimizer = path / OPTIMIZER if (path / OPTIMIZER).is_file() else None
        self.model = load(path / MODEL)
        return said

    def _goes_on_from_optimizer(self, phase: Phase) -> bool:
        """Whether a later stretch may need what this one's optimizer has gathered; adapters are new every time."""
        needed = not self.settings.reset_optimizer or self.settings.guard == "mix"
        return needed and (phase.env is not None or not self.settings.training(phase).lora_rank)

    # -- what is read ------------------------------------------------------------------------------------------------

    def _input(self, place: int, name: str) -> str:
        return self.ctx.inputs[f"phases.{place}.{name}"]

    def _measure(self, name: str, module: nn.Module) -> dict[str, float]:
        one = next(one for one in self.held_out if one.name == name)
        if not isinstance(one, MeasuredSet):
            return one.measure(module, self.start.tokenizer)
        phase = next(phase for phase in self.settings.phases if phase.name == name)
        settings = self.settings.training(phase)
        loss_fn, rows_at_once = training.next_token_loss_of(settings, module), settings.micro_batch or settings.batch
        return one.measure(module, self.start.tokenizer, self.grader, self.settings, loss_fn, rows_at_once)

    def _measured_on(self) -> list[Any]:
        """What every held-out set is, for keys."""
        sets = enumerate(self.settings.phases)
        how = self.settings.model_dump(include={"verifier", "max_new_tokens", "held_out_rows"})
        contexts = [self.settings.training(one).context for one in self.settings.phases if one.env is None]
        return [
            how,
            contexts,
            *([one.name, one.prompt, self.hashes[f"phases.{place}.held_out"]] for place, one in sets),
        ]

    def _key(self, place: int, steps: int, *, mixed: bool) -> Key:
        phases = self.settings.phases
        rules = ("every", "guard", "fall", "reset_optimizer", *(("share",) if mixed else ()))
        read = range(place + 1) if mixed else [place]
        of_data = phases[place].env is None
        how = self.settings.training(phases[place], steps) if of_data else self.settings.rewarding(phases[place], steps)
        return {
            "stage": f"{self.settings.name} {self.settings.version}",
            "past": self.past,
            "held_out": self._measured_on(),
            "rules": self.settings.model_dump(include=set(rules)),
            "phase": phases[place].canonical(),
            "training": how.canonical(),
            "data": [[phases[one].prompt, self.hashes[f"phases.{one}.{_source(phases[one])}"]] for one in read],
        }

    def _check_unchanged(self) -> None:
        for place, value in self.ctx.inputs.items():
            if _hash(value) != self.hashes[place]:
                what = "has changed since the curriculum began, so its phases do not belong together"
                raise DataError(what, where=f"{place} ({value})", fix="run the same command again; what fits is kept")

    def _with_earlier(self, rows: PackedRows, place: int, settings: Train) -> PackedRows:
        """Rows of the phase, and so many of earlier ones, the same number of each, that they make up their share."""
        count = shares(len(rows), place, self.settings.share)
        for number in range(place):
            phase = self.settings.phases[number]
            found = training_rows(phase, self._input(number, "data"))
            earlier = packed(settings, self.start.tokenizer, found, self.ctx, where=f"data of {phase.name}")
            rows = rows.followed_by(earlier.chosen(places(len(earlier), count, settings.seed + number)))
        return rows


def _source(phase: Phase) -> str:
    """The setting that names what a phase trains on."""
    return "data" if phase.env is None else "env"


def _hash(data: str) -> str:
    return files_digest(data) if Path(data).expanduser().exists() else data_hash(data)
