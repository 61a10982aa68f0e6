"""Going on from what a model has written, think block included: what control while decoding is made of.

Each piece is a request of its own whose last message is the assistant's unfinished turn, so that the server must
continue it (`prefill` of a probe) and should keep prefixes, or it reads the whole text again for every piece.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from burnish.reason import prompts
from burnish.reason.calls import Conversation, Reply
from burnish.reason.replies import split
from burnish.reason.session import Session

OPEN, CLOSE = "<think>", "</think>"


async def continued(session: Session, conversation: Conversation, written: str, *names: object, **fields: Any) -> Reply:
    """What follows a text that the assistant has begun, without that text where a server repeats it.

    A reply that was cut and is that text and nothing more has gone in a circle: what is cut has something new.
    """
    if not written:
        return await session.own(conversation, *names, **fields)
    turns = [*conversation, {"role": "assistant", "content": written}]
    asked = {**session.pool.endpoint(session.model).continuing, **fields}
    reply = await session.own(turns, *names, **asked)
    return reply if reply.cut and reply.text == written else replace(reply, text=reply.text.removeprefix(written))


async def forced(
    session: Session, conversation: Conversation, reply: Reply, written: str, *, most: int
) -> tuple[Reply, str]:
    """An answer of at most so many tokens where a text was cut; one that ended by itself stays as it is."""
    if not reply.cut:
        return reply, written
    asked = cued(session, written)
    reply = await continued(session, conversation, asked, "answer", max_tokens=most)
    return reply, raw(reply, asked)


def raw(reply: Reply, written: str = "") -> str:
    """The text with a reply to it, as the model wrote both."""
    if not reply.reasoning:
        return written + reply.text
    begun = written if OPEN in written else f"{written}{OPEN}\n"
    thinks_on = reply.cut and not reply.text
    return f"{begun}{reply.reasoning}" if thinks_on else f"{begun}{reply.reasoning}\n{CLOSE}\n\n{reply.text}"


def cued(session: Session, written: str) -> str:
    """The text, whose thinking is ended here, with the words after which an answer comes."""
    ended = f"{written.rstrip()}\n{CLOSE}" if OPEN in written and CLOSE not in written else written.rstrip()
    return f"{ended}\n\n{_words(session, 'cue')}".lstrip()


def reopened(session: Session, written: str) -> str:
    """The text whose end, that of its thinking where it has one, is replaced by words that go on."""
    return f"{written.partition(CLOSE)[0].rstrip()}\n{_words(session, 'more')}"


def finished(reply: Reply, written: str) -> Reply:
    """The whole text in place of its last piece."""
    text, reasoning = split({"content": written})
    return replace(reply, text=text, reasoning=reasoning)


def _words(session: Session, name: str) -> str:
    return session.prompts.get(name) or prompts.ours(name)
