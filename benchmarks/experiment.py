"""What every benchmark shares: one experiment from its question to its table.

A benchmark states a question, keeps the data it chooses settings on apart from the data it reports, gives every side,
the baseline included, the same search, runs several seeds or takes turns, and quotes a paired interval by the product's
own rule (`burnish.core.statistics`). `record` writes the answer with machine, date and versions to
`benchmarks/results/NAME.json`, and `tables` of the benchmark makes the docs' tables of that file (`check.py`).

Every benchmark is called as `python benchmarks/NAME.py [--out FILE] [--smoke]`: --smoke runs its smallest settings,
which answer nothing, and needs --out.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:  # a peer's side of a benchmark records its numbers in an environment without burnish
    from burnish.core.statistics import Interval

Option = TypeVar("Option")

RESULTS = Path(__file__).resolve().parent / "results"
SMOKE = "--smoke" in sys.argv
"""Whether the smallest settings are asked for; constants of a benchmark may depend on it."""
LIBRARIES = ("torch", "transformers", "numpy", "scipy", "burnish")


# -- the command line ----------------------------------------------------------------------------------------------


class Command(argparse.ArgumentParser):
    """Of a benchmark: its first lines are its help, and --out and --smoke are always there."""

    def __init__(self, script: str, text: str | None) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        default = RESULTS / f"{Path(script).stem}.json"
        self.add_argument("--out", type=Path, default=default, help="the results file to write or to add to")
        self.add_argument("--smoke", action="store_true", help="the smallest settings; answers nothing")
        self.results = default

    def keeps(self, what: str = "where what has been measured is kept") -> None:
        """Takes --work and --minutes, for `Kept`: the benchmark can be stopped, and goes on when it is called again."""
        self.add_argument("--work", type=Path, required=True, help=what)
        self.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so long")

    def read(self) -> argparse.Namespace:
        found = self.parse_args()
        if found.smoke and found.out.resolve() == self.results:
            self.error("--smoke answers nothing; give it a file of its own with --out")
        return found


# -- data ----------------------------------------------------------------------------------------------------------


def digest(content: Any) -> str:
    """sha256 of a tensor's or array's bytes, or of a text."""
    raw = content.encode() if isinstance(content, str) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(raw).hexdigest()


# -- runs ----------------------------------------------------------------------------------------------------------


class Kept:
    """What has been measured, one file for each name, so that a benchmark can be stopped at any time."""

    def __init__(self, work: Path) -> None:
        self.directory = work / "measured"
        self.directory.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        return self.directory / (name.replace(", ", "-").replace(" ", "_") + ".json")

    def read(self, name: str) -> dict[str, Any]:
        return json.loads(self.file(name).read_text())

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def keep(self, name: str, content: dict[str, Any]) -> None:
        part = self.file(name).with_suffix(f".{os.getpid()}.partial")  # several processes may share the work
        part.write_text(json.dumps(content))
        part.replace(self.file(name))

    def run(
        self, names: Callable[[], Iterable[str]], measure: Callable[[str], dict[str, Any]], minutes: float = 1e9
    ) -> bool:
        """Measures what is not there yet, asking `names` anew each time; whether all of it is there at the end."""
        end = time.monotonic() + 60 * minutes
        while name := next((name for name in names() if not self.has(name)), ""):
            if time.monotonic() > end:
                print(f"stopped before {name}", file=sys.stderr)
                return False
            started = time.process_time()
            found = measure(name)  # which may say itself what its seconds are
            self.keep(name, {"cpu_seconds": round(time.process_time() - started, 1)} | found)
            print(f"{name}: {self.read(name)['cpu_seconds']} s", file=sys.stderr, flush=True)
        return True


def texts_of(name: str, data: Path | None) -> list[str]:
    """WikiText-2 test, or one of the texts that the package lacks, which are in `data`."""
    from burnish.data import read_texts

    if name not in (files := {"movies": "movie_reviews.jsonl.gz", "speeches": "us_speeches.jsonl.gz"}):
        return read_texts("wikitext2-test")
    if data is None:
        raise SystemExit(f"--data DIR: where {files[name]} is")
    return read_texts(data / files[name])


def spread_windows(tokenizer: Any, texts: Any, length: int, number: int, *, max_chars: int = 400_000) -> Any:
    """(number, length) token ids, spread evenly over the beginning of the texts."""
    import torch

    from burnish.data import windows

    every = windows(tokenizer, texts, length, max_chars=max_chars)
    return every[torch.linspace(0, len(every) - 1, number).round().long()]


def search(
    options: Iterable[Option], score: Callable[[Option], float], *, largest: bool = False
) -> tuple[Option, list[dict[str, Any]]]:
    """The option with the smallest (or largest) score on the tuning slice, and every option tried with its score."""
    tried = [(option, score(option)) for option in options]
    best = (max if largest else min)(tried, key=lambda pair: pair[1])[0]
    return best, [{"settings": option, "score": value} for option, value in tried]


def turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every side in every round; who is first in a round is last in the next, and round 0 warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            started = clock()
            sides[name]()
            if number:
                seconds[name].append(clock() - started)
    return seconds


# -- what is quoted ------------------------------------------------------------------------------------------------


def ratio(ours: Any, theirs: Any) -> Interval:
    """Σ ours / Σ theirs over rounds, windows or seeds, for what is positive, such as seconds or divergence."""
    from burnish.core.statistics import interval

    return interval(np.asarray(ours), np.asarray(theirs), scale="log")


def over_seeds(values: Any) -> dict[str, float]:
    """Mean and interval over seeds, as kept in results files."""
    from burnish.core.statistics import interval

    found = interval(np.asarray(values, dtype=float))
    return {"mean": found.value, "low": found.low, "high": found.high, "rule": "Student's t"}


RULES = {"Student's t": "95 %", "percentile bootstrap": "95 %, percentile bootstrap"}


def rule(kept: Mapping[str, Any]) -> str:
    """What the title of a table says of a kept interval; where its values were not kept, it has an older rule."""
    return RULES[kept["rule"]]


def cell(found: Interval | Mapping[str, float], form: str = ".3f", brackets: str = "()") -> str:
    """`1.00 (0.95 to 1.05)`."""
    if isinstance(found, Mapping):
        value, low, high = (found[key] for key in ("mean", "low", "high"))
    else:
        value, low, high = found.value, found.low, found.high
    return f"{value:{form}} {brackets[0]}{low:{form}} to {high:{form}}{brackets[1]}"


def table(header: str | Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; a header is a line `a | b | c`, and a column whose title ends with ':' is set to the right."""
    titles = header.split(" | ") if isinstance(header, str) else list(header)
    lines = [[title.removesuffix(":") for title in titles], ["---:" if t.endswith(":") else "---" for t in titles]]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [*lines, *rows])


# -- the record ----------------------------------------------------------------------------------------------------


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(note: str = "") -> str:
    """What computes, as a person would name it."""
    return ", ".join([processor(), platform.system(), f"{os.cpu_count()} cores", *([note] if note else [])])


def versions(*others: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *others):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def results(out: Path, empty: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The content of a results file, written back at the end; processes that add to one file take turns."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = json.loads(file.read() or json.dumps(empty or {}))
        yield content
        file.truncate(0)
        file.write(json.dumps(content, indent=1, default=float) + "\n")


SHARED = "CPU seconds, shared with other work"


def record(
    out: Path,
    text: str | None,
    content: dict[str, Any],
    *,
    note: str = SHARED,
    libraries: Sequence[str] = (),
) -> None:
    """Adds to a results file what was measured, with its question, machine, date and versions."""
    with results(out) as known:
        known["question"] = " ".join((text or "").split("\n\n")[0].split())
        known.setdefault("slices", {"tuning": [], "reporting": []})
        known |= {"machine": machine(note), "date": date.today().isoformat(), "versions": versions(*libraries)}
        known |= content


class Measuring(Protocol):
    """A benchmark that keeps what it measures by name: a `Kept` that knows what there is to measure."""

    def names(self) -> Iterable[str]: ...

    def measure(self, name: str) -> dict[str, Any]: ...

    def run(
        self, names: Callable[[], Iterable[str]], measure: Callable[[str], dict[str, Any]], minutes: float = ...
    ) -> bool: ...


def answer(
    bench: Measuring,
    options: argparse.Namespace,
    text: str | None,
    content: Callable[[], dict[str, Any]],
    tables: Callable[[dict[str, Any]], dict[str, str]],
    *,
    note: str = SHARED,
    libraries: Sequence[str] = (),
) -> None:
    """Measures what is not there yet; once all of it is, records the content and prints its tables.

    Args:
        bench: of the benchmark.
        options: as its `Command` read them, with `keeps`.
        text: its first lines, of which the first is the question.
        content: of the results file.
        tables: of that.
        note: what its seconds are.
        libraries: whose versions are told besides.
    """
    if bench.run(bench.names, bench.measure, options.minutes):
        found = content()
        record(options.out, text, found, note=note, libraries=libraries)
        for made in tables(found).values():
            print(made)
