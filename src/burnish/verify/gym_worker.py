"""`python -m burnish.verify.gym_worker`: reasoning-gym's scorers in a process of its own (see `Workers`).

Some of its scorers call `eval` on what a model wrote, by themselves (queens, matrices, words) or through SymPy (24,
countdown, integrals, polynomials), and one on what the file says: a text such as `__import__("os").system("...")` would
be run. Here `eval` is two others in these modules: one that reads plain data and arithmetic, one that reads formulas.
What is neither is an error, as a text that is no Python is. `exec` is gone.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

from burnish.verify.worker import serve

_OPERATORS = (ast.Load, ast.operator, ast.unaryop)
_DATA = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, *_OPERATORS)
_FORMULA = (ast.Expression, ast.Constant, ast.Name, ast.Call, ast.UnaryOp, ast.BinOp, *_OPERATORS)
_WRAPPERS = frozenset({"Symbol", "Integer", "Float", "Rational"})
"""Around the names and numbers of a formula, whose texts alone they may hold: SymPy runs the texts of its functions."""
_FUNCTIONS = _WRAPPERS | {
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "Abs", "factorial"),
}
_NUMBERS = frozenset({"E", "I", "pi", "oo"})


LATER = tuple(f"reasoning_gym.arithmetic.gsm_symbolic.generators_{range}" for range in ("00_49", "50_99"))
"""Modules with `eval` that the library imports when it needs them."""


def plain_data(text: str, *_: Any) -> Any:
    """`eval` of numbers, texts, lists and arithmetic."""
    tree = ast.parse(text.strip(" \t"), mode="eval")
    if not all(isinstance(node, _DATA) for node in ast.walk(tree)):
        raise ValueError("is more than data")
    return eval(compile(tree, "answer", "eval"), {"__builtins__": {}})


def formula(code: str, known: dict[str, Any], names: dict[str, Any]) -> Any:
    """`eval` of what SymPy made of a formula."""
    tree = ast.parse(code.strip(), mode="eval")
    texts = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func.id if isinstance(node.func, ast.Name) else ""
            if function not in _FUNCTIONS or node.keywords:
                raise ValueError("calls what is no function of mathematics")
            if function in _WRAPPERS:
                texts -= sum(_is_text(one) for one in node.args)
        allowed = isinstance(node, _FORMULA)
        if isinstance(node, ast.Name):
            allowed = node.id in _FUNCTIONS or node.id in _NUMBERS or node.id in names
        if not allowed:
            raise ValueError("is no formula")
        texts += _is_text(node)
    if texts:
        raise ValueError("holds a text")
    return eval(compile(tree, "formula", "eval"), known, names)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and not isinstance(node.value, int | float)


def refused(*_: Any) -> NoReturn:
    raise ValueError("is not run")


def guard() -> None:
    """Takes `eval` and `exec` from all modules of reasoning-gym and from SymPy's parser."""
    for name in ("reasoning_gym", *LATER):
        import_module(name)
    # A name of the module goes before the language's own.
    import_module("sympy.parsing.sympy_parser").__dict__["eval"] = formula
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "reasoning_gym":
            module.__dict__.update(eval=plain_data, exec=refused)


@cache
def scorer(task: str) -> Any:
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(task)


def as_made(task: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry from a file as the library made it: some scorers compare tuples, which JSON does not have."""
    if task in ("arc_agi", "rearc"):
        facts = entry["metadata"]
        return {**entry, "metadata": {**facts, "output": tuple(tuple(row) for row in facts["output"])}}
    return entry


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The names of all tasks, or the score of an answer; an error of a scorer is what it could not read."""
    from reasoning_gym.factory import DATASETS

    if "task" not in question:
        return {"tasks": sorted(DATASETS)}
    task = question["task"]
    try:
        return {"score": float(scorer(task)(question["answer"], as_made(task, question["entry"])))}
    except Exception as error:  # noqa: BLE001 (of a hundred scorers, most of which expect well-formed answers)
        return {"error": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    guard()
    serve(answer)
