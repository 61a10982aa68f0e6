"""Do the walls of the sandbox hold here? Harmless programs knock at each, with small limits, and stop by themselves."""

from __future__ import annotations

import functools
import json
import socket
import tempfile
from dataclasses import dataclass, replace
from typing import Any

from burnish.verify.walled import Check, Execution, Limits, run

SMALL = Limits(
    seconds=30.0,
    cpu_seconds=10,
    memory_bytes=256 << 20,
    processes=4,
    file_bytes=1 << 20,
    directory_bytes=4 << 20,
    output_bytes=20_000,
)


@dataclass(frozen=True)
class Wall:
    """One thing that a program must not be able to do.

    Attributes:
        name: of what is bounded.
        holds: whether the probe could not do it.
        said: what the probe saw.
    """

    name: str
    holds: bool
    said: str


@functools.cache
def walls() -> tuple[Wall, ...]:
    """Every wall, tried once in the life of this process."""
    with tempfile.NamedTemporaryFile() as canary, socket.create_server(("127.0.0.1", 0)) as server:
        knocking = KNOCK.format(canary=canary.name, port=server.getsockname()[1], limits=SMALL)
        outcome = run(SMALL, knocking, isolated=True)
    try:
        seen: dict[str, Any] = json.loads(outcome.output)
    except ValueError:
        said = outcome.errors.strip().splitlines()[-1:] or [f"the probe ended with {outcome.end}, {outcome.code}"]
        return (Wall("isolation", False, said[0]),)
    found = [Wall(name, bool(holds), str(said)) for name, (holds, said) in seen.items()]
    cpu = run(replace(SMALL, cpu_seconds=1), "while True: pass", isolated=True)
    found.append(Wall("processor time", cpu.end == "done" and cpu.code in (137, 152), _ending(cpu)))
    loud = run(SMALL, "print('x' * 100_000)", isolated=True)
    found.append(Wall("output", loud.end == "output", _ending(loud)))
    late = run(replace(SMALL, seconds=0.5), "import time; time.sleep(60)", isolated=True)
    found.append(Wall("time on the wall", late.end == "time", _ending(late)))
    left = run(SMALL, "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(60)", isolated=True)
    found.append(Wall("what is left behind", left.end == "done", _ending(left)))
    forged = run(SMALL, FORGERY, check=Check("f", "def check(f): assert f() == 1"), isolated=True)
    found.append(Wall("the judge", forged.verdict != "right", forged.verdict or "silent"))
    return tuple(found)


def _ending(outcome: Execution) -> str:
    return f"{outcome.end}, exit status {outcome.code}"


FORGERY = """
import os
def f(): return 2
for descriptor in range(3, 64):
    try: os.write(descriptor, b"right")
    except OSError: pass
"""

KNOCK = """
import json, os, resource, signal, socket
seen = {{}}
def knock(name, allowed, work):
    try: result = work()
    except (OSError, MemoryError) as error: seen[name] = True, type(error).__name__ + ": " + str(error)
    else: seen[name] = allowed(result), repr(result)[:200]
never = lambda result: False

def fork():
    children = []
    try:
        while len(children) < {limits.processes} + 8:
            child = os.fork()
            if child == 0: signal.pause(); os._exit(0)
            children.append(child)
    except BlockingIOError: pass
    for child in children: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
    return len(children)
knock("processes", lambda count: count < {limits.processes}, fork)
knock("memory", never, lambda: len(bytearray({limits.memory_bytes})))
def file():
    with open("large", "wb") as file: return file.write(bytes(2 * {limits.file_bytes}))
knock("size of a file", never, file)
def files():
    for number in range(8):
        with open("part%d" % number, "wb") as file: file.write(bytes({limits.file_bytes}))
    return os.listdir()
knock("size of the directory", never, files)
def connect():
    with socket.socket() as s: s.settimeout(2); s.connect(("127.0.0.1", {port})); return "connected"
knock("network", never, connect)
knock("files of this machine", never, lambda: os.stat("{canary}"))
knock("processes of this machine", lambda names: names is None, lambda: os.listdir("/proc"))
knock("writing outside", never, lambda: open("/etc-of-mine", "w") and open(os.__file__, "a"))
knock("environment", lambda names: set(names) <= {{"LC_CTYPE"}}, lambda: list(os.environ))
knock("user", lambda user: user != 0, os.geteuid)
knock("becoming root", never, lambda: os.setuid(0))
knock("new namespaces", lambda result: result != 0, lambda: __import__("ctypes").CDLL(None).unshare(1 << 28))
print(json.dumps(seen))
"""
