"""What each test costs, so that long ones start first and the most expensive are named in every run.

Cost is processor time, of a test and of every process it starts, because wall time on a busy machine says little.
`pytest --record-costs` writes tests/costs.json; the collection is ordered by it, file by file, so that fixtures of a
file are made once and whoever has nothing left to do takes over what is cheap.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

COSTS = Path(__file__).resolve().parent / "costs.json"
"""{test: processor seconds} of tests that take half a second or more."""
WORTH_KNOWING = 0.5
NUM_SHOWN = 20
NAME = "processor seconds"
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Of a process, those it started, and those that ended and were waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS + sum(map(processor_seconds, children))


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def known_costs() -> dict[str, float]:
    return json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.is_file() else {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-costs", action="store_true", help=f"write what the tests that run cost to {COSTS.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    costs = known_costs()
    of_file: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        of_file[item.path] += costs.get(item.nodeid, 0.0)
    first = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (-of_file[item.path], first[item.path], -costs.get(item.nodeid, 0.0)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[BEFORE] = processor_seconds(os.getpid())
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "teardown":
        spent = processor_seconds(os.getpid()) - item.stash[BEFORE]
        report.user_properties.append((NAME, max(spent, 0.0)))  # less than nothing where a child was left to others
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    everything = [report for part in terminalreporter.stats.values() for report in part]
    reports = [report for report in everything if isinstance(report, pytest.TestReport)]
    found = {
        report.nodeid: value
        for report in reports
        for name, value in report.user_properties
        if name == NAME and report.when == "teardown"
    }
    if not found:
        return
    terminalreporter.section(f"{sum(found.values()):.0f} {NAME} in {len(found)} tests; the most expensive")
    for name in sorted(found, key=lambda name: -found[name])[:NUM_SHOWN]:
        terminalreporter.write_line(f"{found[name]:7.1f} s  {name}")
    if terminalreporter.config.getoption("--record-costs"):
        kept = {name: cost for name, cost in known_costs().items() if name not in found}
        kept |= {name: round(cost, 1) for name, cost in found.items() if cost >= WORTH_KNOWING}
        COSTS.write_text(json.dumps(dict(sorted(kept.items())), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


BEFORE = pytest.StashKey[float]()
