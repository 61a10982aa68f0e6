"""Programs that mean harm, and those that forge a result: all wrong, and the machine is as before.

They run only where harmless probes have shown that every wall holds, and whatever multiplies stops itself at 200.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hostile import HOSTILE, LIMITS, PROBLEM

from burnish.core.errors import EngineError
from burnish.verify import Check, Code, Sandbox, Wall, sandbox, walls

BROKEN = [wall for wall in walls() if not wall.holds]
needs_walls = pytest.mark.skipif(bool(BROKEN), reason=f"no isolation here: {BROKEN[:1]}")


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(LIMITS)


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_wrong(code: Code, name: str):
    assert code.grade(HOSTILE[name], PROBLEM) == 0.0


def test_the_newest_long_run_found_nothing():
    """`tests/verify/trials.py`; run it again when programs are added."""
    record = json.loads((Path(__file__).parent / "tried.json").read_text())
    assert record["solutions_right"] == record["solutions"] == 164
    assert record["mutants_wrong"] == record["mutants"] == 164
    assert record["hostile_wrong"] == record["hostile"] == len(HOSTILE)
    assert record["left_processes"] == record["left_directories"] == 0


@needs_walls
@pytest.mark.parametrize("name", ["end before the tests", "patched assert", "always equal", "written verdict"])
def test_a_forged_result_is_wrong(code: Code, name: str):
    said = code.explain(HOSTILE[name], PROBLEM)
    assert said.startswith("wrong: "), said


@needs_walls
def test_the_right_program_is_right_and_leaves_nothing(code: Code):
    assert code.explain("    return x * x\n", PROBLEM) == "right"
    assert code.explain("def square(x):\n    return x ** 2\n", PROBLEM) == "right"
    assert list(Path(tempfile.gettempdir()).glob(f"burnish-jail-{os.getpid()}-*")) == []


@needs_walls
def test_a_script_reads_and_writes_and_its_status_is_told():
    sandbox = Sandbox(LIMITS)
    outcome = sandbox.run("import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit(3)", stdin="1\n2\n")
    assert (outcome.end, outcome.code, outcome.output, outcome.verdict) == ("done", 3, "3\n", "")
    assert sandbox.run("import os; os.kill(os.getpid(), 15)").code == 128 + 15


@needs_walls
def test_plain_data_crosses_the_wall_as_it_is():
    value = "[None, True, 2**70, 1.5, float('inf'), 'ä', b'x', (1, (2,)), {3: {'a'}}, frozenset([1]), 1j]"
    check = Check("same", f"def check(f):\n    v = {value}\n    assert f(v) == v and repr(f(v)) == repr(v)")
    assert Sandbox(LIMITS).run("def same(x): return x", check=check).verdict == "right"


@needs_walls
def test_an_error_of_the_program_reaches_the_test():
    check = Check("f", "def check(f):\n    try: f()\n    except ValueError: return\n    assert False")
    assert Sandbox(LIMITS).run("def f(): raise ValueError('no')", check=check).verdict == "right"
    assert (
        Sandbox(LIMITS).run("def f(): raise TypeError('no')", check=check).verdict == "wrong: TypeError: TypeError: no"
    )


def test_without_isolation_code_is_refused_unless_the_caller_insists(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "walls", lambda: (Wall("network", False, "connected"),))
    with pytest.raises(EngineError, match=r"cannot be isolated on this machine: network \(connected\).*--unsafe-code"):
        Sandbox()
    assert Sandbox(unsafe=True).run("print(1)").output == "1\n"
    assert Code(unsafe=True).grade("    return x * x\n", PROBLEM) == 1.0
