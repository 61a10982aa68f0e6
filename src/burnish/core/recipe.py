"""Recipes: a YAML tree of named nodes, each a stage with its settings.

    name: quickstart
    start: models/smollm2          # a checkpoint directory or hub id; `burnish run RECIPE --start DIR` overrides it
    evaluate: {text: wikitext2-test, num_windows: 8}
    nodes:
      - {name: nearest, stage: quantize, method: rtn, bits: 3}
      - {name: gptq, from: start, stage: quantize, method: gptq, bits: 3}
    keep: all                      # all | leaves | [names]

A node without `from:` follows the previous one. Two nodes with one parent are a comparison. A setting that names a
checkpoint (`teacher`, `reference`) takes a node's name, `start`, a directory or a hub id. Relative paths start at the
working directory. The file is read by YAML's safe loader; every mistake names file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from burnish.core.errors import RecipeError, nearest
from burnish.core.outside import is_text, kind_of_json, local_path, read_bytes, shown
from burnish.core.yaml12 import Loader

START = "start"
_TOP_KEYS = ("name", "start", "evaluate", "nodes", "keep")
_NODE_KEYS = ("name", "stage", "from", "launch")
_MAX_ENTRIES = 100_000
_MAX_DEPTH = 32
_MAX_BYTES = 1_000_000
_MAX_PROCESSES = 1_024
_NODE_NAME = re.compile(r"[\w][\w .-]*", re.UNICODE)


@dataclass(frozen=True)
class Node:
    """One step of a recipe.

    Attributes:
        name: unique in the recipe; the directory of its checkpoint.
        stage: the verb.
        parent: `start` or another node's name.
        settings: the stage's settings as written.
        processes: how many processes torchrun starts for it; 1 is a plain process.
        where: file and line, for messages.
    """

    name: str
    stage: str
    parent: str
    settings: dict[str, Any]
    processes: int = 1
    where: str = ""


@dataclass(frozen=True)
class Recipe:
    """Nodes in an order in which every node comes after its parent."""

    name: str
    start: str
    nodes: tuple[Node, ...]
    evaluate: dict[str, Any] | None = None
    keep: str | tuple[str, ...] = "all"
    source: str = ""
    text: str = ""
    where: dict[str, str] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def children(self, name: str) -> list[Node]:
        return [node for node in self.nodes if node.parent == name]

    def kept(self) -> set[str]:
        """Names of the nodes whose checkpoints stay on disk when the run has finished."""
        names = {node.name for node in self.nodes}
        if self.keep == "all":
            return names
        if self.keep == "leaves":
            return {name for name in names if not self.children(name)}
        return set(self.keep)


def read_recipe(path: str | Path, *, start: str | None = None) -> Recipe:
    """Reads a recipe file.

    Args:
        path: the YAML file.
        start: overrides the recipe's `start`.

    Raises:
        RecipeError: with file and line: not readable, broken YAML, unknown or missing keys, wrong types, two nodes
            with one name, unknown parents, cycles.
    """
    path = Path(path)
    if (local := local_path(str(path))) is None or not local.exists():
        raise RecipeError("no such recipe file", where=str(path))
    content = read_bytes(local, error=RecipeError)
    if len(content) > _MAX_BYTES:
        raise RecipeError(f"has {len(content):,} bytes, which no recipe has", where=str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"is not UTF-8 text (byte {error.start:,} cannot be read)", where=str(path)) from None
    return parse_recipe(text, source=str(path), default_name=path.stem, start=start)


def parse_recipe(text: str, *, source: str, default_name: str = "recipe", start: str | None = None) -> Recipe:
    """`read_recipe` on a string; `source` is what messages call the file."""
    content, lines = _read_yaml(text, source)

    def place(*keys: str | int) -> str:
        while keys and keys not in lines:
            keys = keys[:-1]
        return f"{source}:{lines.get(keys, 1)}"

    if not isinstance(content, dict):
        raise RecipeError("is not a mapping of keys such as 'start' and 'nodes'", where=place())
    for key in content:
        if key not in _TOP_KEYS:
            guess = nearest(str(key), list(_TOP_KEYS))
            advice = f"did you mean {guess!r}?" if guess else f"a recipe has {', '.join(_TOP_KEYS)}"
            raise RecipeError(f"a recipe has no key {key!r}", where=place(key), fix=advice)
    first = start if start is not None else _text(content.get("start"), "start", place("start"))
    if not first.strip():
        raise RecipeError("names no start checkpoint", where=place(), fix="add 'start: DIRECTORY' or pass --start")
    listed = content.get("nodes")
    if not isinstance(listed, list) or not listed:
        shown = "a mapping" if isinstance(listed, dict) else kind_of_json(listed)
        what = f"nodes is {shown}, where a list is expected" if listed else "has no nodes"
        raise RecipeError(what, where=place("nodes"), fix="write 'nodes:' and below it '- stage: quantize'")
    evaluate = content.get("evaluate")
    if evaluate is True:
        evaluate = {}
    if evaluate is not None and not isinstance(evaluate, dict):
        raise RecipeError("'evaluate' is not a mapping of settings", where=place("evaluate"))
    name = _text(content.get("name", default_name), "name", place("name"))
    _check_name(name, place("name"))
    nodes = _nodes(listed, place)
    _check_parents(nodes)
    parents = {node.name: [node.parent] if node.parent != START else [] for node in nodes}
    return Recipe(
        name=name,
        start=first,
        nodes=in_order(nodes, parents),
        evaluate=evaluate,
        keep=_keep(content.get("keep", "all"), nodes, place("keep")),
        source=source,
        text=text,
        where={"evaluate": place("evaluate"), "start": place("start")},
    )


def single_node(stage: str, settings: dict[str, Any], *, start: str, evaluate: dict[str, Any] | None) -> Recipe:
    """The recipe behind a single command such as `burnish quantize MODEL`."""
    command = f"burnish {stage}"
    return Recipe(stage, start, (Node(stage, stage, START, settings, where=command),), evaluate, source=command)


def _nodes(listed: list[Any], place: Any) -> list[Node]:
    nodes: list[Node] = []
    for index, entry in enumerate(listed):
        where = place("nodes", index)
        if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
            raise RecipeError(f"node {index + 1} names no stage", where=where, fix="write '- stage: quantize'")
        name = _text(entry.get("name", entry["stage"]), "name", where)
        _check_name(name, where)
        if name == START:
            raise RecipeError("'start' is the name of the input, a node needs another", where=where)
        if any(node.name == name for node in nodes):
            raise RecipeError(f"two nodes are called {name!r}", where=where, fix="give one another 'name:'")
        parent = _text(entry.get("from", nodes[-1].name if nodes else START), "from", where)
        settings = {key: value for key, value in entry.items() if key not in _NODE_KEYS}
        processes = _processes(entry.get("launch"), where)
        nodes.append(Node(name, entry["stage"], parent, settings, processes, where))
    return nodes


def _processes(launch: Any, where: str) -> int:
    if launch is None:
        return 1
    if not isinstance(launch, dict) or set(launch) != {"processes"} or type(launch["processes"]) is not int:
        raise RecipeError("'launch' is written {processes: N}", where=where)
    count, cores = launch["processes"], os.cpu_count() or 1
    if count < 1:
        raise RecipeError(f"launch.processes is {count}, but must be at least 1", where=where)
    if count > max(8, 4 * cores):
        raise RecipeError(
            f"launch.processes is {count:,}, but this machine has {cores} cores",
            where=where,
            fix=f"use at most {max(8, 4 * cores)}",
        )
    return count


def _text(value: Any, key: str, where: str) -> str:
    """A name as it was written; YAML reads some words as other things than words."""
    if value is None:
        return ""
    if isinstance(value, str) or type(value) is int:
        return str(value)
    raise RecipeError(f"{key} is {value!r}, which is no text", where=where, fix="write it in quotes")


def _check_parents(nodes: list[Node]) -> None:
    names = [node.name for node in nodes]
    for node in nodes:
        if node.parent != START and node.parent not in names:
            guess = nearest(node.parent, [START, *names])
            raise RecipeError(
                f"node {node.name!r} comes from {node.parent!r}, which is no node",
                where=node.where,
                fix=f"did you mean {guess!r}?" if guess else f"nodes are {', '.join(names)}",
            )


def in_order(nodes: Sequence[Node], needs: dict[str, list[str]]) -> tuple[Node, ...]:
    """The nodes so that each follows those that it needs.

    Args:
        nodes: in the order of the file, which is kept where it can be.
        needs: {name: names of the nodes that must be finished before it}.

    Raises:
        RecipeError: the nodes form a circle.
    """
    by_name = {node.name: node for node in nodes}
    ordered: list[Node] = []
    visiting: list[str] = []

    def visit(node: Node) -> None:
        if node in ordered:
            return
        if node.name in visiting:
            circle = " -> ".join([*visiting[visiting.index(node.name) :], node.name])
            raise RecipeError(f"the nodes form a circle: {circle}", where=node.where)
        visiting.append(node.name)
        for needed in needs[node.name]:
            visit(by_name[needed])
        visiting.pop()
        ordered.append(node)

    for node in nodes:
        visit(node)
    return tuple(ordered)


def _keep(value: Any, nodes: list[Node], where: str) -> str | tuple[str, ...]:
    if value in ("all", "leaves"):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        unknown = [entry for entry in value if entry not in {node.name for node in nodes}]
        if unknown:
            raise RecipeError(f"'keep' names {unknown[0]!r}, which is no node", where=where)
        return tuple(value)
    raise RecipeError("'keep' is written all, leaves or [node names]", where=where)


def _check_name(name: str, where: str) -> None:
    if not _NODE_NAME.fullmatch(name) or name != name.strip() or ".." in name or len(name) > 80:
        raise RecipeError(
            f"{shown(name)} cannot be a name",
            where=where,
            fix="use letters, digits, spaces, '-', '_' and '.', up to 80",
        )


def _read_yaml(text: str, source: str) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """The content, and for every key path the line it stands on."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError("is empty", where=source)
        lines = _lines_of(root, source)
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"is not valid YAML: {error.problem}", where=f"{source}:{line}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"is not valid YAML: {str(error).splitlines()[0]}", where=source) from None
    except RecursionError:
        raise RecipeError(f"is nested deeper than {_MAX_DEPTH} levels, or refers to itself", where=source) from None


def _lines_of(root: yaml.Node, source: str) -> dict[tuple[str | int, ...], int]:
    """{path of keys: line}; refuses what no recipe has: keys that are no text, or twice, and too many entries."""
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str | int, ...]) -> None:
        lines[path] = node.start_mark.line + 1
        if len(lines) > _MAX_ENTRIES:
            raise RecipeError(f"has more than {_MAX_ENTRIES:,} entries once its aliases are expanded", where=source)
        if len(path) > _MAX_DEPTH:
            raise RecipeError(f"is nested deeper than {_MAX_DEPTH} levels, or refers to itself", where=source)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    shown = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise RecipeError(f"the key {shown} is no name of a setting", where=f"{source}:{line}")
                name = key.value
                if name in seen:
                    raise RecipeError(f"the key {name!r} is written twice", where=f"{source}:{line}")
                seen.add(name)
                walk(value, (*path, name))
                lines[(*path, name)] = line
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*path, index))
        elif not is_text(node.value):
            raise RecipeError("holds half of a surrogate pair, which is no character", where=f"{source}:{lines[path]}")

    walk(root, ())
    return lines
