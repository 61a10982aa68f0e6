"""Holds the evidence together: `python benchmarks/check.py [--write]`, run by `make lint`.

Every `benchmarks/results/NAME.json` was written by `benchmarks/NAME.py`, which has
`tables(results) -> {table: markdown}`. A page of the docs, or the README, shows such a table between two comments:

    <!-- table: NAME.TABLE -->
    ...
    <!-- end -->

It may also have `pictures(results) -> {picture: svg}`, kept as `docs/pictures/NAME.PICTURE.svg`.

The check fails when a table or picture is not what its JSON makes, when a results file says that a slice was used for
tuning and for reporting alike, keeps bounds that are not what its windows give, or lacks machine, date or versions.
`--write` writes tables and pictures anew.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (?P<name>[\w-]+)\.(?P<table>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
REQUIRED = ("machine", "date", "versions")


def main(write: bool) -> int:
    problems = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        problems += check_results(path)
        problems += check_pictures(path, write=write)
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
    problems += [f"{name}: {place} has other bounds than its windows give" for place in other_bounds(results)]
    problems += [f"{name}: slice {digest[:12]} was used for tuning and for reporting" for digest in sorted(shared)]
    return problems


def other_bounds(results: Any, place: str = "") -> list[str]:
    """Where values of windows are kept beside bounds that the product's one rule does not make of them."""
    if not isinstance(results, dict):
        return []
    found = []
    if "sequences" in results and "metrics" in results:
        from burnish.evaluate.measure import quality_metrics

        itself = not any(results["sequences"].get("kl", [1.0]))  # a model beside itself differs nowhere, exactly
        for metric, made in quality_metrics(results["sequences"], own_reference=itself).items():
            kept = results["metrics"][metric]
            if any(not math.isclose(kept[end], made[end], rel_tol=1e-9) for end in ("value", "low", "high")):
                found.append(f"{place}{metric}")
    return found + [other for key, inner in results.items() for other in other_bounds(inner, f"{place}{key}/")]


def check_pictures(path: Path, *, write: bool) -> list[str]:
    name, problems = path.stem, []
    module = load(name)
    if module is None or not hasattr(module, "pictures"):
        return []
    for picture, made in module.pictures(json.loads(path.read_text(encoding="utf-8"))).items():
        place = ROOT / "docs" / "pictures" / f"{name}.{picture}.svg"
        if write:
            place.parent.mkdir(exist_ok=True)
            place.write_text(made, encoding="utf-8")
        elif not place.is_file() or place.read_text(encoding="utf-8") != made:
            problems.append(f"{place.relative_to(ROOT)}: is not what the results say; run benchmarks/check.py --write")
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
    results = ROOT / "benchmarks" / "results" / f"{name}.json"
    module = load(name)
    if module is None or not results.is_file():
        return None
    return module.tables(json.loads(results.read_text(encoding="utf-8"))).get(table)


def load(name: str) -> Any:
    """The module of a benchmark, None where there is none."""
    script = ROOT / "benchmarks" / f"{name}.py"
    if not script.is_file():
        return None
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
