"""Which episodes are worth training on: filters in an order, each with what it drops and why.

A filter looks at one episode, or at all that are left of one task, right and failed ones apart. What is dropped does
not depend on the order in which episodes are read: among equals the one with the fewest turns stays, then the one whose
name comes first.

The steps are those of CoderForge-Preview (Together AI, 2026) as far as they are published: verified by the tests of the
environment alone; the rules for what is unfinished, repeated or the same are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.data.trajectories.episode import LAST_CALLS, Episode, repository_name
from burnish.data.trajectories.patches import is_empty, patch_digest, touched_tests

Evaluation = frozenset[tuple[str, str]]
"""Repositories and the first letters of base commits, `COMMIT_LETTERS` of them."""
COMMIT_LETTERS = 7
OVER_BUDGET = re.compile(r"cost|context|budget|limit|max_|maximum|timeout|time_out|total_execution_time", re.IGNORECASE)
FINISHED = re.compile(r"^\W*(submit|submitted|finish|finished|done|completed?|success|solved)\b", re.IGNORECASE)
SHOWN = 80
"""Characters of an action in a reason."""

Check = Callable[[Episode, float, Evaluation], str]
"""(episode, number of the filter, what is evaluated on) -> why it is dropped, or ""."""


@dataclass(frozen=True)
class Rule:
    """What a name in a list of filters stands for.

    Attributes:
        does: one clause.
        number: the default of NAME=NUMBER; None where there is none to give.
        check: of one episode; None for a rule about all episodes of a task.
        least: the smallest number that means something.
    """

    does: str
    number: float | None = None
    check: Check | None = None
    least: float = 0


class Filter(NamedTuple):
    """One entry of a list of filters."""

    name: str
    number: float

    @property
    def rule(self) -> Rule:
        return RULES[self.name]

    def __str__(self) -> str:
        return self.name if self.rule.number is None else f"{self.name}={self.number:g}"


class Facts(NamedTuple):
    """What of an episode is kept while all are looked at, some hundred bytes.

    Attributes:
        id, task: of the episode.
        patch: digest of its normalised patch, or "".
        turns: of the assistant.
        failed: number of the first filter about one episode that drops it, or -1.
        reason: why.
        is_wrong: whether it is kept as a failed one, to be unlearned: `verified` alone would drop it.
    """

    id: str
    task: str
    patch: str
    turns: int
    failed: int
    reason: str
    is_wrong: bool = False


def _verified(episode: Episode, least: float, _: Evaluation) -> str:
    if episode.reward is None:
        raise DataError(
            f"the episode {episode.id!r} has no reward, so nothing says whether it is right",
            where=episode.where,
            fix="give `reward`, or a rewards.json beside the files, or leave verified out of the filters",
        )
    return "" if episode.reward >= least else f"its reward is {episode.reward:g}"


def _finished(episode: Episode, _number: float, _: Evaluation) -> str:
    if FINISHED.match(episode.ending):
        return ""
    if episode.ending and not OVER_BUDGET.search(episode.ending):  # that is for another filter
        return f"it ended with {_short(episode.ending)!r}"
    last = episode.chat[-1]
    if last["role"] != "assistant":
        asked = [message for message in episode.chat if message["role"] == "assistant"][-1]
        return "" if _ends(asked) else f"its last message is of {last['role']}, and no answer follows"
    if last.get("tool_calls") and not _ends(last):
        return f"its last message calls {last['tool_calls'][-1]['function']['name']}, and no result follows"
    return ""


def _ends(message: Mapping[str, Any]) -> bool:
    return any(call["function"]["name"].lower() in LAST_CALLS for call in message.get("tool_calls", ()))


def _budget(episode: Episode, most: float, _: Evaluation) -> str:
    if OVER_BUDGET.search(episode.ending):
        return f"it ended with {_short(episode.ending)!r}"
    return f"it has {episode.num_turns:,} turns" if 0 < most < episode.num_turns else ""


def _repeats(episode: Episode, most: float, _: Evaluation) -> str:
    before, times = "", 0
    for action in episode.actions:
        times = times + 1 if action == before else 1
        before = action
        if times >= most:
            return f"the same action {times} times in a row: {_short(action)}"
    return ""


def _patch(episode: Episode, _number: float, _: Evaluation) -> str:
    return "its patch is empty" if is_empty(episode.patch) else ""


def _tests(episode: Episode, _number: float, _: Evaluation) -> str:
    touched = touched_tests(episode.patch or "")
    return f"its patch edits tests: {_short(touched[0])}" if touched else ""


def _contaminated(episode: Episode, _number: float, evaluation: Evaluation) -> str:
    if not episode.repository or len(episode.commit) < COMMIT_LETTERS:
        return "its repository and base commit are not known, so it may be one that is evaluated on"
    if (episode.repository, episode.commit[:COMMIT_LETTERS]) in evaluation:
        return f"{episode.repository} at {episode.commit[:COMMIT_LETTERS]} is evaluated on"
    return ""


RULES: dict[str, Rule] = {
    "verified": Rule("the environment's own tests give at least this reward", 1.0, _verified, least=-1e9),
    "finished": Rule("it was brought to an end", None, _finished),
    "budget": Rule("it did not run out of money, context or time, nor has more turns than this (0: any)", 0, _budget),
    "repeats": Rule("no action so often in a row", 3, _repeats, least=2),
    "patch": Rule("its final change is not empty", None, _patch),
    "tests": Rule("its final change touches no tests", None, _tests),
    "contaminated": Rule("its repository and base commit are not evaluated on", None, _contaminated),
    "duplicates": Rule("of one task, every final change once"),
    "per-task": Rule("of one task at most so many, those with the fewest turns", 4, least=1),
}
"""The filters by name; a list of them is an order."""
DEFAULT = ("verified", "finished", "budget", "repeats", "patch", "tests", "duplicates", "per-task")


def parse_filters(names: Sequence[str], *, has_evaluation: bool) -> list[Filter]:
    """Filters out of `NAME` and `NAME=NUMBER`, in their order.

    Args:
        names: as in a recipe.
        has_evaluation: whether there is something not to be contaminated with; the filter is then there, after
            those about one episode, where it is not named.

    Raises:
        SettingsError: no such filter, a number that it does not take, one twice, or nothing to keep apart from.
    """
    found: list[Filter] = []
    for text in names:
        name, equals, number = str(text).partition("=")
        if name not in RULES:
            guess = nearest(name, list(RULES))
            advice = f"did you mean {guess!r}?" if guess else f"filters are {', '.join(RULES)}"
            raise SettingsError(f"there is no filter {name!r}", where="filters", fix=advice)
        if name in (other.name for other in found):
            raise SettingsError(f"{name} is named twice", where="filters", fix="leave one out")
        found.append(Filter(name, _number(name, number if equals else None)))
    if any(filter_.name == "contaminated" for filter_ in found) and not has_evaluation:
        raise SettingsError("contaminated needs to know what is evaluated on", where="filters", fix="give apart_from")
    if has_evaluation and all(filter_.name != "contaminated" for filter_ in found):
        place = next((i for i, other in enumerate(found) if other.rule.check is None), len(found))
        found.insert(place, Filter("contaminated", 0.0))
    return found


def _number(name: str, text: str | None) -> float:
    rule = RULES[name]
    if text is None:
        return rule.number or 0.0
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if rule.number is None or not number >= rule.least:
        takes = "takes no number" if rule.number is None else f"takes a number of {rule.least:g} or more"
        raise SettingsError(f"{name} {takes}, but is given {text!r}", where="filters", fix=f"write {name}")
    return number


def evaluation_of(rows: Iterable[tuple[Any, str]]) -> Evaluation:
    """What is evaluated on, out of (row, where) with `repository` and `base_commit`.

    Raises:
        DataError: a row without them.
    """
    found = set()
    for given, where in rows:
        row = given() if callable(given) else given
        row = row if isinstance(row, dict) else {}
        repository, commit = row.get("repository") or row.get("repo"), row.get("base_commit") or row.get("commit")
        if not isinstance(repository, str) or not isinstance(commit, str) or len(commit) < COMMIT_LETTERS:
            what = f"has no `repository` and `base_commit` (of {COMMIT_LETTERS} letters or more)"
            raise DataError(what, where=where)
        found.add((repository_name(repository), commit.lower()[:COMMIT_LETTERS]))
    return frozenset(found)


def facts_of(
    episode: Episode, filters: Sequence[Filter], evaluation: Evaluation, *, keep_failed: bool = False
) -> Facts:
    """What the filters need to know of an episode; `keep_failed` keeps those that `verified` alone would drop."""
    failed, reason, is_wrong = -1, "", False
    for number, filter_ in enumerate(filters):
        check = filter_.rule.check
        if check is not None and (reason := check(episode, filter_.number, evaluation)):
            if keep_failed and filter_.name == "verified":
                is_wrong, reason = True, ""
                continue
            failed = number
            break
    patch = "" if is_empty(episode.patch) else patch_digest(str(episode.patch))
    return Facts(episode.id, episode.task, patch, episode.num_turns, failed, reason, is_wrong)


def apply(found: Sequence[Facts], filters: Sequence[Filter]) -> list[tuple[int, str]]:
    """For every episode the number of the filter that drops it, or -1, and why."""
    fates = [(-1, "")] * len(found)
    for number, filter_ in enumerate(filters):
        if filter_.rule.check is None:
            left = [place for place, (dropped, _) in enumerate(fates) if dropped < 0]
            dropped = _same_patch(found, left) if filter_.name == "duplicates" else _beyond(found, left, filter_.number)
            for place, reason in dropped:
                fates[place] = (number, reason)
            continue
        for place, facts in enumerate(found):
            if facts.failed == number and fates[place][0] < 0:
                fates[place] = (number, facts.reason)
    return fates


def _by(found: Sequence[Facts], left: Iterable[int], key: Callable[[Facts], Any]) -> Iterable[list[int]]:
    """Places of what has one key, those with the fewest turns first."""
    groups: dict[Any, list[int]] = {}
    for place in left:
        groups.setdefault(key(found[place]), []).append(place)
    return (sorted(group, key=lambda place: (found[place].turns, found[place].id)) for group in groups.values())


def _same_patch(found: Sequence[Facts], left: Iterable[int]) -> Iterable[tuple[int, str]]:
    patched = [place for place in left if found[place].patch]
    for first, *others in _by(found, patched, lambda facts: (facts.task, facts.is_wrong, facts.patch)):
        for place in others:
            yield place, f"its patch is that of {found[first].id!r}, which has {found[first].turns:,} turns"


def _beyond(found: Sequence[Facts], left: Iterable[int], most: float) -> Iterable[tuple[int, str]]:
    for group in _by(found, left, lambda facts: (facts.task, facts.is_wrong)):
        for rank, place in enumerate(group[int(most) :], start=int(most) + 1):
            yield place, f"it is number {rank:,} by turns of {len(group):,} episodes of its task"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
