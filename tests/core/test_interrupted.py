"""What an interrupted node has left is never lost to a changed setting: a person decides, and the advice works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_stages import Grow, Scale

from burnish.cli import main
from burnish.core.checkpoint import Lineage, load
from burnish.core.errors import SettingsError, StageError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Rooms, Run
from burnish.core.runner.work import Work

ROOMS = Rooms(lambda name, where: {"grow": Grow, "scale": Scale}[name], lambda: Scale, lambda reference: "")


def run(settings: str, start: Path, directory: Path, **how: bool) -> Run:
    text = f"start: {start}\nnodes: [{{name: a, stage: grow{settings}}}]"
    return Run(parse_recipe(text, source="r.yaml"), directory, ROOMS, log=lambda message: None, **how)  # type: ignore[arg-type]


def added(directory: Path, start: Path) -> float:
    after, before = (load(place).module.model.norm.weight for place in (directory / "nodes" / "a", start))
    return float((after - before).detach().mean())


@pytest.fixture
def stopped(tiny_llama: Path, tmp_path: Path) -> Path:
    """A run that was killed after two of four steps."""
    with pytest.raises(StageError, match="SIGKILL"):
        run(", stop_after: 2", tiny_llama, tmp_path / "run").execute()
    return tmp_path / "run"


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "work" / "a" / "states").glob("step-*"))


def test_the_same_command_goes_on(stopped: Path, tiny_llama: Path):
    run("", tiny_llama, stopped).execute()
    assert added(stopped, tiny_llama) == pytest.approx(1.0)
    assert not (stopped / "work").exists()


def test_what_a_node_was_told_is_gone_at_the_end_where_its_runner_was_killed_after_it(tiny_llama: Path, tmp_path: Path):
    work = run("", tiny_llama, tmp_path / "run")
    work.execute()
    told = tmp_path / "run" / "work" / "a.stage.json"
    told.parent.mkdir()
    told.write_text("{}")
    run("", tiny_llama, tmp_path / "run").execute()
    assert not told.parent.exists()


def test_a_setting_that_only_watches_goes_on(stopped: Path, tiny_llama: Path):
    work = run(", every: 3", tiny_llama, stopped)
    assert work.decide()[0].reason == "was interrupted"
    work.execute()
    assert added(stopped, tiny_llama) == pytest.approx(1.0)


def test_a_changed_setting_is_refused_by_name_and_nothing_is_deleted(stopped: Path, tiny_llama: Path):
    before = kept(stopped)
    assert before
    expected = (
        r"r.yaml:2, node 'a': was interrupted, and is not what it was \(rate was 0.25, now 0.5\); to go on from where "
        r"it stopped pass --continue-with-changes, to start again and lose that pass --restart"
    )
    with pytest.raises(SettingsError, match=expected):
        run(", rate: 0.5", tiny_llama, stopped).execute()
    assert kept(stopped) == before
    run("", tiny_llama, stopped).execute()  # set as it was
    assert added(stopped, tiny_llama) == pytest.approx(1.0)


def test_a_plan_says_what_has_changed_since(stopped: Path, tiny_llama: Path):
    reason = run(", rate: 0.5", tiny_llama, stopped).decide()[0].reason
    assert reason == "was interrupted, and has changed since: rate was 0.25, now 0.5"


def test_continued_with_changes_it_says_so_in_lineage_and_ledger(stopped: Path, tiny_llama: Path):
    run(", rate: 0.5", tiny_llama, stopped, with_changes=True).execute()
    assert added(stopped, tiny_llama) == pytest.approx(2 * 0.25 + 2 * 0.5)
    lineage = Lineage.read(stopped / "nodes" / "a")
    assert lineage is not None
    assert lineage.continued == [{"after_step": 2, "change": "rate"}]
    (row,) = [row for row in read_rows(stopped / LEDGER_FILE) if row["row"] == "stage"]
    assert row["continued"] == lineage.continued
    assert "rate" in (stopped / "nodes" / "a" / "README.md").read_text().split("Changed on the way")[1]


def test_a_change_is_remembered_over_another_interruption(stopped: Path, tiny_llama: Path):
    with pytest.raises(StageError):
        run(", rate: 0.5, stop_after: 3, every: 9", tiny_llama, stopped, with_changes=True).execute()
    run(", rate: 0.5", tiny_llama, stopped).execute()
    assert added(stopped, tiny_llama) == pytest.approx(2 * 0.25 + 2 * 0.5)


def test_restarted_it_is_as_if_nothing_had_been(stopped: Path, tiny_llama: Path):
    run(", rate: 0.5", tiny_llama, stopped, restart=True).execute()
    assert added(stopped, tiny_llama) == pytest.approx(2.0)
    lineage = Lineage.read(stopped / "nodes" / "a")
    assert lineage is not None and lineage.continued == []


def test_what_cannot_change_on_the_way_needs_a_restart(stopped: Path, tiny_llama: Path):
    changed = ", steps: 5, rate: 0.5"
    with pytest.raises(SettingsError, match="steps cannot change on the way: set it as it was, or to start again"):
        run(changed, tiny_llama, stopped, with_changes=True).execute()
    assert kept(stopped)
    run(changed, tiny_llama, stopped, restart=True).execute()
    assert added(stopped, tiny_llama) == pytest.approx(2.5)


def test_another_start_is_refused_too(stopped: Path, tiny_llama: Path, tmp_path: Path):
    other = load(tiny_llama)
    other.module.lm_head.weight.data.mul_(2)
    other.save(tmp_path / "other")
    with pytest.raises(SettingsError, match="input: not the same"):
        run("", tmp_path / "other", stopped).execute()
    assert kept(stopped)


def test_where_nothing_was_kept_yet_a_change_is_no_matter(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(StageError):
        run(", stop_after: 1, every: 9", tiny_llama, tmp_path / "run").execute()
    run(", rate: 0.5", tiny_llama, tmp_path / "run").execute()
    assert added(tmp_path / "run", tiny_llama) == pytest.approx(2.0)
    lineage = Lineage.read(tmp_path / "run" / "nodes" / "a")
    assert lineage is not None and lineage.continued == []


def test_the_work_of_a_node_that_the_recipe_no_longer_has_stays(stopped: Path, tiny_llama: Path):
    text = f"start: {tiny_llama}\nnodes: [{{name: b, stage: scale}}]"
    Run(parse_recipe(text, source="r.yaml"), stopped, ROOMS, log=lambda message: None).execute()
    assert kept(stopped)
    run("", tiny_llama, stopped).execute()
    assert added(stopped, tiny_llama) == pytest.approx(1.0)


def test_what_another_version_began_is_refused(stopped: Path, tiny_llama: Path):
    (stopped / "work" / "a" / "node.json").unlink()
    with pytest.raises(SettingsError, match="another version of burnish began it"):
        run("", tiny_llama, stopped).execute()
    assert kept(stopped)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parts": 3}'])
def test_what_is_damaged_is_refused_and_can_be_restarted_as_is_advised(stopped: Path, tiny_llama: Path, content: str):
    (stopped / "work" / "a" / "node.json").write_text(content)
    with pytest.raises(SettingsError, match=r"node.json is damaged\); to start again and lose that pass --restart"):
        run("", tiny_llama, stopped).execute()
    assert kept(stopped)
    run("", tiny_llama, stopped, restart=True).execute()
    assert added(stopped, tiny_llama) == pytest.approx(1.0)


def test_parts_that_are_not_known_yet_are_not_compared(stopped: Path):
    work = Work(stopped / "work" / "a", Grow.changeable)
    assert work.changes({"rate": 0.25}) == {}
    assert set(work.changes({"rate": 0.5})) == {"rate"}


def test_a_node_is_looked_at_while_its_run_removes_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `burnish plan` does beside a running `burnish run`."""
    for name in ("removed", "states"):
        (tmp_path / "work" / name).mkdir(parents=True)
    scandir = os.scandir

    def racing(path: str | Path):
        if Path(path).name == "removed":
            Path(path).rmdir()  # between its parent's listing and its own
        return scandir(path)

    monkeypatch.setattr(os, "scandir", racing)
    assert not Work(tmp_path / "work", Grow.changeable).holds_a_state
    assert not (tmp_path / "work" / "removed").exists()
    (tmp_path / "work" / "states" / "key.json").write_text("{}")
    assert Work(tmp_path / "work", Grow.changeable).holds_a_state


@pytest.mark.parametrize("command", ["run", "train", "distill", "align"])
def test_the_options_that_the_sentences_name_are_there(command: str, capsys: pytest.CaptureFixture[str]):
    main([command, "--help"])
    said = capsys.readouterr().out
    assert "--continue-with-changes" in said and "--restart" in said


def test_what_a_node_measured_on_the_way_is_kept_when_it_ends(tmp_path):
    work = Work(tmp_path / "work" / "tuned", None)
    (work.directory / "states").mkdir(parents=True)
    (work.directory / "metrics.jsonl").write_text('{"step": 1}\n')
    work.finish(tmp_path / "logs")
    assert (tmp_path / "logs" / "tuned.metrics.jsonl").read_text() == '{"step": 1}\n'
    assert not work.directory.exists()
