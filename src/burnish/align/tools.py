"""Tools that a model may call, in the OpenAI format: a calculator, and Python behind the walls of the sandbox.

    CALCULATOR.schema                        what a chat template is given under `tools`
    CALCULATOR({"expression": "47*86+19"})   "4061"

What is wrong with a call is said in the answer, so that the model can read it; a tool that fails by itself raises.
Where none comes in time, that is said; the thread that waits for it is left behind.
"""

from __future__ import annotations

import ast
import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from burnish.verify.sandbox import Sandbox
from burnish.verify.walled import Limits

FAILED = "error: "
"""How the answer to a call that failed begins."""
SHOWN = 2000
"""Characters of an answer that a model is shown."""
LARGEST_BITS = 4096
"""Of a number that the calculator works with."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name, description: as the model reads them.
        parameters: {name: what it is}; all of them are texts and must be given.
        function: takes them by name and returns a text; a ValueError is told to the model.
        seconds: that an answer may take.
        ready: raises where the tool cannot work on this machine.
    """

    name: str
    description: str
    parameters: Mapping[str, str]
    function: Callable[..., str]
    seconds: float = 10.0
    ready: Callable[[], object] = object

    @property
    def schema(self) -> dict[str, Any]:
        """In the OpenAI format."""
        properties = {name: {"type": "string", "description": text} for name, text in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        about = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": about}

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        """The answer, or what is wrong."""
        if set(arguments) != set(self.parameters) or not all(isinstance(one, str) for one in arguments.values()):
            return f"{FAILED}{self.name} takes {', '.join(self.parameters)}, as text"
        said: list[str | Exception] = []

        def ask() -> None:
            try:
                said.append(self.function(**arguments))
            except ValueError as error:
                said.append(f"{FAILED}{error}")
            except Exception as error:  # noqa: BLE001 - of the tool itself, and raised where it was called
                said.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(self.seconds)
        answer = said[0] if said else f"{FAILED}no answer within {self.seconds:g} seconds"
        if isinstance(answer, Exception):
            raise answer
        return answer if len(answer) <= SHOWN else answer[:SHOWN] + " ..."


# -- the calculator ----------------------------------------------------------------------------------------------------

_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(expression: str) -> str:
    """An expression of numbers, + - * / and brackets, exactly; what is no whole number is rounded to 10 digits.

    Raises:
        ValueError: it is something else, divides by zero, or is too large.
    """
    if len(expression) > SHOWN:
        raise ValueError("the expression is too long")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("that is no expression") from None
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.10g}"
    except OverflowError:
        raise ValueError("the number is too large") from None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            found = Fraction(str(number)) if number == number and abs(number) != float("inf") else None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            found = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            found = _value(operand)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            found = _OPERATIONS[type(operation)](_value(left), _value(right))
        case _:
            found = None
    if found is None:
        raise ValueError("only numbers, + - * / and brackets are known")
    if max(found.numerator.bit_length(), found.denominator.bit_length()) > LARGEST_BITS:
        raise ValueError("the number is too large")
    return found


CALCULATOR = Tool(
    "calculator",
    "Works out an expression of numbers, + - * / and brackets.",
    {"expression": "such as 3*(4+5)"},
    calculate,
)


# -- Python ------------------------------------------------------------------------------------------------------------


@cache
def _sandbox() -> Sandbox:
    return Sandbox(Limits(seconds=8.0, cpu_seconds=8))


def run_python(code: str) -> str:
    """What a program prints, in the sandbox.

    Raises:
        ValueError: it fails or does not end.
        EngineError: this machine cannot isolate it.
    """
    ended = _sandbox().run(code)
    if ended.end != "done":
        raise ValueError("the program took too long" if ended.end == "time" else "the program wrote too much")
    if ended.code:
        raise ValueError((ended.errors.strip().splitlines() or [f"exit status {ended.code}"])[-1])
    return ended.output.rstrip("\n")


PYTHON = Tool(
    "python",
    "Runs a Python program and gives back what it prints.",
    {"code": "the program"},
    run_python,
    ready=_sandbox,
)
TOOLS = {one.name: one for one in (CALCULATOR, PYTHON)}
"""By name."""
