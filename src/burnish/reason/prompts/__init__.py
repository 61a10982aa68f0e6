"""The prompts, one text file each: what follows a task in the same message, so that its own words come first.

A prefix that all calls of one problem share is computed once by servers that keep prefixes. `{candidates}` and
`{number}` stand for earlier answers and how many there are, `{skills}` for instructions of a population; a user's own
text takes the place of a file by its name, from Python or by a file of theirs:

    gsa = "Several answers follow. {candidates} Write a better one."
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from burnish.core.errors import SettingsError, nearest
from burnish.reason.calls import Conversation


@cache
def names() -> tuple[str, ...]:
    return tuple(
        sorted(one.name.removesuffix(".txt") for one in files(__name__).iterdir() if one.name.endswith(".txt"))
    )


@cache
def ours(name: str) -> str:
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()


def check(prompts: Mapping[str, str]) -> None:
    """Refuses texts of unknown names, and those that leave candidates out.

    Raises:
        SettingsError: naming the prompt.
    """
    for name, text in prompts.items():
        if name not in names():
            guess = nearest(name, list(names()))
            fix = f"did you mean {guess!r}?" if guess else f"use one of {', '.join(names())}"
            raise SettingsError(f"there is no prompt {name!r}", fix=fix)
        if not text.strip():
            raise SettingsError(f"the prompt {name!r} is empty", fix="write what the model is to read")
        for place in ("{candidates}", "{skills}"):
            if place in ours(name) and place not in text:
                raise SettingsError(f"the prompt {name!r} has no {place}", fix="say where they go")


def read_prompts(text: str, *, where: str) -> dict[str, str]:
    """Texts by name, from TOML.

    Raises:
        SettingsError: no TOML, or a text that cannot be.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"is no TOML ({error})", where=where) from None
    for name, value in found.items():
        if not isinstance(value, str):
            raise SettingsError(f"{name!r} is no text", where=where, fix='write NAME = "the text"')
    check(found)
    return found


def filled(text: str, candidates: Sequence[str], title: str = "Attempt") -> str:
    """A prompt with numbered candidates in their order."""
    shown = "\n\n".join(f"{title} {place}:\n{one.strip()}" for place, one in enumerate(candidates, start=1))
    return text.replace("{number}", str(len(candidates))).replace("{candidates}", shown)


def appended(conversation: Conversation, text: str) -> list[dict[str, Any]]:
    """The conversation whose last message of the user goes on with a text; pictures and earlier turns stay."""
    messages = [dict(message) for message in conversation]
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content") or ""
        if isinstance(content, str):
            message["content"] = f"{content.rstrip()}\n\n{text}"
        else:
            message["content"] = [*content, {"type": "text", "text": f"\n\n{text}"}]
        return messages
    raise SettingsError("the conversation has no message of a user", fix="add the task as one")
