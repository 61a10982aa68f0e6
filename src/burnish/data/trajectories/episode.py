"""One episode of an agent: a task, what was said and called, what came of it.

The three forms that are read (`burnish.data.trajectories.read`) become this one. Messages are those of a
`burnish.data.forms.Chat`; what a tool has answered is an observation, which the model has not written.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import kind_of_json
from burnish.data.forms import Chat
from burnish.data.trajectories.secrets import Redaction

LAST_CALLS = frozenset({"submit", "finish", "done", "complete", "exit"})
"""Calls that end an episode, and that no result needs to follow."""
FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Episode:
    """One attempt at one task.

    Attributes:
        id: names it; no other episode of the same data has it.
        task: what was attempted; several episodes may share it.
        chat: the conversation, and the tools where they are known. Secrets in it are redacted.
        reward: by the environment's own tests; None where it is not known.
        repository, commit: where the task comes from; "" where it is not known.
        patch: the final change as a unified diff; None where tasks have none.
        ending: how it ended in the words of its program; "" where that is not said.
        actions: one text a turn, the same for the same action.
        num_secrets: how many different secrets were redacted.
        where: file and line, or row.
    """

    id: str
    task: str
    chat: Chat
    reward: float | None = None
    repository: str = ""
    commit: str = ""
    patch: str | None = None
    ending: str = ""
    actions: tuple[str, ...] = field(default=(), repr=False)
    num_secrets: int = 0
    where: str = ""

    @property
    def num_turns(self) -> int:
        """Messages of the assistant."""
        return sum(message["role"] == "assistant" for message in self.chat)


def episode(chat: Chat, facts: dict[str, Any], *, where: str) -> Episode:
    """An episode out of a conversation and what is known beside it; secrets are redacted, calls checked.

    Args:
        chat: as `burnish.data.forms.as_row` gives it.
        facts: the fields of `Episode` by name, as they stand in the file.
        where: file and line.

    Raises:
        DataError: no turn of an assistant, a result without a call, or a reward that is no number.
    """
    if not any(message["role"] == "assistant" for message in chat):
        raise DataError("has no assistant message, so nothing to learn from", where=where)
    check_calls(chat, where)
    redaction = Redaction.of(chat)
    clean = Chat(redaction.messages(chat), chat.tools, where=where)
    patch = facts.get("patch")
    return Episode(
        id=_text(facts, "id", where) or where,
        task=_text(facts, "task", where) or _text(facts, "id", where) or where,
        chat=clean,
        reward=reward_of(facts.get("reward"), where),
        repository=repository_name(_text(facts, "repository", where)),
        commit=_text(facts, "commit", where).lower(),
        patch=None if patch is None else redaction.text(_text(facts, "patch", where)),
        ending=_text(facts, "ending", where),
        actions=tuple(action_of(message) for message in clean if message["role"] == "assistant"),
        num_secrets=len(redaction),
        where=where,
    )


def check_calls(chat: Chat, where: str) -> None:
    """Refuses results that answer nothing.

    Raises:
        DataError: naming the message.
    """
    open_calls: list[str | None] = []
    for number, message in enumerate(chat, start=1):
        if message["role"] == "assistant":
            open_calls = [call.get("id") for call in message.get("tool_calls", ())]
        elif message["role"] == "tool":
            if not open_calls:
                raise DataError(f"message {number} is the result of a tool, but nothing was called", where=where)
            answered = message.get("tool_call_id")
            if answered is not None and answered not in open_calls and any(open_calls):
                raise DataError(f"message {number} answers the call {answered!r}, which was not made", where=where)
            open_calls.remove(answered if answered in open_calls else open_calls[0])


def reward_of(value: Any, where: str) -> float | None:
    """A reward as a number; true and false are 1 and 0.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        kind = value if isinstance(value, float) else kind_of_json(value)
        raise DataError(f"has a reward that is no number but {kind}", where=where)
    return float(value)


def repository_name(name: str) -> str:
    """`owner/name`, in small letters, of the ways to write a repository."""
    name = re.sub(r"^(https?://|git@)?([\w.-]+\.(com|org|net|io)[/:])?", "", name.strip().lower())
    return name.removesuffix("/").removesuffix(".git").replace("__", "/")


def action_of(message: dict[str, Any]) -> str:
    """What a turn does, without what is thought before: its calls, else its last block of code, else all it says."""
    if calls := message.get("tool_calls"):
        named = [[call["function"]["name"], call["function"].get("arguments")] for call in calls]
        return json.dumps(named, sort_keys=True, ensure_ascii=False)
    blocks = FENCE.findall(message["content"])
    return " ".join((blocks[-1] if blocks else message["content"]).split())


def _text(facts: dict[str, Any], name: str, where: str) -> str:
    value = facts.get(name)
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"has a {name} that is no text but {kind_of_json(value)}", where=where)
    return str(value)
