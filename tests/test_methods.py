"""The table of methods: what is derived from its rows is there, and nothing exists that no row names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.cli import add_within, app
from burnish.methods import BENCHMARKS, METHODS, VERBS, Method, Verb
from burnish.stages import stage_class

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> Any:
    """The module scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


derive = script("derive")


@pytest.mark.parametrize("path", derive.derived(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_follows_from_the_rows_and_the_folders_is_written(path: Path):
    """A page, its head, a list of the README, a layer or a public name that is missing is written by derive.py."""
    assert path.is_file(), "run python scripts/derive.py"
    assert path.read_text(encoding="utf-8") == derive.derived()[path], "run python scripts/derive.py"


def test_every_page_is_that_of_one_row():
    pages = sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))
    assert pages == sorted(method.page for method in METHODS)


def test_every_result_and_its_script_are_named_by_a_row():
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert results == set(BENCHMARKS)
    for name in BENCHMARKS:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_row_names_the_results_that_its_page_shows(method: Method):
    page = (ROOT / "docs" / "methods" / f"{method.page}.md").read_text(encoding="utf-8")
    shown = {line.split()[2].partition(".")[0] for line in page.splitlines() if line.startswith("<!-- table: ")}
    assert shown <= {benchmark.name for benchmark in method.benchmarks}


@pytest.mark.parametrize("method", [method for method in METHODS if method.use.startswith("burnish ")])
def test_what_a_row_says_to_type_is_a_command_with_these_options(method: Method):
    words = method.use.split()[1:]
    options = [word for word in words if word.startswith("--")]
    command = words[: words.index(options[0])] if options else words
    add_within(command[0])
    place = app
    for word in command:
        place = place[word]
    taken = {name for argument in place.assemble_argument_collection() for name in argument.names}
    assert set(options) <= taken


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_the_name_of_its_stage_and_its_class_is_public(name: str):
    settings_class = stage_class(name)
    assert settings_class.name == name
    assert getattr(burnish, settings_class.__name__) is settings_class
    assert settings_class.__name__ in burnish.__all__
    assert settings_class.__name__ in dir(burnish)


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_the_work_behind_a_stage_is_run_in_the_file_beside_it(verb: Verb):
    """`stage.py` has settings alone, and its `run` hands over to `run.py`, in every folder under the same name."""
    place = importlib.import_module(verb.module)
    assert place.__file__ is not None
    work = ast.parse(Path(place.__file__).with_name("run.py").read_text(encoding="utf-8"))
    (run,) = [node for node in work.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert [argument.arg for argument in run.args.args] == ["settings", "model", "ctx"]
    beside = verb.module.removesuffix("stage") + "run"
    assert f"from {beside} import run" in inspect.getsource(stage_class(verb.name).run)


def test_every_stage_is_in_the_table():
    """A class of settings with a `name`, in a file that is called stage.py."""
    found = set()
    for path in (ROOT / "src" / "burnish").glob("*/stage.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names = [part for part in node.body if isinstance(part, ast.AnnAssign) and part.target.id == "name"]
                found |= {f"burnish.{path.parent.name}.stage:{node.name}" for _ in names}
    found.discard("burnish.core.stage:Stage")
    assert found == {verb.settings for verb in VERBS.values()}


def test_bench_finds_benchmarks_by_method_page_and_name():
    chosen = script("bench").chosen
    assert (
        [b.name for b in chosen("SlimMoE")]
        == [b.name for b in chosen("slimmoe")]
        == ["slim", "slim_router", "slim_widths", "slim_reap"]
    )
    assert [b.name for b in chosen("slim_reap")] == ["slim_reap"]
    assert chosen("nothing") == []


def test_a_folder_without_a_place_in_the_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "attic").mkdir()
    (tmp_path / "attic" / "__init__.py").write_text('"""What nobody placed."""\n')
    monkeypatch.setattr(derive, "PACKAGE", tmp_path)
    with pytest.raises(SystemExit, match=r"burnish\.attic has no layer"):
        derive.layers("")
