"""Settings as options."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

import pytest

from burnish.cli import app
from burnish.core.errors import SettingsError
from burnish.methods import VERBS
from burnish.stages import stage_class

COMMANDS = ["run", "plan", "fetch", "evaluate", "report", "audit", *(" ".join(verb.words) for verb in VERBS.values())]


def parsed(*arguments: str) -> Any:
    """The settings that a command line gives."""
    _, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    return bound.arguments["settings"]


@pytest.mark.parametrize("field", ["group-size", "tokens", "damping", "engine", "stream"])
def test_null_leaves_a_setting_empty_as_in_a_recipe(field: str):
    settings = parsed("quantize", "model", f"--{field}=null", "-o", "out")
    assert getattr(settings, field.replace("-", "_")) is None


def test_null_in_a_scheme_of_some_matrices():
    settings = parsed("quantize", "model", "--overrides.lm_head.group-size", "null", "-o", "out")
    assert settings.overrides["lm_head"].group_size is None


def test_null_is_refused_where_a_value_is_needed(capsys: pytest.CaptureFixture[str]):
    from burnish.cli import main

    with pytest.raises(SystemExit):
        main(["quantize", "model", "--bits", "null", "-o", "out"])
    assert "bits is None, but input should be a valid integer" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *COMMANDS, "events"])
def test_the_examples_of_the_help_are_commands(command: str, capsys: pytest.CaptureFixture[str]):
    app([*command.split(), "--help"])
    printed = capsys.readouterr().out.replace(" \\\n", " ")  # a long one goes on in the next line
    examples = [shlex.split(line) for line in printed.splitlines() if line.startswith("    burnish ")]
    assert examples
    for _, *arguments in examples:
        app.parse_args(arguments, exit_on_error=False, print_error=False)  # raises where an option does not exist


@pytest.mark.parametrize("name", sorted(VERBS.keys() - {"chain", "table", "trajectories", "steer"}))
def test_the_defaults_of_a_command_are_those_of_its_stage(name: str):
    """They are not validated, so that a stage that cannot do without a setting still has a help."""
    _, bound, _ = app.parse_args([*VERBS[name].words, "model", "-o", "out"], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    try:
        assert bound.arguments["settings"] == stage_class(name).parse({}, where="defaults")
    except SettingsError:
        assert name == "slim"


def test_the_options_of_chains_have_the_defaults_of_their_stage():
    """They have words of their own, because one command line makes no nested settings."""
    _, bound, _ = app.parse_args(["data", "chain", "-o", "chains.jsonl"], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    stage: Any = stage_class("chain").parse({}, where="defaults")
    low, high = stage.kind.steps
    wanted = {"number": stage.number, "distinct": stage.distinct, **asdict(stage.kind), "steps": f"{low}-{high}"}
    assert wanted.items() <= bound.arguments.items()


def test_the_options_of_tables_have_the_defaults_of_their_stage():
    _, bound, _ = app.parse_args(["data", "table", "-o", "tables.jsonl"], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    stage: Any = stage_class("table").parse({}, where="defaults")
    wanted = {"number": stage.number, "distinct": stage.distinct, **asdict(stage.kind)}
    assert wanted.items() <= bound.arguments.items()


def test_the_options_of_trajectories_have_the_defaults_of_their_stage():
    """They read files that lie outside of any recipe, and need no checkpoint."""
    from burnish.data.trajectories.filters import DEFAULT

    words = ["data", "trajectories", "episodes.jsonl", "-o", "out"]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    stage: Any = stage_class("trajectories").parse({}, where="defaults")
    assert bound.arguments["filter_"] is None
    assert stage.filters == list(DEFAULT)
    wanted = {"context": stage.context, "bad_rows": stage.bad_rows, "apart_from": stage.apart_from}
    assert wanted.items() <= bound.arguments.items()
