"""Twenty programs that mean harm, and those that forge a result: all wrong, and the machine is as before.

They run only where harmless probes have shown that every wall holds, and whatever multiplies stops itself at 200.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from burnish.core.errors import EngineError
from burnish.verify import Check, Code, Limits, Sandbox, Wall, sandbox, walls

LIMITS = Limits(
    seconds=8.0,
    cpu_seconds=1,
    memory_bytes=256 << 20,
    processes=4,
    file_bytes=1 << 20,
    directory_bytes=4 << 20,
    output_bytes=50_000,
)
BROKEN = [wall for wall in walls() if not wall.holds]
needs_walls = pytest.mark.skipif(bool(BROKEN), reason=f"no isolation here: {BROKEN[:1]}")

TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
PROBLEM = {"question": "square", "prompt": "def square(x):\n", "entry_point": "square", "test": TEST}
WRONG = "def square(x): return 0\n"

HOSTILE = {
    "fork bomb": "import os\nmade = 0\nwhile made < 200:\n    made += 1\n    os.fork()\n",
    "threads": "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(60,)).start()\n",
    "memory": "kept = []\nfor _ in range(200): kept.append(bytearray(50_000_000))\n",
    "memory of children": "import os\nfor _ in range(200):\n    if os.fork() == 0: b = bytearray(500_000_000)\n",
    "one large file": "with open('f', 'wb') as f:\n    for _ in range(200): f.write(bytes(10_000_000))\n",
    "many files": "for n in range(20_000): open(f'f{n}', 'wb').write(bytes(1000))\n",
    "flood of output": "for _ in range(200): print('x' * 1_000_000)\n",
    "flood of errors": "import sys\nfor _ in range(200): sys.stderr.write('x' * 1_000_000)\n",
    "end before the tests": "import os\nos._exit(0)\n",
    "end inside the test": "import os\ndef square(x): os._exit(0)\n",
    "system exit": "def square(x): raise SystemExit(0)\n",
    "patched assert": "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\n" + WRONG,
    "always equal": "class Yes(int):\n    def __eq__(self, other): return True\ndef square(x): return Yes(0)\n",
    "equal object": "class Yes:\n    def __eq__(self, other): return True\ndef square(x): return Yes()\n",
    "printed verdict": WRONG + "print('right')\nimport sys; print('right', file=sys.stderr)\n",
    "written verdict": "import os\nfor d in range(3, 64):\n    try: os.write(d, b'right')\n    except OSError: pass\n"
    + WRONG,
    "patched judge": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('judged', 'check', 'candidate'): setattr(m, n, lambda *a: 'right')\n" + WRONG,
    "sleeping child": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n" + WRONG,
    "link out": "import os\nos.symlink('/etc/passwd', 'out')\nprint(open('out').read())\n",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 2)\n",
    "endless loop": "while True: pass\n",
    "killing everybody": "import os, signal\nos.kill(-1, signal.SIGTERM)\nos.kill(1, signal.SIGKILL)\n" + WRONG,
    "ignored signals": "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass\n",
}


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(LIMITS)


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_wrong(code: Code, name: str):
    assert code.grade(HOSTILE[name], PROBLEM) == 0.0


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
