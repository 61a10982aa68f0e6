"""The source reads as a person would want: functions that fit a screen, and one meaning for the name of a class."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "burnish"
LONGEST = 60

OPTIONS = "its arguments and docstring are the options and the help of a command"
LONG_FUNCTIONS = {
    "cli/audit.py:audit": OPTIONS,
    "cli/data.py:chain": OPTIONS,
    "cli/data.py:trajectories": OPTIONS,
    "cli/kv_cache.py:kv_cache": OPTIONS,
    "cli/reason.py:evolve": OPTIONS,
    "cli/reason.py:run": OPTIONS,
    "cli/reason_serve.py:serve": OPTIONS,
    "cli/serve.py:sim": OPTIONS,
    "cli/serve.py:up": OPTIONS,
    "cli/steer.py:calibrate": OPTIONS,
    "cli/steer.py:sweep": OPTIONS,
}
SHARED_NAMES = {
    "Objective": "public in `events` and in `optim.constrained`, which never import each other",
    "_State": "private to two files that have nothing to do with each other",
}


@cache
def read() -> list[tuple[str, ast.AST]]:
    """Every function and class with its file; the other nodes, a million, are let go of at once."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        (path.relative_to(SOURCE).as_posix(), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]


def long_functions(nodes: list[tuple[str, ast.AST]]) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [(place, node) for place, node in nodes if isinstance(node, kinds)]
    return {f"{place}:{f.name}" for place, f in functions if (f.end_lineno or 0) - f.lineno >= LONGEST}


def shared_names(nodes: list[tuple[str, ast.AST]]) -> set[str]:
    names = Counter(node.name for _, node in nodes if isinstance(node, ast.ClassDef))
    return {name for name, count in names.items() if count > 1}


def test_what_is_too_long_or_named_twice_is_found():
    function = "def short():\n" + "    pass\n" * 59 + "def long():\n" + "    pass\n" * 60
    tree = ast.parse(function + "class Twice: ...\nclass Once: ...\nclass Twice: ...")
    nodes = [("a.py", node) for node in ast.walk(tree)]
    assert long_functions(nodes) == {"a.py:long"}
    assert shared_names(nodes) == {"Twice"}


def test_a_function_is_at_most_sixty_lines_or_has_a_reason():
    assert long_functions(read()) == set(LONG_FUNCTIONS)


def test_the_name_of_a_class_has_one_meaning():
    assert shared_names(read()) == set(SHARED_NAMES)
