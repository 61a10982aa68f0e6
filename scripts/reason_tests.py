"""What `make test-reason` runs, and its outcome as one file: python scripts/reason_tests.py [--out FILE] [PART ...]

The parts are the long tests, the tests that need a vLLM, and the demonstration against it. A part that is named alone
is run again and its outcome put in the place of the older one. Ends with an error where anything has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "long tests": ["-m", "pytest", "tests/reason", "tests/verify", "tests/generate", "-q", "-m", "long or slow"],
    "tests against vLLM": ["-m", "pytest", "tests/engines/test_vllm_server.py", "-q"],
    "demonstration against vLLM": ["scripts/reason_demo.py", "vllm"],
}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(map(repr, PARTS))}; all")
    command.add_argument("--out", type=Path, default=ROOT / "runs/test-reason.json", help="the outcome")
    options = command.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        command.error(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(map(repr, PARTS))}")
    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for part in options.parts or PARTS:
        found[part] = outcome(PARTS[part])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {'passed' if found[part]['passed'] else 'FAILED'}", flush=True)
    if not all(one["passed"] for one in found.values()):
        sys.exit(1)


def outcome(arguments: list[str]) -> dict[str, Any]:
    """One command: whether it ended well, its processor seconds, and for tests what every one of them gave."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        tests = "pytest" in arguments
        more = [f"--junitxml={report}", "-o", "junit_family=xunit1"] if tests else []
        ended = subprocess.run([sys.executable, *arguments, *more], cwd=ROOT, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found["passed"] = ended.returncode == 0
        found["wall_seconds"] = round(time.monotonic() - began)
        found["processor_seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if tests and report.is_file():
            found["tests"] = cases(report)
    return found


def cases(report: Path) -> dict[str, Any]:
    """Of every test passed, skipped or failed, with the counts that it recorded."""
    found: dict[str, Any] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        said = next((word for word in ("failure", "error", "skipped") if case.find(word) is not None), "passed")
        counts = {one.get("name", ""): one.get("value") for one in case.iter("property")}
        found[f"{case.get('classname')}.{case.get('name')}"] = {"outcome": said, **counts}
    return found


if __name__ == "__main__":
    main()
