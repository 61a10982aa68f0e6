"""The runner: plans every node of a recipe, then runs each in a process of its own.

A run directory holds everything that a run made:

    RUN/recipe.yaml         the recipe as it was read
    RUN/run.json            nodes, their keys and states; hashes of the start checkpoint
    RUN/ledger.jsonl        measurements, costs, tables; RUN/sequences/*.parquet
    RUN/nodes/<name>/       a finished checkpoint (it appears whole or not at all)
    RUN/work/<name>/        what an unfinished stage may continue from
    RUN/logs/<name>.log     what the stage's process printed when it was not a terminal

A node is skipped when its checkpoint exists and carries the same key (stage, version, settings, content hashes of
everything it reads). Because each stage reads its input from disk in a fresh process, a resumed run equals an
uninterrupted one, and a crash or an exhausted memory in one stage does not take the run down.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.core import errors
from burnish.core.checkpoint import (
    UNSAFE_SUFFIXES,
    Lineage,
    check_target,
    content_files,
    hash_directory,
    kind_of,
    load_config,
    pick_device,
    plan_checkpoint,
    plan_config,
    read_config,
    remove_leftovers,
    resolve,
    weight_files,
    write_atomically,
)
from burnish.core.errors import BurnishError, OutputError, RecipeError, StageError
from burnish.core.ledger import Ledger
from burnish.core.recipe import START, Node, Recipe, in_order
from burnish.core.settings import Settings
from burnish.core.stage import Plan, Stage

RUN_FILE = "run.json"
RUN_FORMAT = 1
LOCK_FILE = ".lock"
NODE_ERROR_STATUS = 3
"""Exit status of a node's process that ended with a `BurnishError` and wrote it down."""


@dataclass(frozen=True)
class Rooms:
    """What core needs from the rooms above it, handed in by the command line.

    Attributes:
        stage_class: the class of a stage by name.
        evaluate: the settings class of the evaluation.
        data_hash: the content hash of a data reference; raises `DataError` where it cannot be read.
    """

    stage_class: Callable[..., type[Stage]]
    evaluate: Callable[[], type[Settings]]
    data_hash: Callable[[str], str]


@dataclass
class Decision:
    """What will happen to a node and why, for `burnish plan` and the log."""

    node: Node
    stage: Stage
    action: str
    reason: str
    key: str = ""
    plan: Plan | None = None


@dataclass
class Run:
    """One recipe in one directory."""

    recipe: Recipe
    directory: Path
    rooms: Rooms
    targets: dict[str, Path] = field(default_factory=dict)
    verify: bool = False
    overwrite: bool = False
    log: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True)

    def __post_init__(self) -> None:
        self.stages = {
            node.name: self.rooms.stage_class(node.stage, where=node.where).parse(
                node.settings, where=f"{node.where}, node {node.name!r}"
            )
            for node in self.recipe.nodes
        }
        self.needs = {node.name: self._needs(node) for node in self.recipe.nodes}
        self.recipe = replace(self.recipe, nodes=in_order(self.recipe.nodes, self.needs))
        self.evaluate = None
        if self.recipe.evaluate is not None:
            self.evaluate = self.rooms.evaluate().parse(
                self.recipe.evaluate, where=self.recipe.where.get("evaluate", self.recipe.source)
            )
        self.start = resolve(self.recipe.start)
        read_config(self.start)
        self.state = self._read_state()
        self.hashes: dict[str, str] = {}

    def _needs(self, node: Node) -> list[str]:
        """Names of the nodes that must be finished before this one: its parent, and those that its settings name."""
        stage = self.stages[node.name]
        named = [getattr(stage, key) for key, to in stage.references().items() if to == "checkpoint"]
        return [name for name in dict.fromkeys([node.parent, *named]) if name in self.stages]

    # -- where things are --------------------------------------------------------------------------------------------

    def target(self, name: str) -> Path:
        """The directory of a node's checkpoint, or of the start."""
        if name == START:
            return self.start
        return self.targets.get(name, self.directory / "nodes" / name)

    def _read_state(self) -> dict[str, Any]:
        path = self.directory / RUN_FILE
        if not path.is_file():
            # A run that was refused before it began leaves its lock behind.
            occupied = self.directory.is_dir() and any(path.name != LOCK_FILE for path in self.directory.iterdir())
            if occupied or (self.directory.exists() and not self.directory.is_dir()):
                raise OutputError(
                    "exists and is not a run directory", where=str(self.directory), fix="choose another with -o"
                )
            return {"format": RUN_FORMAT, "nodes": {}, "files": {}}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            newer = state["format"] > RUN_FORMAT
        except (json.JSONDecodeError, KeyError, TypeError):
            raise RecipeError("is damaged", where=str(path), fix="delete it; finished nodes are kept") from None
        if newer:
            raise RecipeError("was written by a newer burnish", where=str(path), fix="upgrade burnish")
        return state

    def _write_state(self) -> None:
        nodes = []
        for node in self.recipe.nodes:
            nodes.append(
                {
                    "name": node.name,
                    "stage": node.stage,
                    "from": node.parent,
                    "settings": self.stages[node.name].model_dump(mode="json"),
                    "directory": str(self.target(node.name)),
                }
                | self.state["nodes"].get(node.name, {"status": "waiting"})
            )
        content = self.state | {
            "name": self.recipe.name,
            "source": self.recipe.source,
            "start": self.recipe.start,
            "tree": nodes,
        }
        write_atomically(self.directory / RUN_FILE, json.dumps(content, indent=2))

    # -- content hashes ----------------------------------------------------------------------------------------------

    def checkpoint_hash(self, directory: Path) -> str:
        """The content hash of a checkpoint. Files that kept size and time since they were last read are trusted unless
        `verify`; a checkpoint of ours whose files are not what its lineage says was tampered with."""
        lineage = Lineage.read(directory)
        known: dict[str, Any] = self.state["files"].get(str(directory.resolve()), {})
        stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in content_files(directory)}
        if self.verify or known.get("stamps") != stamps:
            known = {"stamps": stamps, "hashes": hash_directory(directory)}
            self.state["files"][str(directory.resolve())] = known
        if lineage is not None and lineage.files != known["hashes"]:
            names = sorted(set(lineage.files.items()) ^ set(known["hashes"].items()))
            raise errors.CheckpointError(
                f"{names[0][0]} is not what the lineage file says it should be",
                where=str(directory),
                fix="it was changed by hand or damaged: delete the directory and make it again",
            )
        return Lineage(files=known["hashes"]).hash

    def _reference_hashes(self, node_name: str, settings: Settings) -> dict[str, str] | None:
        """{field: content hash} of everything that settings name, or None while a named node is unfinished."""
        hashes: dict[str, str] = {}
        for name, to in settings.references().items():
            value = getattr(settings, name)
            if value is None:
                continue
            if to == "data":
                hashes[name] = self.rooms.data_hash(value)
            elif value in self.stages or value == START:
                if value not in self.hashes:
                    return None
                hashes[name] = self.hashes[value]
            else:
                hashes[name] = self.checkpoint_hash(resolve(value))
        return hashes

    def _key(self, node: Node) -> str | None:
        """The key of a node, or None while something that it needs is unfinished."""
        references = self._reference_hashes(node.name, self.stages[node.name])
        if node.parent not in self.hashes or references is None:
            return None
        return self.stages[node.name].key(self.hashes[node.parent], references)

    # -- deciding ----------------------------------------------------------------------------------------------------

    def decide(self) -> list[Decision]:
        """For every node whether it will run or be skipped, and why. Nothing is run and nothing is written."""
        self.hashes = {START: self.checkpoint_hash(self.start)}
        self._check_disjoint()
        decisions = [self._decide(node) for node in self.recipe.nodes]
        self._skip_dropped(decisions)
        return decisions

    def _check_disjoint(self) -> None:
        """Refuses to measure on the very text that a node reads: the result would be too good."""
        if self.evaluate is None:
            return
        measured = {
            self.rooms.data_hash(value): value
            for name, to in self.evaluate.references().items()
            if to == "data" and (value := getattr(self.evaluate, name)) is not None
        }
        for node in self.recipe.nodes:
            for name, to in self.stages[node.name].references().items():
                value = getattr(self.stages[node.name], name)
                if to == "data" and value is not None and self.rooms.data_hash(value) in measured:
                    raise RecipeError(
                        f"{name} is the text that everything is measured on ({value}), which would look too good",
                        where=f"{node.where}, node {node.name!r}",
                        fix="choose another text for one of them",
                    )

    def _decide(self, node: Node) -> Decision:
        stage = self.stages[node.name]
        key = self._key(node)
        if key is None:
            waiting = [name for name in self.needs[node.name] if name not in self.hashes]
            return Decision(node, stage, "run", f"{waiting[0]!r} will be made anew")
        target = self.target(node.name)
        lineage = Lineage.read(target) if target.is_dir() else None
        if lineage is None:
            before = self.state["nodes"].get(node.name, {})
            if before.get("status") == "dropped" and before.get("key") == key:
                self.hashes[node.name] = before["hash"]
                return Decision(node, stage, "dropped", "finished before and not kept", key)
            unfinished = (self.directory / "work" / node.name).is_dir()
            return Decision(node, stage, "run", "was interrupted" if unfinished else "was never made", key)
        if lineage.key != key:
            return Decision(node, stage, "run", self._what_changed(node, lineage), key)
        self.hashes[node.name] = self.checkpoint_hash(target)
        return Decision(node, stage, "skip", "nothing that it depends on has changed", key)

    def _skip_dropped(self, decisions: list[Decision]) -> None:
        """A dropped checkpoint must be made again when a node that needs it runs."""
        for decision in reversed(decisions):
            if decision.action == "dropped":
                users = [d for d in decisions if decision.node.name in self.needs[d.node.name] and d.action == "run"]
                if users or decision.node.name in self.recipe.kept():
                    decision.action = "run"
                    decision.reason = f"was not kept, and {users[0].node.name!r} needs it" if users else "was not kept"
                else:
                    decision.action = "skip"

    def _what_changed(self, node: Node, lineage: Lineage) -> str:
        stage = self.stages[node.name]
        if lineage.stage != stage.name or lineage.stage_version != stage.version:
            return f"made by {lineage.stage} version {lineage.stage_version}, now {stage.name} {stage.version}"
        if lineage.parents.get("model") != self.hashes[node.parent]:
            return f"its input {node.parent!r} has changed"
        canonical = stage.canonical()
        for name in sorted(canonical.keys() | lineage.settings.keys()):
            if canonical.get(name) != lineage.settings.get(name):
                return f"{name} was {lineage.settings.get(name)}, now {canonical.get(name)}"
        for name, digest in (self._reference_hashes(node.name, stage) or {}).items():
            if lineage.parents.get(name) != digest:
                return f"the content of {name!r} has changed"
        return "a reference is no longer given"

    def plan(self, decisions: list[Decision]) -> Plan:
        """Fills in what every node will make, from configurations alone; returns the plan of the start.

        Raises:
            RecipeError, SettingsError, DataError: whatever would stop the run later.
        """
        plans = {START: self._plan_start()}
        for decision in decisions:
            node, stage = decision.node, decision.stage
            where = f"{node.where}, node {node.name!r}"
            stage.check_accepts(plans[node.parent], where=where)
            for name, to in stage.references().items():
                value = getattr(stage, name)
                if to == "data" and value is not None:
                    self.rooms.data_hash(value)
            try:
                plans[node.name] = stage.plan(plans[node.parent])
            except BurnishError as error:
                raise type(error)(error.what, where=error.where or where, fix=error.fix) from None
            decision.plan = plans[node.name]
        return plans[START]

    def _plan_start(self) -> Plan:
        """From file headers; a directory that holds a configuration and no weights can be planned, though not run."""
        if any(self.start.glob("*.safetensors")):
            return plan_checkpoint(self.start)
        raw = read_config(self.start)
        if any(path.suffix in UNSAFE_SUFFIXES for path in self.start.iterdir()):
            return plan_checkpoint(self.start)  # says that pickled weights are not opened
        return plan_config(load_config(self.start), kind=kind_of(raw))

    def reads_outside(self) -> list[str]:
        """Local paths outside the working directory that the recipe reads, so that none is read silently."""
        here = Path.cwd().resolve()
        named = {self.recipe.start: self.recipe.where.get("start", self.recipe.source)}
        settings: list[tuple[str, Settings]] = [(node.where, self.stages[node.name]) for node in self.recipe.nodes]
        if self.evaluate is not None:
            settings.append((self.recipe.where.get("evaluate", ""), self.evaluate))
        for where, stage in settings:
            named |= {value: where for name in stage.references() if (value := getattr(stage, name)) is not None}
        outside = []
        for value, where in named.items():
            path = Path(value).expanduser()
            if path.exists() and not path.resolve().is_relative_to(here):
                outside.append(f"{where} reads {path.resolve()}, outside the working directory")
        return outside

    # -- running -----------------------------------------------------------------------------------------------------

    def execute(self) -> list[Decision]:
        """Runs what must run, measures what must be measured, and returns what was decided for every node."""
        with self._locked(), _terminated_like_interrupted():
            self._sweep()
            if self.recipe.text:
                for note in self.reads_outside():
                    self.log(f"note: {note}")
            decisions = self.decide()
            if any(decision.action == "run" for decision in decisions):
                weight_files(self.start)
                self.plan(decisions)
                for decision in decisions:
                    if decision.action == "run":
                        pick_device(decision.stage.device)  # raises where this machine has no such device
                        check_target(self.target(decision.node.name), overwrite=self._may_replace(decision.node))
            self._write_state()
            if self.recipe.text:
                write_atomically(self.directory / "recipe.yaml", self.recipe.text)
            self._measure(START)
            for decision in decisions:
                self._finish(decision)
            self._drop(decisions)
            return decisions

    def _may_replace(self, node: Node) -> bool:
        return self.overwrite or node.name not in self.targets

    def _finish(self, decision: Decision) -> None:
        name = decision.node.name
        if decision.action == "run":
            again = self._decide(decision.node)  # a parent that was made again may have come out the same
            if again.action == "skip":
                decision.action, decision.reason = "skip", "its inputs came out unchanged"
            else:
                decision.key = again.key
                self.log(f"{name}: {decision.stage.name} starts ({decision.reason})")
                self._run_node(decision)
        if self.target(name).is_dir():
            self.hashes[name] = self.checkpoint_hash(self.target(name))
            self.state["nodes"][name] = {"status": "finished", "key": decision.key, "hash": self.hashes[name]}
            self._write_state()
            self._measure(name)

    def _run_node(self, decision: Decision) -> None:
        node, stage, target = decision.node, decision.stage, self.target(decision.node.name)
        references = self._reference_hashes(node.name, stage) or {}
        inputs = {}
        for name, to in stage.references().items():
            value = getattr(stage, name)
            if value is not None:
                local = to == "checkpoint" and (value in self.stages or value == START)
                inputs[name] = str(self.target(value)) if local else value
        work = self.directory / "work" / node.name
        key_file = work / "key"
        if work.is_dir() and (not key_file.is_file() or key_file.read_text() != decision.key):
            shutil.rmtree(work)  # state of other settings or other inputs
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(key_file, decision.key)
        self.state["nodes"][node.name] = {"status": "running", "key": decision.key}
        self._write_state()
        self._spawn(
            node.name,
            {
                "task": "stage",
                "stage": f"{type(stage).__module__}:{type(stage).__qualname__}",
                "settings": stage.model_dump(mode="json"),
                "model": str(self.target(node.parent)),
                "model_hash": self.hashes[node.parent],
                "inputs": inputs,
                "target": str(target),
                "replace": target.exists(),
                "work": str(work),
                "run": str(self.directory),
                "node": node.name,
                "key": decision.key,
                "parents": {"model": self.hashes[node.parent]} | references,
            },
            processes=node.processes,
            memory_settings=stage.memory_settings,
        )
        shutil.rmtree(work, ignore_errors=True)

    def _measure(self, name: str) -> None:
        """Measures a checkpoint unless the ledger has it under this very request."""
        if self.evaluate is None:
            return
        target, digest = self.target(name), self.hashes[name]
        references = dict(self._reference_hashes(name, self.evaluate) or {})
        if "reference" in self.evaluate.references() and "reference" not in references and name != START:
            references["reference"] = self.hashes[START]
        content = json.dumps([self.evaluate.canonical(), references], sort_keys=True)
        request = hashlib.sha256(content.encode()).hexdigest()
        ledger = Ledger(self.directory, node=name)
        if any(
            row["row"] == "measurement" and row["checkpoint"] == digest and row["request"] == request
            for row in ledger.rows
        ):
            return
        settings = self.evaluate.model_dump(mode="json")
        for key, to in self.evaluate.references().items():
            value = settings.get(key)
            if to == "checkpoint" and (value in self.stages or value == START):
                settings[key] = str(self.target(value))
        if "reference" in references and settings.get("reference") is None:
            settings["reference"] = str(self.start)
        self.log(f"{name}: measuring")
        self._spawn(
            name,
            {
                "task": "evaluate",
                "stage": f"{type(self.evaluate).__module__}:{type(self.evaluate).__qualname__}",
                "settings": settings,
                "model": str(target),
                "model_hash": digest,
                "run": str(self.directory),
                "node": name,
                "request": request,
            },
            memory_settings="evaluate.context",
        )

    def _drop(self, decisions: list[Decision]) -> None:
        """Deletes the checkpoints that `keep:` does not name, once everything that needs them is finished."""
        for decision in decisions:
            name, target = decision.node.name, self.target(decision.node.name)
            if name not in self.recipe.kept() and target.is_dir():
                self.state["nodes"][name] |= {"status": "dropped", "hash": self.hashes[name]}
                self._write_state()
                shutil.rmtree(target)

    def _sweep(self) -> None:
        """Removes what dead processes left half-written."""
        for node in self.recipe.nodes:
            if self.target(node.name).parent.is_dir():
                remove_leftovers(self.target(node.name))

    def _spawn(self, name: str, spec: dict[str, Any], *, processes: int = 1, memory_settings: str = "") -> None:
        """Runs `burnish.core.node` in a fresh process and turns its end into a result or one clear error."""
        work = self.directory / "work"
        work.mkdir(parents=True, exist_ok=True)
        spec_file = work / f"{name}.{spec['task']}.json"
        error_file = spec_file.with_suffix(".error")
        error_file.unlink(missing_ok=True)
        write_atomically(spec_file, json.dumps(spec | {"error_file": str(error_file), "parent": os.getpid()}))
        launcher = (
            [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        )
        command = [sys.executable, *launcher, "-m", "burnish.core.node", str(spec_file)]
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        log_file = logs / f"{name}.log"
        with log_file.open("ab") as log:
            show = sys.stderr.isatty()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=None if show else subprocess.PIPE
            )
            try:
                if process.stderr is not None:
                    for line in process.stderr:
                        log.write(line)
                        log.flush()
                        sys.stderr.buffer.write(line)
                        sys.stderr.flush()
                status = process.wait()
            except BaseException:
                _end(process)
                raise
        if status == 0:
            spec_file.unlink()
            return
        if error_file.is_file():
            content = json.loads(error_file.read_text(encoding="utf-8"))
            error_file.unlink()
            spec_file.unlink()
            error = getattr(errors, content["type"], StageError)
            raise _rebuild(error, content, where=content["where"] or f"node {name!r}")
        raise _death(name, status, log_file, memory_settings)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One burnish at a time in a run directory, which is gone again where nothing but the lock came into it."""
        path = self.directory / LOCK_FILE
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = path.open("a")
        except OSError as error:
            raise OutputError(f"cannot be written to ({error.strerror})", where=str(self.directory)) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    "another burnish is running here",
                    where=str(self.directory),
                    fix="wait for it, or choose another -o",
                ) from None
            try:
                yield
            finally:
                if [entry.name for entry in self.directory.iterdir()] == [LOCK_FILE]:
                    path.unlink()
                    self.directory.rmdir()


def _rebuild(error: type[BurnishError], content: dict[str, Any], *, where: str) -> BurnishError:
    if error is errors.MissingExtraError:
        return BurnishError(content["what"], where=where, fix=content["fix"])
    return error(content["what"], where=where, fix=content["fix"])


def _death(name: str, status: int, log_file: Path, memory_settings: str) -> StageError:
    if status < 0:
        cause = f"was killed by signal {-status} ({signal.Signals(-status).name})"
        advice = "run the same command again to continue"
        if -status == signal.SIGKILL:
            cause += ", most likely because memory ran out"
            lower = f"lower {memory_settings}, " if memory_settings else ""
            advice = f"{lower}close other programs, then run the same command again"
        return StageError(f"its process {cause}", where=f"node {name!r}", fix=advice)
    return StageError(
        f"its process failed with status {status}", where=f"node {name!r}", fix=f"the traceback is in {log_file}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a child to stop, then makes it."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the child is stopped and the lock released."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
