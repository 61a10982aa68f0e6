"""Holds the evidence together: `python benchmarks/check.py [--write]`, run by `make lint`.

Every `benchmarks/results/NAME.json` was written by `benchmarks/NAME.py`, which has
`tables(results) -> {table: markdown}`. A page of the docs, or the README, shows such a table between two comments:

    <!-- table: NAME.TABLE -->
    ...
    <!-- end -->

The check fails when a table is not what its JSON makes, when a results file says that a slice was used for tuning and
for reporting alike, or when it lacks machine, date or versions. `--write` writes the tables anew.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (?P<name>[\w-]+)\.(?P<table>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
REQUIRED = ("machine", "date", "versions")


def main(write: bool) -> int:
    problems = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        problems += check_results(path)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        problems += check_page(page, write=write)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check_results(path: Path) -> list[str]:
    name = path.relative_to(ROOT)
    results = json.loads(path.read_text(encoding="utf-8"))
    problems = [f"{name}: has no {key!r}" for key in REQUIRED if key not in results]
    slices = results.get("slices", {})
    shared = set(slices.get("tuning", [])) & set(slices.get("reporting", []))
    problems += [f"{name}: slice {digest[:12]} was used for tuning and for reporting" for digest in sorted(shared)]
    return problems


def check_page(page: Path, *, write: bool) -> list[str]:
    text = page.read_text(encoding="utf-8")
    problems = []

    def made(match: re.Match[str]) -> str:
        table = render(match["name"], match["table"])
        if table is None:
            problems.append(f"{page.relative_to(ROOT)}: there is no table {match['name']}.{match['table']}")
            return match[0]
        if match["body"].strip() != table.strip() and not write:
            problems.append(
                f"{page.relative_to(ROOT)}: table {match['name']}.{match['table']} is not what the results say; "
                "run benchmarks/check.py --write"
            )
        return f"{match[1]}{table.strip()}\n{match[5]}"

    new = TABLE.sub(made, text)
    if write and new != text:
        page.write_text(new, encoding="utf-8")
    return problems


def render(name: str, table: str) -> str | None:
    """The markdown that a benchmark makes of its committed results."""
    script = ROOT / "benchmarks" / f"{name}.py"
    results = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not script.is_file() or not results.is_file():
        return None
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.tables(json.loads(results.read_text(encoding="utf-8"))).get(table)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
