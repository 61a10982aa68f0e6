"""A solution cut into its steps, and sums in a step that are computed again."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

_NUMBERED = re.compile(r"^[ \t>*#]*step[ \t]+\d+\b", re.IGNORECASE | re.MULTILINE)
_ENDS = (re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n+"), re.compile(r";\s*"), re.compile(r"[.!?]\s+"))
"""What ends a step: blank lines, else line ends, else semicolons, else sentences."""

_OPERATOR = "[-+*/\u00d7\u00b7\u00f7\u2212]"
"""The last four: times, middle dot, divided by, minus."""
_NUMBER = r"\$?-?(?<![\d.])(?:\d{1,3}(?:,\d{3}){1,6}+|\d{1,30}+)(?!\d)(?:\.\d{1,30}+)?+"
_TERM = rf"[( ]{{0,8}}+{_NUMBER}[) ]{{0,8}}+"
_SIDE = rf"{_TERM}(?:{_OPERATOR}{_TERM}){{0,30}}+"
_EQUATION = re.compile(rf"{_SIDE}(?:={_SIDE}){{1,10}}+")
"""Bounded, and without ways back: what a model loops on is as quickly passed over."""
_SPELLED = str.maketrans("\u00d7\u00b7\u00f7\u2212", "**/-", "$,")
_TIES = re.compile(rf"(?:{_OPERATOR}|[=(^%\\])\s*$"), re.compile(rf"\s*(?:{_OPERATOR}|[=^%(])|[A-Za-z_]")
"""Before and behind a sum: what shows that it goes on outside what was read."""
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST = 400
"""Characters of a sum that is computed."""


def cut(text: str) -> list[str]:
    """The steps of a solution, which joined are the text: before every `Step k`, or behind what ends a step in it."""
    starts = [found.start() for found in _NUMBERED.finditer(text)]
    if len(starts) >= 2:
        places = starts[1:]  # what stands before the first belongs to it
    else:
        ends = ([found.end() for found in pattern.finditer(text)] for pattern in _ENDS)
        places = next((found for found in ends if any(end < len(text) for end in found)), [])
    bounds = [0, *(place for place in places if place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(bounds) if text[start:end]]


def sums(step: str, modulus: int | None = None) -> Iterator[tuple[str, bool]]:
    """Every sum in a step, such as `7*2=14`, and whether its two sides are equal.

    A side that is rounded is right to the digits that it has: 10/3=3.33. A running total, 2+3=5+1=6, is two sums. What
    cannot be read as numbers alone, units or unknowns among them, is passed over.

    Args:
        step: any text.
        modulus: of all results, where sides are equal up to its multiples.
    """
    for found in _EQUATION.finditer(step):
        before, end = step[max(0, found.start() - LONGEST) : found.start()], found.start() + len(found[0].rstrip())
        called = found[0].startswith("(") and before[-1:].isalnum()  # f(3)
        if len(found[0]) > LONGEST or called or _TIES[0].search(before) or _TIES[1].match(step, end):
            continue
        sides = [side.strip() for side in found[0].split("=")]
        for left, right in pairwise(sides):
            reached = [right] if right is sides[-1] else [right, re.split(rf"(?<=\d)\s*{_OPERATOR}", right)[0]]
            told = [_agree(left, one, modulus) for one in reached]
            if (_has_operation(left) or _has_operation(right)) and None not in told:
                yield f"{left}={right}", any(told)


def _agree(left: str, right: str, modulus: int | None) -> bool | None:
    """Whether two sides come to the same; None where one of them cannot be computed."""
    first, second = _computed(left), _computed(right)
    if first is None or second is None:
        return None
    if modulus:
        return (first - second) % modulus == 0
    digits = _digits(left, right)
    return abs(first - second) <= (Fraction(0) if digits is None else Fraction(1, 2 * 10**digits))


def _has_operation(side: str) -> bool:
    return re.search(rf"[\d)]\s*{_OPERATOR}", side) is not None


def _computed(side: str) -> Fraction | None:
    """What a side comes to; None where it is no sum of numbers."""
    try:
        plain = re.sub(r"(?<![\d.])0+(?=\d)", "", side.translate(_SPELLED).strip())  # Python reads no 007
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left), _value(right))
    raise ValueError("is no sum of numbers")


def _digits(*sides: str) -> int | None:
    """Decimals of the side that is a plain number with decimals, and so may be rounded; None where neither is."""
    found = [
        len(side.rpartition(".")[2]) for side in sides if re.fullmatch(rf"[( ]*{_NUMBER}[) ]*", side) and "." in side
    ]
    return found[0] if len(found) == 1 else None
