"""Writes what follows from the rows of `burnish.methods` and from the folders: `python scripts/derive.py [--check]`.

| file | what |
| --- | --- |
| pyproject.toml | the layers of the import contracts: every folder of the package has one |
| src/burnish/__init__.py | the public names, for type checkers |
| docs/methods/*.md | the head of the page of each method |
| README.md, docs/scope.md | the list of methods; the list of folders |
| docs/api.md | the list of stages |

In Markdown it stands between `<!-- derived: NAME -->` and `<!-- end -->`. A page that does not exist is written with
its title and its head. `--check` writes nothing, names the files that are not as they should be, and exits with 1.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "burnish"
sys.path.insert(0, str(PACKAGE.parent))

from burnish.methods import METHODS, VERBS, Method  # noqa: E402

OF_STAGES = ("align", "convert", "quantize", "slim", "steer")
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("report",),
    ("stages",),
    ("curriculum", "qat"),
    OF_STAGES,
    ("distill",),
    ("train",),
    ("calibrate", "evaluate", "generate", "optim", "serve"),
    ("reason",),
    ("arch", "data", "events", "export", "fetch", "linear_model", "verify"),
    ("core",),
    ("_version", "methods"),
)
"""From top to bottom. A folder that holds the stage of a row and is not named here stands beside `OF_STAGES`."""

Files = dict[Path, str]


def derived() -> Files:
    """Every file with something derived in it, as it should be."""
    files: Files = {}
    for edit, path in (
        (layers, ROOT / "pyproject.toml"),
        (public_names, PACKAGE / "__init__.py"),
        (readme, ROOT / "README.md"),
        (scope, ROOT / "docs" / "scope.md"),
        (stages, ROOT / "docs" / "api.md"),
    ):
        files[path] = edit(path.read_text(encoding="utf-8"))
    for method in METHODS:
        page = ROOT / "docs" / "methods" / f"{method.page}.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else f"# {method.name}\n"
        files[page] = with_head(text, method)
    return files


def layers(text: str) -> str:
    """pyproject.toml with a layer for every folder and module of the package."""
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    parts -= {"__init__"}
    with_stages = {verb.module.split(".")[1] for verb in VERBS.values()}
    known = {name for layer in LAYERS for name in layer}
    if homeless := sorted(parts - known - with_stages):
        sys.exit(f"burnish.{homeless[0]} has no layer; name it in LAYERS of scripts/derive.py")
    rows = []
    for layer in LAYERS:
        names = [*layer, *sorted(with_stages - known)] if layer == OF_STAGES else layer
        if here := [name for name in names if name in parts]:
            rows.append(f'    "{" | ".join(here)}",\n')
    return replaced(text, r"(?<=\nlayers = \[\n)(    .*\n)+(?=\])", "".join(rows))


def public_names(text: str) -> str:
    """The package's `__init__.py` with an import of every public name that only type checkers read."""
    names = {**dict(re.findall(r'^    "(\w+)": "([\w.]+)",$', text, re.MULTILINE))}
    names |= {verb.class_name: verb.module for verb in VERBS.values()}
    imports = sorted((module, name) for name, module in names.items())
    block = "".join(f"    from {module} import {name} as {name}\n" for module, name in imports)
    return replaced(text, r"(?<=  # written by scripts/derive\.py\n)(    .*\n)+", block)


def with_head(text: str, method: Method) -> str:
    """A page whose title is followed by what the row says."""
    source = re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", method.source)
    results = ", ".join(f"`{benchmark.name}`" for benchmark in method.benchmarks) or "none yet"
    head = table(
        ["method", "source", "command", "results (`benchmarks/results`, `make bench`)"],
        [[method.name, source, f"`{method.use}`", results]],
    )
    if "<!-- derived: head -->" not in text:
        title, newline, rest = text.partition("\n")
        text = f"{title}{newline}\n<!-- derived: head -->\n<!-- end -->\n{rest}"
    return filled(text, "head", head)


def readme(text: str) -> str:
    """The README with the methods and the folders as they are."""
    text = filled(text, "methods", list_of_methods("docs/methods/"))
    order = [name for layer in reversed(LAYERS) for name in layer]
    folders = sorted(
        (path.parent for path in PACKAGE.glob("*/__init__.py")),
        key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name),
    )
    return filled(text, "layout", table(["folder", "what it holds"], [[f"`{p.name}/`", purpose(p)] for p in folders]))


def scope(text: str) -> str:
    """The page on what is in, with the methods as they are."""
    return filled(text, "methods", list_of_methods("methods/"))


def stages(text: str) -> str:
    """The page on Python with the stages by their names in Python, in recipes and on the command line."""
    rows = [
        [f"`burnish.{verb.class_name}`", f"`stage: {name}`", f"`burnish {' '.join(verb.words)}`", verb.help]
        for name, verb in sorted(VERBS.items())
    ]
    return filled(text, "stages", table(["Python", "recipe", "command", "what it does"], rows))


def list_of_methods(pages: str) -> str:
    rows = [[f"[{method.name}]({pages}{method.page}.md)", method.does, f"`{method.use}`"] for method in METHODS]
    return table(["method", "what it does", "command"], rows)


def purpose(folder: Path) -> str:
    """The first line of a package's docstring."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring, f"{folder} does not say what it holds"
    return docstring.splitlines()[0].rstrip(".")


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def filled(text: str, name: str, content: str) -> str:
    return replaced(text, rf"(?<=<!-- derived: {name} -->\n)(.*\n)*?(?=<!-- end -->)", content)


def replaced(text: str, pattern: str, content: str) -> str:
    new, count = re.subn(pattern, lambda _: content, text, count=1)
    assert count == 1, f"no place for what is derived: {pattern}"
    return new


def main(arguments: list[str]) -> int:
    stale = {
        path: text for path, text in derived().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)}: is not what the rows say; run python scripts/derive.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
