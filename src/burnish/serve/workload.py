"""What is asked of a server: workflows, each one turn or several with pauses between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RouterName = Literal["least-loaded", "workflow", "round-robin"]
"""How requests are spread over engines; see `burnish.serve.simulate`."""
Mode = Literal["off", "telemetry", "shadow", "advise", "enforce"]
"""What the plug-in does in a live server; see `burnish.serve.watch`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request.

    Attributes:
        prompt: tokens, the conversation so far included.
        output: tokens of the answer, the one that ends it included.
        pause: nanoseconds from the end of the answer to the next turn; nothing for the last.
        tool: what is called in the pause; empty for the last turn.
        blocks: ids of the pieces of the prompt, `Workload.block_tokens` each, the last perhaps shorter; equal ids at
            the beginning of two prompts are equal beginnings. Without them a prompt shares nothing but with the turns
            of its own workflow before it.
    """

    prompt: int
    output: int
    pause: int = 0
    tool: str = ""
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Workflow:
    """Turns that follow one another: a program of an agent, a conversation, or a single request.

    Attributes:
        name: unique.
        tenant: as "organisation/team/tenant".
        arrival: nanoseconds from the beginning.
        turns: at least one. A later turn comes its pause after the end of the one before; its prompt begins with all
            of that one's prompt and answer.
    """

    name: str
    tenant: str
    arrival: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Workload:
    """Workflows in order of arrival.

    Attributes:
        workflows: as above.
        source: where they are from, for reports.
        block_tokens: tokens of a piece that `Turn.blocks` names; 0 without any.
        answers_in_blocks: whether the pieces go on through the answer; all of them are whole then.
        synthetic: what about them is made up, a clause each ("tenants are drawn"), for every output.
        dropped: rows of the source that were left out, by reason.
    """

    workflows: tuple[Workflow, ...]
    source: str = ""
    block_tokens: int = 0
    synthetic: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    answers_in_blocks: bool = False

    @property
    def num_requests(self) -> int:
        return sum(len(workflow.turns) for workflow in self.workflows)
