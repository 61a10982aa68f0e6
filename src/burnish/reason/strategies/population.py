"""Population: the member, or the team of specialists, that evolution over other problems found best.

    evolve     burnish reason evolve: members with skills compete on problems to learn from, generation after
               generation (`burnish.reason.evolve`); unseen problems decide who is best
    ask        the kind of the task by its words, the specialist of that kind, the skills of the specialist with the
               strongest trails and the likest triggers after the task, n samples, the majority of their answers

After the idea of populations of language-model workers with shared pheromone memory, division of labour and inherited
skills; no text or code of it was found, so the form is ours. Nothing is learned while it answers. Where no skill is
shown, its samples are the plain ones of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from burnish.core.errors import DataError
from burnish.reason import prompts
from burnish.reason.calls import Conversation, digest
from burnish.reason.journal import JournalReader
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy
from burnish.reason.strategies.population_rules import cosine, likeness, words
from burnish.reason.strategies.rsa import answered

WINNER = "winner"
"""The record of an evolution's journal that holds its team."""


class Skill(BaseModel):
    """A short instruction, and for which tasks it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    trigger: str
    text: str

    @property
    def shown(self) -> str:
        return f"When: {self.trigger}\nDo: {self.text}"


class Member(BaseModel):
    """Skills, how much it takes to make it take a kind of task, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    skills: tuple[Skill, ...] = ()
    thresholds: Mapping[str, float] = Field(default_factory=dict)
    parents: tuple[str, ...] = ()


class Team(BaseModel):
    """Who is asked about which kind of task, and with which skills. One member for all kinds is a team as well.

    Attributes:
        name: "bare" (no skills), a member's, or "team".
        specialists: member by kind of task.
        signatures: words of each kind's tasks with their counts, by which an unseen task finds its kind.
        trails: by kind and skill.
        shown: most skills with one task.
        alpha, beta: weight of trails and of likeness.
        words: how skills are shown.
        known: of the tasks that it was evolved and chosen with, by content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    specialists: Mapping[str, Member]
    signatures: Mapping[str, Mapping[str, int]]
    trails: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    shown: int = 2
    alpha: float = 1.0
    beta: float = 2.0
    words: str = "{skills}"
    known: tuple[str, ...] = ()

    def asks(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The conversation as the team asks it."""
        task = last_words(conversation)
        counts = words(task)
        kind = max(self.signatures, key=lambda one: cosine(counts, self.signatures[one]))
        weights = weighed(self.specialists[kind], kind, task, self.trails, self.alpha, self.beta)
        best = sorted(weights, key=lambda name: -weights[name])[: self.shown]
        skills = {skill.name: skill for skill in self.specialists[kind].skills}
        return with_skills(conversation, [skills[name] for name in best], self.words)


class Population(Strategy):
    """n calls.

    Attributes:
        run: directory of `burnish reason evolve`.
        n: samples, of which the majority counts.
        team: in place of `run`; only from Python.
    """

    name: ClassVar[str] = "population"
    reads_files: ClassVar[bool] = True
    run: str = ""
    n: int = Field(default=1, ge=1)
    team: Team | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.run) == bool(self.team):
            raise ValueError("name what was evolved: population(run=DIR), a directory of burnish reason evolve")
        return self

    @cached_property
    def evolved(self) -> Team:
        return self.team or found_by(self.run)

    @property
    def label(self) -> str:
        """Names the team by what it is, so that a copy of the directory is the same strategy."""
        return f"{self.name}({self.evolved.name}={digest(self.evolved.model_dump(mode='json'))},n={self.n})"

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        if self.run and digest(last_words(conversation)) in self.evolved.known:
            session.notes.append(
                "the population learned from this problem, or was chosen by it: its score says nothing"
            )
        asked = self.evolved.asks(conversation)
        plain = asked == [dict(message) for message in conversation]
        calls = [session.sample(asked, slot) if plain else session.own(asked, slot) for slot in range(self.n)]
        replies, spent = await until_spent(calls)
        return await answered(session, [replies], "majority", spent=spent)


def found_by(run: str) -> Team:
    """The team that an evolution found.

    Raises:
        DataError: the directory holds no finished evolution.
    """
    reader = JournalReader(run)
    try:
        record = reader.records().get(WINNER)
    finally:
        reader.close()
    if record is None:
        raise DataError(
            "holds no population whose winner is decided", where=run, fix="make one with burnish reason evolve"
        )
    try:
        return Team.model_validate(record)
    except ValidationError:
        raise DataError("holds a population of another version", where=run, fix="evolve it again") from None


def weighed(
    member: Member, kind: str, task: str, trails: Mapping[str, Mapping[str, float]], alpha: float, beta: float
) -> dict[str, float]:
    """The weight of each of a member's skills for a task; a trail that nobody has walked is 1."""
    walked = trails.get(kind, {})
    return {
        skill.name: walked.get(skill.name, 1.0) ** alpha * likeness(task, skill.trigger) ** beta
        for skill in member.skills
    }


def with_skills(conversation: Conversation, skills: Sequence[Skill], text: str) -> list[dict[str, Any]]:
    """The conversation with skills after the task; without any, as it is."""
    if not skills:
        return [dict(message) for message in conversation]
    return prompts.appended(conversation, text.replace("{skills}", "\n\n".join(skill.shown for skill in skills)))


def last_words(conversation: Conversation) -> str:
    """The text of the user's last message."""
    for message in reversed(conversation):
        if message.get("role") == "user":
            content = message.get("content") or ""
            parts = [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]
            return "\n".join(parts)
    return ""
