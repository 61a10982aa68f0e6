"""Every planted fault is found, no clean episode is dropped, and the order of reading changes nothing."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.core.progress import Progress
from burnish.core.store import Store
from burnish.data.stage import CurateTrajectories
from burnish.data.trajectories.curate import (
    Curation,
    FirstPass,
    Looked,
    _digest,
    curate,
    decide,
    explain,
    funnel,
)
from burnish.data.trajectories.filters import DEFAULT, Facts, parse_filters
from burnish.data.trajectories.kinds import check_failed
from burnish.data.trajectories.read import Unread
from made_episodes import FAULTS, made, patch, planted, write

QUIET = Progress(enabled=False)


def evaluated(tmp_path: Path) -> Path:
    return write(
        tmp_path / "evaluated.rows.jsonl", [{"repo": "https://github.com/Them/Evaluated.git", "commit": "0123456"}]
    )


def curation(tmp_path: Path, *names: str) -> Curation:
    return Curation(parse_filters(names or DEFAULT, has_evaluation=True), evaluated(tmp_path))


def dropped(rows: list[dict[str, Any]], tmp_path: Path, *names: str) -> dict[str, str]:
    """{episode: the filter that drops it}."""
    given = curation(tmp_path, *names)
    found = decide([write(tmp_path / "episodes.jsonl", rows)], given, QUIET)
    pairs = zip(found.found, found.fates, strict=True)
    return {facts.id: given.filters[by].name for facts, (by, _) in pairs if by >= 0}


@pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_planted_fault_is_found_and_no_clean_episode_is_dropped(number: int, tmp_path: Path):
    rows, faults = planted(number, seed=3)
    assert {fault for of in faults.values() for fault in of} == set(FAULTS)
    for fault in FAULTS:  # alone, so that no other filter hides what this one misses
        found = (
            dropped(rows, tmp_path, "contaminated", fault)
            if fault != "contaminated"
            else dropped(rows, tmp_path, fault)
        )
        found = {name for name, by in found.items() if by == fault}
        hidden = set() if fault == "contaminated" else {name for name, of in faults.items() if "contaminated" in of}
        assert found == {name for name, of in faults.items() if fault in of} - hidden
    assert set(dropped(rows, tmp_path)) == {name for name, of in faults.items() if of}


def test_an_episode_is_dropped_by_the_first_filter_of_the_list_that_it_fails(tmp_path: Path):
    rows = [made("both", frozenset({"verified", "repeats"})), made("clean")]
    assert dropped(rows, tmp_path, "verified", "repeats") == {"both": "verified"}
    assert dropped(rows, tmp_path, "repeats", "verified") == {"both": "repeats"}


def test_of_one_change_of_a_task_the_episode_with_the_fewest_turns_stays(tmp_path: Path):
    rows = [made(name, turns=turns, task="one") for name, turns in (("long", 5), ("short", 2), ("middle", 3))]
    for row, start in zip(rows, (3, 40, 7), strict=True):  # the same change at another place of the file
        row["patch"] = patch("src/a.py", "1").replace("-3,2 +3,2", f"-{start},2 +{start},2")
    other = made("other task")
    other["patch"] = rows[0]["patch"]
    assert dropped([*rows, other], tmp_path) == {"long": "duplicates", "middle": "duplicates"}


def test_of_one_task_at_most_so_many_stay(tmp_path: Path):
    rows = [made(f"e{turns}", turns=turns, task="one") for turns in (6, 2, 5, 3, 4)]
    assert dropped(rows, tmp_path, "per-task=2") == {"e4": "per-task", "e5": "per-task", "e6": "per-task"}


def test_counts_and_samples_do_not_depend_on_the_order_of_files_or_of_episodes(tmp_path: Path):
    rows, _ = planted(120, seed=5)
    for row in rows:
        row["task"] = f"task {int(row['id'][1:]) % 9}"
        row["patch"] = row["patch"] and patch("src/a.py", str(int(row["id"][1:]) % 4))
    given = curation(tmp_path, *DEFAULT[:-1], "per-task=1")
    funnels = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        files = [write(tmp_path / f"{seed}-{part}.jsonl", rows[part::3]) for part in range(3)]
        random.Random(seed).shuffle(files)
        funnels.append(funnel(decide(files, given, QUIET), given.filters))
    assert funnels[0] == funnels[1] == funnels[2]
    assert {step["filter"] for step in funnels[0] if step["dropped"]} >= {"duplicates", "per-task=1", "verified=1"}


@pytest.mark.slow
def test_rows_funnel_and_refusals_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("burnish.data.trajectories.curate.PART", 8)
    rows, _ = planted(90, seed=7)
    del rows[20]["reward"]
    files = [write(tmp_path / f"{part}.jsonl", rows[part::2]) for part in range(2)]
    files[0].write_text(files[0].read_text(encoding="utf-8") + "{no JSON\n", encoding="utf-8")
    given = replace(curation(tmp_path), skip_bad=True)
    made = [curate(files, given, None, tmp_path / f"work{workers}", QUIET, workers) for workers in (1, 3)]
    assert made[0].about == made[1].about
    assert made[0].funnel[1]["dropped"] == 2
    assert list(made[0].rows) == list(made[1].rows)
    strict = replace(given, skip_bad=False)
    refusals = []
    for workers in (1, 3):
        with pytest.raises(DataError) as caught:
            decide(files, strict, QUIET, workers)
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


def test_explain_names_every_filter_and_the_one_that_dropped_it(tmp_path: Path):
    rows = [made("kept", task="one"), made("longer", task="one", turns=4), made("looping", frozenset({"repeats"}))]
    rows[1]["patch"] = rows[0]["patch"]
    file = write(tmp_path / "episodes.jsonl", rows)
    given = curation(tmp_path)
    assert explain([file], given, "kept", QUIET)[0] == "kept: kept"
    assert explain([file], given, "longer", QUIET)[0].startswith(
        "longer: dropped by duplicates, as its patch is that of 'kept'"
    )
    lines = explain([file], given, "looping", QUIET)
    assert '  repeats=3: the same action 3 times in a row: [["bash", {"command": "pytest"}]]' in lines
    assert len(lines) == 1 + len(given.filters)
    with pytest.raises(DataError, match="there is no episode 'nobody'"):
        explain([file], given, "nobody", QUIET)


def test_rows_are_those_of_the_kept_episodes_and_parts_are_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("burnish.data.trajectories.curate.PART", 4)
    rows, faults = planted(30, seed=1)
    file, given, work = write(tmp_path / "episodes.jsonl", rows), curation(tmp_path), tmp_path / "work"
    first = curate([file], given, None, work, QUIET)
    clean = [name for name, of in faults.items() if not of]
    assert [row["id"] for row in first.rows] == clean
    written = {path: path.stat().st_mtime_ns for path in work.rglob("rows.jsonl")}
    assert len(written) == -(-len(clean) // 4)
    gone = sorted(written)[1]
    for inside in sorted(gone.parent.iterdir()):
        inside.unlink()
    gone.parent.rmdir()  # as if the run had been killed before this part was whole
    again = curate([file], given, None, work, QUIET)
    assert [row["id"] for row in again.rows] == clean
    same = {path for path, time in written.items() if path.stat().st_mtime_ns == time}
    assert same == set(written) - {gone}
    assert [step["left"] for step in again.funnel] == [step["left"] for step in first.funnel]


def test_a_first_pass_that_is_stopped_goes_on_where_files_filters_and_verdicts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("burnish.data.trajectories.curate.LOOKED_TOGETHER", 8)
    rows, _ = planted(30, seed=1)
    file, given, work = write(tmp_path / "episodes.jsonl", rows), curation(tmp_path), tmp_path / "work"
    whole = curate([file], given, None, tmp_path / "other", QUIET)
    looked, real = list[str](), FirstPass.look

    def dying(self: FirstPass, unread: Unread) -> Looked:
        looked.append(unread.where)
        if len(looked) == 20:
            raise KeyboardInterrupt
        return real(self, unread)

    monkeypatch.setattr(FirstPass, "look", dying)
    with pytest.raises(KeyboardInterrupt):
        curate([file], given, None, work, QUIET)
    assert len(looked) == 20
    again = curate([file], given, None, work, QUIET)
    assert looked[20:] == [f"{file}:{number}" for number in range(17, len(rows) + 1)]
    assert [list(again.rows), again.funnel] == [list(whole.rows), whole.funnel]
    seen = len(looked)
    decide([file], given, QUIET, store=Store(work / "looked"), digest="of other files")
    other = Curation(given.filters[:-1], given.apart_from)
    decide([file], other, QUIET, store=Store(work / "looked"), digest="of other files")
    assert len(looked) == seen + 2 * len(rows)
    verdict = tmp_path / "rewards.json"
    before = _digest([file])
    verdict.write_text("{}")
    assert _digest([file]) != before


def test_what_the_first_pass_keeps_is_what_it_has_found(tmp_path: Path):
    facts = Facts("one", "task", "", 3, 1, "why", True)
    error = DataError("is wrong", where="here", fix="mend it")
    for one in (Looked("one", "here", 2, facts), Looked(error=error), Looked("two", "there", 0, None, error)):
        back = Looked.of_json(one.json())
        assert (back.id, back.where, back.num_secrets, back.facts) == (one.id, one.where, one.num_secrets, one.facts)
        assert str(back.error) == str(one.error)


@pytest.mark.parametrize(
    ("names", "evaluation", "sentence"),
    [
        (["verifed"], False, "filters: there is no filter 'verifed'; did you mean 'verified'?"),
        (["repeats=1"], False, "filters: repeats takes a number of 2 or more, but is given '1'; write repeats"),
        (["patch=3"], False, "filters: patch takes no number, but is given '3'; write patch"),
        (["patch", "patch"], False, "filters: patch is named twice; leave one out"),
        (["contaminated"], False, "filters: contaminated needs to know what is evaluated on; give apart_from"),
    ],
)
def test_wrong_lists_of_filters(names: list[str], evaluation: bool, sentence: str):
    with pytest.raises(SettingsError) as caught:
        parse_filters(names, has_evaluation=evaluation)
    assert str(caught.value) == sentence


def test_contamination_is_looked_for_where_there_is_something_evaluated_on():
    names = [filter_.name for filter_ in parse_filters(DEFAULT, has_evaluation=True)]
    assert names == [
        "verified",
        "finished",
        "budget",
        "repeats",
        "patch",
        "tests",
        "contaminated",
        "duplicates",
        "per-task",
    ]


def test_an_episode_whose_place_is_unknown_may_be_one_that_is_evaluated_on(tmp_path: Path):
    row = made("lost")
    del row["base_commit"]
    assert dropped([row, made("known")], tmp_path) == {"lost": "contaminated"}


def test_two_episodes_of_one_name_are_refused(tmp_path: Path):
    file = write(tmp_path / "episodes.jsonl", [made("one"), made("one")])
    with pytest.raises(DataError, match=r"episodes\.jsonl:2: has the id 'one' of the episode at .*episodes\.jsonl:1"):
        decide([file], curation(tmp_path), QUIET)


def test_a_missing_reward_is_said_once_rewards_matter(tmp_path: Path):
    row = made("one")
    del row["reward"]
    file = write(tmp_path / "episodes.jsonl", [row])
    with pytest.raises(DataError, match="the episode 'one' has no reward"):
        decide([file], curation(tmp_path), QUIET)
    assert decide([file], curation(tmp_path, "patch"), QUIET).num_kept == 1
    (tmp_path / "rewards.json").write_text(json.dumps({"resolved_ids": [], "submitted_ids": ["task of one"]}))
    assert decide([file], curation(tmp_path), QUIET).fates[0][1] == "its reward is 0"


def test_failed_episodes_are_kept_where_verified_alone_would_drop_them_and_counted_apart(tmp_path: Path):
    wrong = frozenset({"verified"})
    rows = [
        made("right", task="one"),
        made("wrong", wrong, task="one"),
        made("wrong and longer", wrong, task="one", turns=4),
        made("wrong and looping", frozenset({"verified", "repeats"})),
    ]
    for row in rows:
        row["patch"] = rows[0]["patch"]
    file = write(tmp_path / "episodes.jsonl", rows)
    given = replace(curation(tmp_path), keep_failed=True)
    found = decide([file], given, QUIET)
    fates = {facts.id: by for facts, (by, _) in zip(found.found, found.fates, strict=True)}
    names = [str(filter_) for filter_ in given.filters]
    assert fates == {
        "right": -1,
        "wrong": -1,  # the same change as the right one, but not the same verdict
        "wrong and longer": names.index("duplicates"),
        "wrong and looping": names.index("repeats=3"),
    }
    assert found.num_kept == 2
    assert curate([file], given, None, tmp_path / "work", QUIET).num_failed == 1
    assert explain([file], given, "wrong", QUIET)[0] == "wrong: kept, to be unlearned"


@pytest.mark.parametrize(
    ("weight", "filters", "sentence"),
    [
        (0.2, ["verified"], "failed: the weight of failed episodes is 0.2, but what is unlearned counts 0 to 0.1"),
        (-0.1, ["verified"], "failed: the weight of failed episodes is -0.1"),
        (0.05, ["patch"], "failed: nothing says which episodes have failed, as verified is not among the filters"),
    ],
)
def test_weights_of_failed_episodes_that_cannot_be(weight: float, filters: list[str], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        check_failed(weight, filters)
    with pytest.raises(SettingsError, match=sentence.removeprefix("failed: ")):
        CurateTrajectories.parse({"failed": weight, "filters": filters}, where="recipe.yaml")


def test_nothing_left_says_what_dropped_how_many(tmp_path: Path):
    file = write(tmp_path / "episodes.jsonl", [made("one", frozenset({"verified"})), made("two", frozenset({"patch"}))])
    with pytest.raises(DataError, match="no episode is left: of 2 episodes verified=1 dropped 1, patch dropped 1"):
        curate([file], curation(tmp_path), None, tmp_path / "work", QUIET)
