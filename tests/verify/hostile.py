"""Programs that mean harm, and those that forge a result. Whatever multiplies stops itself at 200."""

from __future__ import annotations

from pathlib import Path

from burnish.verify import Limits

LIMITS = Limits(
    seconds=8.0,
    cpu_seconds=1,
    memory_bytes=256 << 20,
    processes=4,
    file_bytes=1 << 20,
    directory_bytes=4 << 20,
    output_bytes=50_000,
)
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
    "sparse file": "with open('f', 'wb') as f:\n    f.seek(10 << 30)\n    f.write(b'x')\n",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    "all descriptors": "import os\nkept = [os.dup(1) for _ in range(10_000)]\n",
    "closed descriptors": WRONG + "import os\nos.closerange(0, 64)\n",
    # the first answer counts, so the one that is wrong must come first
    "fork that answers twice": "import os, time\ndef square(x):\n    if os.fork():\n        time.sleep(60)\n"
    "        return x * x\n    return 0\n",
    "error that lies": "class Fine(Exception):\n    def __str__(self): return 'right'\ndef square(x): raise Fine\n",
    "endless answer": "import os\ndef square(x):\n    for d in range(3, 64):\n        try:\n"
    "            for _ in range(2000): os.write(d, b'1' * 1_000_000)\n        except OSError: pass\n",
    "deep answer": "import os\ndef square(x):\n    for d in range(3, 64):\n        try:\n"
    "            os.write(d, b'[' * 50_000 + b'\\n')\n        except OSError: pass\n",
    "huge number": "def square(x): return 10 ** 10 ** 7\n",
    "answers before questions": WRONG + "import os\nfor d in range(3, 64):\n"
    "    try: os.write(d, b'{\"value\": 0}\\n' * 100)\n    except OSError: pass\n",
}


def harmful(canary: Path) -> list[str]:
    """Answers that make a file where something evaluates them."""
    opened = f"open({str(canary)!r}, 'w')"
    return [
        opened,
        f"[{opened}]",
        f"__import__('pathlib').Path({str(canary)!r}).touch()",
        f"sin({opened!r})",
        f"x + {opened!r}",
        f"exec({opened!r})",
        f"Symbol('x').__class__ and {opened}",
        f"[c for c in ().__class__.__base__.__subclasses__()] and {opened}",
        f"24 if {opened} else 24",
        f"(lambda: {opened})()",
    ]
