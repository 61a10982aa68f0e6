"""Steered: one answer of a server that turns the model away from checks while it writes.

The server is vLLM with the plug-in of `burnish.steer` and has the vectors loaded by a name; the call alone says which,
and how strongly. A server that has them not refuses the call, and one without the plug-in cannot be told from here.

    steer:careful@qwen        steer(vectors=careful,coef=-4)@qwen
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from burnish.core.errors import SettingsError
from burnish.reason.calls import BudgetSpent, Conversation
from burnish.reason.session import Result, Session
from burnish.reason.strategies.base import Strategy


class Steered(Strategy):
    """One call.

    Attributes:
        vectors: by their name on the server.
        coef: -1 takes away what a step's end says of checks, 0 changes nothing.
    """

    name: ClassVar[str] = "steer"
    short: ClassVar[str] = "vectors"

    vectors: str = Field(pattern=r"^[\w.-]+$")
    coef: float = Field(default=-1.0, allow_inf_nan=False)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        given = session.fields.get("vllm_xargs", {})
        if not isinstance(given, Mapping):
            raise SettingsError(f"is {given!r}, which is no object", where="vllm_xargs")
        asked = {**given, "steer": f"{self.vectors}:{self.coef:g}"}
        try:
            reply = await session.own(conversation, "answer", vllm_xargs=asked)
        except BudgetSpent:
            return session.result(None, stopped="budget")
        return session.result(reply, [[reply]])
