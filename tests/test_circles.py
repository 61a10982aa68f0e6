"""No file imports, directly or through others, a file that imports it; imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"

Graph = dict[str, set[str]]


def imports() -> Graph:
    """For every file of the package the files that it imports, what only type checkers read left out."""
    files = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), files)) - {name} for name, path in files.items()
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a piece of code imports; `from package import module` is the module."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    if isinstance(node, ast.ImportFrom) and node.module in known:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in known else node.module
    for child in ast.iter_child_nodes(node):
        yield from imported(child, known)


def is_stage_and_its_work(importer: str, target: str) -> bool:
    """`room/stage.py` imports `room/run.py` inside its `run`, and that needs the settings: the one circle there is."""
    room, _, file = importer.rpartition(".")
    return file == "stage" and target == f"{room}.run"


def circles(graph: Graph) -> list[list[str]]:
    """Groups of files of which each can be reached from each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_but_a_stage_and_its_work():
    graph = {name: {to for to in targets if not is_stage_and_its_work(name, to)} for name, targets in imports().items()}
    assert circles(graph) == []
