"""What all strategies share: settings, a label, and how one reads earlier answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from burnish.reason import prompts
from burnish.reason.calls import BudgetSpent, ContextExceeded, Conversation, Reply
from burnish.reason.session import Result, Session


class Strategy(BaseModel, ABC):
    """Settings, and what to do with them.

    Attributes:
        name: by which `burnish.reason.strategy` finds it.
        short: the setting that stands behind a colon, as in `gsa:4`.
        reads_files: it reads files of this machine, so that no client of a server may name it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]
    short: ClassVar[str] = "n"
    reads_files: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What the server must do, by the names of `burnish.reason.probe.WORDS`."""
        return ()

    def needs_of(self, model: str) -> tuple[str, ...]:
        """What one of the models that it asks must do."""
        return self.needs

    @property
    def asks(self) -> tuple[str, ...]:
        """The models that it asks; none where it asks the one of the session."""
        return ()

    @property
    def label(self) -> str:
        """The whole of it in one text: the part of a path that is its own."""
        said = self.model_dump(mode="json")
        shown = (f"{key}={_joined(value)}" for key, value in said.items() if value not in (None, "", []))
        return f"{self.name}({','.join(shown)})" if said else self.name

    @abstractmethod
    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        """The answer, with what it used. A budget that is spent ends it with what it has."""


def _joined(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def several(num: int) -> tuple[str, ...]:
    """Of samples that must differ."""
    return ("samples",) if num > 1 else ()


async def aggregated(
    session: Session,
    conversation: Conversation,
    candidates: Sequence[Reply],
    *names: object,
    prompt: str,
    limit: int | None = None,
    **call: Any,
) -> Reply:
    """One call that reads earlier answers: what was thought before them is left out, the answers are whole.

    Where the conversation becomes too long for the model, the longest candidate is left out once, and noted.
    """
    texts = [shortened(one.text or one.reasoning, limit) for one in candidates]
    template = session.prompts.get(prompt) or prompts.ours(prompt)
    try:
        return await session.own(prompts.appended(conversation, prompts.filled(template, texts)), *names, **call)
    except ContextExceeded:
        if len(texts) < 2:
            raise
        texts.remove(max(texts, key=len))
        session.notes.append("the longest candidate was left out where all were longer than the model's context")
        again = prompts.appended(conversation, prompts.filled(template, texts))
        return await session.own(again, *names, "shorter", **call)


def shortened(text: str, limit: int | None) -> str:
    """At most so many characters, cut from the middle, where an answer says least."""
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[len(text) - half :]}"


__all__ = ["BudgetSpent", "Strategy", "aggregated", "several", "shortened"]
