"""`Run`: carries out what was decided, one node after another, and measures what comes out."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from burnish.core.checkpoint import (
    LINEAGE_FILE,
    Lineage,
    check_place,
    check_target,
    pick_device,
    remove_leftovers,
    remove_leftovers_inside,
    weight_files,
    write_atomically,
)
from burnish.core.kinds import PREDICTS_TEXT, Kind
from burnish.core.ledger import SEQUENCES_DIRECTORY, Ledger
from burnish.core.recipe import START, Node
from burnish.core.runner.directory import RECIPE_FILE, RUN_FILE, locked
from burnish.core.runner.plan import Decision, Planner, kind_on_disk
from burnish.core.runner.preflight import preflight
from burnish.core.runner.process import spawn, terminated_like_interrupted


@dataclass
class Run(Planner):
    """One recipe in one directory.

    Attributes:
        overwrite: replace a checkpoint that burnish made at a target outside the directory.
        with_changes: go on from the states of interrupted stages although settings have changed that may.
        restart: delete what interrupted stages have left.
        log: takes news.
    """

    overwrite: bool = False
    with_changes: bool = False
    restart: bool = False
    log: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True)

    def execute(self) -> list[Decision]:
        """Runs what must run, measures what must be measured, and returns what was decided for every node."""
        with locked(self.directory), terminated_like_interrupted():
            self._sweep()
            for note in self.reads_outside() if self.recipe.text else ():
                self.log(f"note: {note}")
            decisions = self.decide()
            if any(decision.action == "run" for decision in decisions):
                for remark in self.remarks():  # asks transformers, which a finished run does without
                    self.log(f"note: {remark}")
                weight_files(self.start)
                self.plan(decisions)
                for decision in decisions:
                    if decision.action == "run":
                        pick_device(decision.stage.device)  # raises where this machine has no such device
                        check_place(self.target(decision.node.name))
                        check_target(self.target(decision.node.name), overwrite=self._may_replace(decision.node))
                        self._check_interrupted(decision.node)
                preflight(self, decisions)
            self._rename(decisions)
            self._forget(decisions)
            self._write_state()
            if self.recipe.text:
                write_atomically(self.directory / RECIPE_FILE, self.recipe.text)
            self._measure(START)
            for decision in decisions:
                self._finish(decision)
            self._measure_together(decisions)
            self._drop(decisions)
            self._clear_work(decisions)
            return decisions

    def _rename(self, decisions: list[Decision]) -> None:
        """Gives checkpoints the names that their nodes have now."""
        for decision in decisions:
            if decision.former is not None:
                decision.former.rename(self.target(decision.node.name))
                self.state["nodes"][decision.node.name] = self.state["nodes"].pop(decision.former.name)

    def _forget(self, decisions: list[Decision]) -> None:
        """Settings of now never stand beside the hash of what others made, should the run be killed before it ends."""
        for decision in decisions:
            known = self.state["nodes"].get(decision.node.name, {})
            if known.get("key") != decision.key:
                self.state["nodes"].pop(decision.node.name, None)

    def _check_interrupted(self, node: Node) -> None:
        """Refuses to go on with what is not what was interrupted; deletes it where a restart is asked for."""
        work = self.work(node)
        if self.restart:
            work.clear()
        work.check(self._parts(node), with_changes=self.with_changes, where=self.where(node.name))

    def _clear_work(self, decisions: list[Decision]) -> None:
        """What a run that was killed after saving has left; never what nodes that are not in this recipe have kept."""
        for decision in decisions:
            self.work(decision.node).clear()
        place = self.directory / "work"
        if not place.is_dir():
            return
        for path in place.iterdir():
            if path.is_file():  # what a process was told, or what it said before it ended: none is running now
                path.unlink()
        if not any(place.iterdir()):
            place.rmdir()

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
        named = stage.named()
        inputs = {place: str(self.target(value)) if self.made_here(to, value) else value for place, to, value in named}
        work = self.work(node)
        work.check(self._parts(node), with_changes=self.with_changes, where=self.where(node.name))
        may_change = work.begin(self._parts(node))
        self.state["nodes"][node.name] = {"status": "running", "key": decision.key}
        self._write_state()
        spawn(
            self.directory,
            node.name,
            {
                "task": "stage",
                "stage": f"{type(stage).__module__}:{type(stage).__qualname__}",
                "settings": stage.model_dump(mode="json"),
                "model": str(self.target(node.parent)),
                "model_hash": self.hashes[node.parent],
                "inputs": inputs,
                "target": str(target),
                "replace": self._may_replace(node),
                "work": str(work.directory),
                "may_change": sorted(may_change),
                "run": str(self.directory),
                "node": node.name,
                "key": decision.key,
                "parents": {"model": self.hashes[node.parent]} | references,
            },
            where=self.where(node.name),
            processes=node.processes,
            memory_settings=stage.memory_settings,
        )
        work.finish(self.directory / "logs")

    def _measure(self, name: str) -> None:
        """Measures a checkpoint unless the ledger has it under this very request."""
        if self.evaluate is None:
            return
        target, digest = self.target(name), self.hashes[name]
        if (kind := kind_on_disk(target)) is Kind.DATA:
            return
        if kind not in PREDICTS_TEXT:
            self.log(f"{name}: not measured, a {kind} predicts no text")
            return
        references = dict(self._reference_hashes(name, self.evaluate) or {})
        if "reference" in self.evaluate.references() and "reference" not in references and name != START:
            references["reference"] = self.hashes[START]
        content = json.dumps([self.evaluate.canonical(), references], sort_keys=True)
        request = hashlib.sha256(content.encode()).hexdigest()
        ledger = Ledger(self.directory, node=name)
        for row in ledger.rows:
            if row["row"] == "measurement" and row["checkpoint"] == digest and row["request"] == request:
                if name != START and (lineage := Lineage.read(target)):  # measured as another node of the same weights
                    lineage.write_measured(target, row["metrics"], row["protocol"]["hash"])
                return
        settings = self.evaluate.model_dump(mode="json")
        for key, to in self.evaluate.references().items():
            value = settings.get(key)
            if to == "checkpoint" and value is not None and self.made_here(to, value):
                settings[key] = str(self.target(value))
        if "reference" in references and settings.get("reference") is None:
            settings["reference"] = str(self.start)
        self.log(f"{name}: measuring")
        spawn(
            self.directory,
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
            where=self.where(name),
            memory_settings="evaluate.context",
        )

    def _measure_together(self, decisions: list[Decision]) -> None:
        """Measures what all checkpoints share, unless the ledger has it for each of them under this very request."""
        asked = self.evaluate.measured_together() if self.evaluate is not None else None
        if self.evaluate is None or asked is None:
            return
        names = [START, *(decision.node.name for decision in decisions if self.target(decision.node.name).is_dir())]
        models = [name for name in names if kind_on_disk(self.target(name)) in PREDICTS_TEXT]
        by_content = {self.hashes[name]: name for name in reversed(models)}  # equal weights are measured once
        names = [name for name in models if by_content[self.hashes[name]] == name]
        content = json.dumps([asked, sorted(by_content)], sort_keys=True)
        request = hashlib.sha256(content.encode()).hexdigest()
        rows = [row for row in Ledger(self.directory).rows if row["row"] == "speed" and row["request"] == request]
        if {row["checkpoint"] for row in rows} >= set(by_content):
            return
        self.log(f"measuring {', '.join(names)} together")
        spawn(
            self.directory,
            "together",
            {
                "task": "together",
                "stage": f"{type(self.evaluate).__module__}:{type(self.evaluate).__qualname__}",
                "settings": self.evaluate.model_dump(mode="json"),
                "checkpoints": {name: [str(self.target(name)), self.hashes[name]] for name in names},
                "run": str(self.directory),
                "request": request,
            },
            where=self.recipe.where.get("evaluate", self.recipe.source),
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
        for directory in (self.directory, self.directory / "work", self.directory / SEQUENCES_DIRECTORY):
            remove_leftovers_inside(directory)
        for node in self.recipe.nodes:
            target = self.target(node.name)
            remove_leftovers(target)
            if (target / LINEAGE_FILE).is_file():  # nothing is touched in a directory that is not ours
                remove_leftovers_inside(target)

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
