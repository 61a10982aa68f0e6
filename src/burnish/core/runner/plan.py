"""Deciding what runs, what is skipped and why; and the sizes of everything before any of it exists.

A node is skipped when its checkpoint exists and carries the same key: sha256 of stage, version, settings that decide
the result, seed, and the content hashes of everything that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.core import errors
from burnish.core.apart import check_apart
from burnish.core.checkpoint import (
    UNSAFE_SUFFIXES,
    Lineage,
    content_files,
    hash_directory,
    kind_of,
    load_config,
    plan_checkpoint,
    plan_config,
    read_config,
    remarks,
    resolve,
)
from burnish.core.errors import BurnishError, RecipeError, located
from burnish.core.expand import expanded, place_of, plan_node
from burnish.core.kinds import Kind, Plan
from burnish.core.recipe import START, Node, Recipe, in_order
from burnish.core.runner.directory import read_state
from burnish.core.runner.work import Work
from burnish.core.settings import Settings
from burnish.core.stage import Stage


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
    """What will happen to a node and why, for `burnish plan` and the log.

    Attributes:
        former: where a finished checkpoint lies that is this node's under a name that the recipe no longer has.
    """

    node: Node
    stage: Stage
    action: str
    reason: str
    key: str = ""
    plan: Plan | None = None
    former: Path | None = None


@dataclass
class Planner:
    """What a recipe would do in a directory, and why, from configurations and content hashes; it writes nothing."""

    recipe: Recipe
    directory: Path
    rooms: Rooms
    targets: dict[str, Path] = field(default_factory=dict)
    verify: bool = False

    def __post_init__(self) -> None:
        self.stages = {node.name: self._settings(node) for node in self.recipe.nodes}
        self.evaluate = None
        if self.recipe.evaluate is not None:
            self.evaluate = self.rooms.evaluate().parse(
                self.recipe.evaluate, where=self.recipe.where.get("evaluate", self.recipe.source)
            )
        self.start = resolve(self.recipe.start)
        read_config(self.start)
        self.recipe, self.stages = expanded(self.recipe, self.stages, read=self._settings, plan_start=self._plan_start)
        self.needs = {node.name: self._needs(node) for node in self.recipe.nodes}
        self.recipe = replace(self.recipe, nodes=in_order(self.recipe.nodes, self.needs))
        self.state = read_state(self.directory)
        read = [self.start, *(value for value, _, _ in self._read_from_outside())]
        check_apart([*self.targets.values(), self.directory], read)
        self.hashes: dict[str, str] = {}
        self._read_here: set[str] = set()

    def _settings(self, node: Node) -> Stage:
        return self.rooms.stage_class(node.stage, where=node.where).parse(node.settings, where=place_of(node))

    def _needs(self, node: Node) -> list[str]:
        """Names of the nodes that must be finished before this one: its parent, and those that its settings name."""
        named = [value for _, to, value in self.stages[node.name].named() if self.made_here(to, value)]
        return [name for name in dict.fromkeys([node.parent, *named]) if name in self.stages]

    def made_here(self, to: str, value: str) -> bool:
        """Whether a reference names a node, or the start; a word names data of a node only where that makes data."""
        if to == "data":
            return value in self.stages and self.stages[value].makes_data
        return value in self.stages or value == START

    def data_to_come(self, node: Node) -> bool:
        """Whether a node reads data that another one has yet to make."""
        return any(to == "data" and self.made_here(to, value) for _, to, value in self.stages[node.name].named())

    # -- where things are --------------------------------------------------------------------------------------------

    def target(self, name: str) -> Path:
        """The directory of a node's checkpoint, or of the start."""
        if name == START:
            return self.start
        return self.targets.get(name, self.directory / "nodes" / name)

    def work(self, node: Node) -> Work:
        """What an interrupted run of a node has left."""
        return Work(self.directory / "work" / node.name, self.stages[node.name].changeable)

    # -- content hashes ----------------------------------------------------------------------------------------------

    def checkpoint_hash(self, directory: Path) -> str:
        """The content hash of a checkpoint; one of ours whose files are not what its lineage says was tampered with."""
        lineage = Lineage.read(directory)
        files = content_files(directory)
        hashes = self._read_once(str(directory.resolve()), files, lambda: hash_directory(directory))
        if lineage is not None and lineage.files != hashes:
            name = min(set(lineage.files.items()) ^ set(hashes.items()))[0]
            what = "is not what the lineage file says it should be"
            fix = "it was changed by hand or damaged: delete the directory and make it again"
            if name not in hashes:
                what, fix = "is gone, and the lineage file names it", "copy it too, or make the checkpoint again"
            elif name not in lineage.files:
                what, fix = "is none of the files that the lineage file names", "move it to another place"
            raise errors.CheckpointError(f"{name} {what}", where=str(directory), fix=fix)
        return Lineage(files=hashes).hash

    def _read_once(self, name: str, files: Sequence[Path], read: Callable[[], Any]) -> Any:
        """What was read of some files, by this run or one before it.

        Files that kept size and time are trusted. With `verify`, and where the name stands for no file here (a hub id,
        a text that ships with burnish), everything is read once more in this process.
        """
        stamps = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        known: dict[str, Any] = self.state["files"].get(name, {})
        trusted = name in self._read_here or (stamps and not self.verify)
        if not trusted or known.get("stamps") != stamps:
            known = self.state["files"][name] = {"stamps": stamps, "hashes": read()}
            self._read_here.add(name)
        return known["hashes"]

    def _reference_hashes(self, node_name: str, settings: Settings) -> dict[str, str] | None:
        """{place: content hash} of everything that settings name, or None while a named node is unfinished."""
        hashes: dict[str, str] = {}
        for name, to, value in settings.named():
            if self.made_here(to, value):
                if value not in self.hashes:
                    return None
                hashes[name] = self.hashes[value]
            elif to == "data":
                hashes[name] = self._data_hash(value, node_name)
            else:
                hashes[name] = self.checkpoint_hash(resolve(value))
        return hashes

    def _data_hash(self, reference: str, node_name: str) -> str:
        path = Path(reference).expanduser()
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        name = str(path.resolve()) if path.exists() else reference
        try:
            return self._read_once(name, files, lambda: self.rooms.data_hash(reference))
        except BurnishError as error:
            raise located(error, self.where(node_name)) from None

    def where(self, node_name: str) -> str:
        """Where the recipe names a node; the start stands for what is measured on it."""
        if node_name == START:
            return self.recipe.where.get("evaluate", self.recipe.source)
        return place_of(self.recipe.node(node_name))

    def _key(self, node: Node) -> str | None:
        """The key of a node, or None while something that it needs is unfinished."""
        references = self._reference_hashes(node.name, self.stages[node.name])
        if node.parent not in self.hashes or references is None:
            return None
        return self.stages[node.name].key(self.hashes[node.parent], references)

    def _parts(self, node: Node) -> dict[str, Any]:
        """What a node depends on, in so far as it is finished."""
        references = self._reference_hashes(node.name, self.stages[node.name])
        return self.stages[node.name].parts(self.hashes.get(node.parent), references)

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
        measured = {self._data_hash(value, START): value for _, to, value in self.evaluate.named() if to == "data"}
        for node in self.recipe.nodes:
            for name, to, value in self.stages[node.name].named():
                if to != "data" or self.made_here(to, value):
                    continue
                if self._data_hash(value, node.name) in measured:
                    raise RecipeError(
                        f"{name} is the text that everything is measured on ({value}), which would look too good",
                        where=self.where(node.name),
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
            if (former := self._former(node, key)) is not None:
                self.hashes[node.name] = self.checkpoint_hash(former)
                return Decision(node, stage, "skip", f"was called {former.name!r} before", key, former=former)
            return Decision(node, stage, "run", self._how_far(node), key)
        if lineage.key != key:
            return Decision(node, stage, "run", self._what_changed(node, lineage), key)
        self.hashes[node.name] = self.checkpoint_hash(target)
        return Decision(node, stage, "skip", "nothing that it depends on has changed", key)

    def _former(self, node: Node, key: str) -> Path | None:
        """A finished checkpoint of the same key, made under a name that no node has any more."""
        if node.name in self.targets:
            return None
        for name, known in self.state["nodes"].items():
            place = self.directory / "nodes" / name
            if name not in self.stages and known.get("key") == key and place.is_dir():
                lineage = Lineage.read(place)
                if lineage is not None and lineage.key == key:
                    return place
        return None

    def _how_far(self, node: Node) -> str:
        work = self.work(node)
        if not work.directory.is_dir():
            return "was never made"
        changes = self.work(node).changes(self._parts(node))
        return (
            f"was interrupted, and has changed since: {'; '.join(changes.values())}" if changes else "was interrupted"
        )

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
            for name, to, value in stage.named():
                if to == "data":
                    if not self.made_here(to, value):
                        self._data_hash(value, node.name)
                else:
                    kind = plans[value].kind if value in plans else kind_on_disk(resolve(value))
                    stage.check_reference(name, kind, where=self.where(node.name))
            decision.plan = plans[node.name] = plan_node(node, stage, plans.__getitem__)
        return plans[START]

    def _plan_start(self) -> Plan:
        """From file headers; a directory that holds a configuration and no weights can be planned, though not run."""
        if any(self.start.glob("*.safetensors")):
            return plan_checkpoint(self.start)
        raw = read_config(self.start)
        if any(path.suffix in UNSAFE_SUFFIXES for path in self.start.iterdir()):
            return plan_checkpoint(self.start)  # says that pickled weights are not opened
        return plan_config(load_config(self.start), kind=kind_of(raw))

    def remarks(self) -> list[str]:
        """What the checkpoints from outside ask for and do not get."""
        named = {value: resolve(value) for value, to, _ in self._read_from_outside() if to == "checkpoint"}
        return [remark for directory in named.values() for remark in remarks(directory)]

    def reads_outside(self) -> list[str]:
        """Local paths outside the working directory that the recipe reads, so that none is read silently."""
        here = Path.cwd().resolve()
        outside = []
        for value, where in {value: where for value, _, where in self._read_from_outside()}.items():
            path = Path(value).expanduser()
            if path.exists() and not path.resolve().is_relative_to(here):
                outside.append(f"{where} reads {path.resolve()}, outside the working directory")
        return outside

    def _read_from_outside(self) -> Iterator[tuple[str, str, str]]:
        """(reference, "checkpoint" or "data", where the recipe has it) of everything that no node makes."""
        yield self.recipe.start, "checkpoint", self.recipe.where.get("start", self.recipe.source)
        settings: list[tuple[str, Settings]] = [(node.where, self.stages[node.name]) for node in self.recipe.nodes]
        if self.evaluate is not None:
            settings.append((self.recipe.where.get("evaluate", ""), self.evaluate))
        for where, stage in settings:
            yield from ((value, to, where) for _, to, value in stage.named() if not self.made_here(to, value))


def kind_on_disk(directory: Path) -> Kind:
    """What a checkpoint says it is, or what its architecture's head says."""
    lineage = Lineage.read(directory)
    return kind_of(read_config(directory)) if lineage is None else lineage.kind
