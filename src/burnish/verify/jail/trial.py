"""A strange program on trial: run as a script, or asked for the values of a function by a judge.

Questions and answers are lines of JSON with plain data alone: None, bool, int, float, complex, str, bytes, list, tuple,
set, frozenset, dict. An object with an `__eq__` that always says yes cannot cross.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from typing import Any

UNITS = (list, tuple, set, frozenset)


def run(source: str) -> None:
    """As `python program.py` runs it."""
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})


def answer_calls(source: str, name: str, calls: int, answers: int) -> None:
    """Defines what the program defines, then answers calls of one of its functions, or of `Solution().name`."""
    reading, writing = os.fdopen(calls), os.fdopen(answers, "w")
    namespace: dict[str, Any] = {"__name__": "program"}
    function: Any = None
    trouble = None
    try:
        exec(compile(source, "program.py", "exec"), namespace)
        holder = namespace["Solution"]() if "Solution" in namespace else None
        function = getattr(holder, name) if hasattr(holder, name) else namespace[name]
    except Exception as error:  # noqa: BLE001 (of a strange program)
        trouble = failure(error)
    sys.set_int_max_str_digits(0)
    for line in reading:
        reply = trouble
        if reply is None:
            try:
                reply = {"value": packed(function(*unpacked(json.loads(line))))}
            except Exception as error:  # noqa: BLE001
                reply = failure(error)
        writing.write(json.dumps(reply) + "\n")
        writing.flush()


def failure(error: BaseException) -> dict[str, str]:
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return {"error": kind, "message": f"{type(error).__name__}: {error}"[:300]}


def judged(check: dict[str, Any], asked: int, answered: int) -> str:
    """Runs the tests against the program behind the pipes: "right", or what was wrong.

    `check` has `name` (the function), `before` (definitions that the tests use), `test` (defines `check(candidate)`)
    and `data`, which the tests see as `DATA`.
    """
    asking, reading = os.fdopen(asked, "w"), os.fdopen(answered)
    sys.set_int_max_str_digits(0)

    def candidate(*arguments: Any) -> Any:
        try:
            asking.write(json.dumps(packed(arguments)) + "\n")
            asking.flush()
        except BrokenPipeError:
            raise EOFError("the program has ended") from None
        line = reading.readline()
        if not line.endswith("\n"):
            raise EOFError("the program has ended")
        reply = json.loads(line)
        if "error" in reply:
            raise error_named(reply["error"], str(reply.get("message")))
        return unpacked(reply["value"])

    namespace: dict[str, Any] = {"__name__": "judge", "DATA": check["data"]}
    try:
        exec(compile(check["before"], "before.py", "exec"), namespace)
        namespace[check["name"]] = candidate
        exec(compile(check["test"], "test.py", "exec"), namespace)
        namespace["check"](candidate)
    except Exception as error:  # noqa: BLE001 (of the tests, or of what the program answered)
        return f"wrong: {type(error).__name__}: {error}"
    return "right"


def error_named(name: object, message: str) -> Exception:
    """The error of the language that has this name, or RuntimeError where one message does not make it."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass
    return RuntimeError(message)


def packed(value: Any) -> Any:
    """Plain data as JSON; a container is an object that names its kind."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    for kind in UNITS:
        if isinstance(value, kind):
            return {kind.__name__: [packed(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(part)] for key, part in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a {type(value).__name__} is no plain data")


def unpacked(value: Any) -> Any:
    """The plain data that `packed` wrote; anything else is an error."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a bare list is not packed data")
        return value
    ((name, content),) = value.items()
    for kind in UNITS:
        if name == kind.__name__:
            return kind(unpacked(part) for part in content)
    if name == "dict":
        return {unpacked(key): unpacked(part) for key, part in content}
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    raise TypeError(f"{name} is not packed data")
