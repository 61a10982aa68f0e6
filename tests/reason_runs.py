"""Runs of strategies against the exact server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.reason import Endpoint, Journal, Pool, Result, Session, strategy
from burnish.reason.strategies import Strategy
from exact_server import ExactServer, InProcess

QUESTION = "What is the answer to problem"


class Ends:
    """Answers as the exact server writes them."""

    def extract(self, text: str) -> str | None:
        return text.rpartition("Final answer: ")[2].strip() if "Final answer: " in text else None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


async def solve(pool: Pool, made: Strategy, problem: str, **session: Any) -> Result:
    conversation = [{"role": "user", "content": f"{QUESTION} {problem}?"}]
    return await made(conversation, Session(pool, problem, made.label, answers=Ends(), **session))


async def solve_all(pool: Pool, specs: Sequence[str | Strategy], num: int) -> dict[str, Result]:
    made = [strategy(spec) if isinstance(spec, str) else spec for spec in specs]
    tasks = {f"p{i}|{one.label}": solve(pool, one, f"p{i}") for i in range(num) for one in made}
    return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))


def run(
    directory: Path,
    specs: Sequence[str | Strategy],
    num: int = 1,
    *,
    server: ExactServer | None = None,
    transport: Any = None,
    endpoints: Sequence[Endpoint] = (),
    **pool: Any,
) -> dict[str, Result]:
    """Results by "problem|strategy" of a whole run; without a server or transport, in this process."""
    url = server.url if server else "http://127.0.0.1:1/v1"
    endpoints = endpoints or [Endpoint(url, "exact", api_key="sk-canary-1234")]

    async def go() -> dict[str, Result]:
        secrets = [secret for one in endpoints for secret in one.secrets]
        with Journal(directory, {"specs": [str(spec) for spec in specs]}, secrets=secrets) as journal:
            carried = InProcess() if transport is None and server is None else transport
            carried = None if carried == "http" else carried
            async with Pool(endpoints, journal, transport=carried, first_wait=0.01, **pool) as made:
                return await solve_all(made, specs, num)

    return asyncio.run(go())
