"""The command as a person meets it: help, exit status, one clear sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

import warm
from burnish.cli import app, main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail, and returns its one line."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("burnish: error: ")
    assert "Traceback" not in line
    assert "\n" not in line
    return line


def test_help_imports_neither_torch_nor_transformers_nor_pydantic():
    script = (
        "import sys; from burnish.cli import main; main(['--help'])\n"
        "print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_the_commands_by_group(capsys: pytest.CaptureFixture[str]):
    main(["--help"])
    text = capsys.readouterr().out
    for word in ("Recipes", "run", "plan", "fetch", "evaluate", "report", "methods", "doctor", "quantize", "Examples"):
        assert word in text


def test_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert "quantise" in refused(capsys, "quantise")


def test_a_missing_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "no such recipe file" in refused(capsys, "run", str(tmp_path / "none.yaml"))


def test_an_unknown_stage_suggests_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("start: m\nnodes:\n  - stage: quantise\n")
    assert "r.yaml:3: there is no stage 'quantise'; did you mean 'quantize'?" in refused(capsys, "plan", str(recipe))


def test_debug_shows_the_traceback(tmp_path: Path):
    from burnish.core.errors import RecipeError

    with pytest.raises(RecipeError):
        main(["run", str(tmp_path / "none.yaml"), "--debug"])


def test_methods_lists_sources_and_evidence(capsys: pytest.CaptureFixture[str]):
    main(["methods"])
    text = capsys.readouterr().out
    assert "evaluation" in text
    assert "docs/methods" in text


def test_doctor_names_versions_and_extras(capsys: pytest.CaptureFixture[str]):
    main(["doctor"])
    text = capsys.readouterr().out
    assert "torch 2." in text
    assert "extra align" in text


def test_a_plan_shows_what_each_node_costs_by_itself(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
):
    """Time where the number of steps is known; a node does not inherit it from the one before."""
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 50)
    nodes = "".join(
        f"  - {{name: {name}, stage: train, data: {tmp_path}/text.txt, context: 64{steps}}}\n"
        for name, steps in (("a thousand steps", ", steps: 1000"), ("one epoch", ""))
    )
    (tmp_path / "r.yaml").write_text(f"start: {tiny_llama}\nnodes:\n{nodes}")
    main(["plan", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "run")])
    known, unknown = (line for line in capsys.readouterr().out.splitlines() if " train " in line)
    assert known.split()[:4] == ["a", "thousand", "steps", "train"] and "~" in known
    assert unknown.split()[:3] == ["one", "epoch", "train"] and "~" not in unknown


def test_a_plan_prices_only_what_will_run(capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path):
    settings = "stage: quantize, method: gptq, group_size: 32, calibration: wikitext2-valid, tokens: 256, length: 64"
    (tmp_path / "r.yaml").write_text(f"start: {tiny_llama}\nnodes: [{{name: four, {settings}}}]\n")
    words = ("r.yaml", "run")
    recipe, out = (str(tmp_path / word) for word in words)
    main(["plan", recipe, "-o", out])
    before = capsys.readouterr().out
    assert "~" in before and "256" in before
    warm.run(tmp_path / "log", "run", recipe, "-o", out)
    main(["plan", recipe, "-o", out])
    after = capsys.readouterr().out
    assert "four is skipped: nothing that it depends on has changed" in after
    assert "~" not in after and "tokens" not in after


def commands(place: App = app, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command, those of families included, with the words that call it."""
    for name in place:
        if not name.startswith("-"):
            if inner := [word for word in place[name] if not word.startswith("-")]:
                assert inner
                yield from commands(place[name], (*words, name))
            else:
                yield (*words, name), place[name]


def test_every_option_of_every_command_says_in_one_paragraph_what_it_is():
    silent = [
        (*words, argument.name)
        for words, command in commands()
        for argument in command.assemble_argument_collection(parse_docstring=True)
        if argument.parameter.parse is not False and argument.show
        if not (said := (argument.parameter.help or "").strip()) or "\n" in said
    ]
    assert silent == []


def test_no_option_is_broken_and_no_example_wraps_in_the_help_of_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    for words, command in commands():
        main([*words, "--help"])
        page = capsys.readouterr().out
        shown = [one for one in command.assemble_argument_collection() if one.show and one.parameter.parse is not False]
        named = {name.partition(".")[0] for one in shown for name in one.names if name.startswith("-")}
        assert named - {word.partition(".")[0] for word in page.split()} == set(), words
        examples = page.partition("Examples:")[2].strip().splitlines()
        assert all(line.startswith("    ") for line in examples[1:]), examples


def test_what_a_command_cannot_do_without_is_marked(capsys: pytest.CaptureFixture[str]):
    for words, options in {
        "train": ("--out", "--data"),
        "align": ("--data",),
        "distill": ("--data", "--teacher"),
    }.items():
        main([words, "--help"])
        page = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for option in options:
            assert "must be given" in re.split(rf" {option} (?:-o )?[A-Z]+", page)[1].split(" --")[0], (words, option)


@pytest.mark.parametrize("command", ["methods", "train MODEL --explain"])
def test_no_word_is_broken_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, command: str
):
    def words(columns: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", columns)
        main(command.replace("MODEL", str(tiny_llama)).split())
        return capsys.readouterr().out.split()

    assert words("80") == words("400")
