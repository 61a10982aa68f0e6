"""A workload, asked of a live vLLM: the same arrivals, lengths, shared beginnings and pauses as a simulation has.

Prompts are lists of token ids. A piece of a prompt that the workload names is drawn with its name as the seed, so that
equal pieces are equal text; a later turn begins with the tokens of the one before it and of its answer. The server is
told not to stop before the answer has its length. At most so many requests are under way at a time: those above wait
here, and are counted.

What was measured is written as it comes, in the form of telemetry, so that a server which dies in the middle leaves
all that ended before, and `burnish serve sim` reads it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from burnish.core.errors import EngineError, MissingExtraError
from burnish.serve.telemetry import Recorder
from burnish.serve.workload import Turn, Workflow, Workload

FILE = "requests.jsonl"
WORDS = range(10, 250)
"""Token ids that prompts are made of; every vocabulary has them."""
_SECOND = 1_000_000_000


class Replay:
    """A replay under way.

    Args:
        workload: what is asked.
        url: up to and with /v1.
        model: by its name there.
        most: requests under way at a time.
        key: of the server.
        recorder: where what was measured goes.

    Attributes:
        served: requests that ended.
        failed: those that the server refused, by its word.
        late: those that had to wait here because `most` were under way.
    """

    def __init__(
        self, workload: Workload, url: str, model: str, *, most: int, recorder: Recorder, key: str = ""
    ) -> None:
        self.served, self.late = 0, 0
        self.failed: dict[str, int] = {}
        self._workload, self._url, self._model, self._recorder = workload, url.rstrip("/"), model, recorder
        self._places = asyncio.Semaphore(most)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._began = 0

    async def run(self) -> None:
        """
        Raises:
            EngineError: the server is gone; what ended before is recorded.
            MissingExtraError: aiohttp is not installed.
        """
        try:
            import aiohttp
        except ImportError:
            raise MissingExtraError("aiohttp", "serve", "replaying a trace") from None
        self._began = time.monotonic_ns()
        limits = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=None, sock_connect=30)
        async with aiohttp.ClientSession(connector=limits, timeout=patience, headers=self._headers) as session:
            tasks = [asyncio.ensure_future(self._workflow(session, one)) for one in self._workload.workflows]
            try:
                await asyncio.gather(*tasks)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                what = f"ended in the middle ({error}); {self.served:,} requests were served before"
                raise EngineError(what, where=self._url, fix="see its log") from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._recorder.flush()

    async def _workflow(self, session: Any, workflow: Workflow) -> None:
        text: list[int] = []
        await self._until(workflow.arrival)
        for place, turn in enumerate(workflow.turns):
            text = prompt_of(self._workload, workflow, place, text)
            said: dict[str, Any] = {"tenant": workflow.tenant} if workflow.tenant else {}
            if len(workflow.turns) > 1:
                said |= {"program": workflow.name, "turn": place}
                said |= {"tool": turn.tool} if place + 1 < len(workflow.turns) else {"last": 1}
            answer = await self._ask(session, workflow, place, text, said)
            if answer is None:
                return
            text = text + answer
            await asyncio.sleep(turn.pause / _SECOND)

    async def _until(self, moment: int) -> None:
        await asyncio.sleep(max(0.0, (self._began + moment - time.monotonic_ns()) / _SECOND))

    async def _ask(
        self, session: Any, workflow: Workflow, place: int, prompt: list[int], said: dict[str, Any]
    ) -> list[int] | None:
        """The tokens of an answer; None where the server refused."""
        turn, arrival = workflow.turns[place], time.monotonic_ns()
        self.late += self._places.locked()
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": turn.output,
            "min_tokens": turn.output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "vllm_xargs": said,
        }
        if not said:
            del body["vllm_xargs"]
        async with self._places, session.post(f"{self._url}/completions", json=body) as reply:
            if reply.status != 200:
                why = f"status {reply.status}: {(await reply.text())[:200]}"
                self.failed[why] = self.failed.get(why, 0) + 1
                return None
            answer, first, usage = [], None, {}
            async for part in _events(reply.content):
                usage = part.get("usage") or usage
                for choice in part.get("choices") or ():
                    ids = choice.get("token_ids") or []
                    if first is None and (ids or choice.get("text")):
                        first = time.monotonic_ns()
                    answer += ids
        self._record(workflow, place, turn, arrival, first, usage, said)
        return answer

    def _record(
        self,
        workflow: Workflow,
        place: int,
        turn: Turn,
        arrival: int,
        first: int | None,
        usage: dict[str, Any],
        said: dict[str, Any],
    ) -> None:
        now, began = time.monotonic_ns(), self._began
        self.served += 1
        details = usage.get("prompt_tokens_details") or {}
        self._recorder.write(
            "request",
            t_ns=now - began,
            request=f"{workflow.name}:{place}",
            tenant=workflow.tenant,
            program=said.get("program", ""),
            turn=place,
            tool=said.get("tool", ""),
            end="length",
            arrival_ns=arrival - began,
            admitted_ns=None if first is None else first - began,
            first_token_ns=None if first is None else first - began,
            prompt_tokens=usage.get("prompt_tokens", turn.prompt),
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=usage.get("completion_tokens", turn.output),
        )


def model_of(url: str, key: str = "") -> str:
    """The first model that a server has.

    Raises:
        EngineError: it is not there, or has none.
    """
    asked = urllib.request.Request(
        f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EngineError(f"is no server with a model ({error})", where=url, fix="give its address up to /v1") from None


async def _events(lines: Any) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    async for line in lines:
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            yield json.loads(line[5:])


def prompt_of(workload: Workload, workflow: Workflow, place: int, before: list[int]) -> list[int]:
    """Token ids of the prompt of a turn that follows the conversation `before`."""
    turn, text = workflow.turns[place], list(before)
    if not place:
        for block in turn.blocks:
            draw = random.Random(block)
            text += [draw.choice(WORDS) for _ in range(workload.block_tokens)]
    draw = random.Random(f"{workflow.name}:{place}")
    text += [draw.choice(WORDS) for _ in range(turn.prompt - len(text))]
    return text[: turn.prompt]


def replay(
    workload: Workload, url: str, model: str, directory: Path, *, most: int, key: str = "", about: dict[str, Any]
) -> tuple[Path, Replay]:
    """Asks a workload of a server; returns the recording and the counts.

    Args:
        workload: what is asked.
        url: of the server, up to and with /v1.
        model: by its name there.
        directory: of `requests.jsonl`, which is written anew.
        most: requests under way at a time.
        key: of the server.
        about: what is known of the run, such as its policy.

    Raises:
        EngineError: the server is not there, or is gone; what ended before is recorded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    path.unlink(missing_ok=True)
    recorder = Recorder(path, about)
    made = Replay(workload, url, model, most=most, key=key, recorder=recorder)
    try:
        asyncio.run(made.run())
    finally:
        recorder.close()
    return path, made
