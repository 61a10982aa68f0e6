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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from burnish.core import interrupts
from burnish.core.errors import EngineError, MissingExtraError, SettingsError
from burnish.core.outside import shown
from burnish.serve.telemetry import Recorder, check_recording
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
        patience: seconds without a word after which a request is given up.

    Attributes:
        served: requests that ended.
        failed: those that the server refused or did not answer whole, by why.
        late: those that had to wait here because `most` were under way.
    """

    def __init__(
        self,
        workload: Workload,
        url: str,
        model: str,
        *,
        most: int,
        recorder: Recorder,
        key: str = "",
        patience: float = 600.0,
    ) -> None:
        self.served, self.late = 0, 0
        self.failed: dict[str, int] = {}
        self._workload, self._url, self._model, self._recorder = workload, url.rstrip("/"), model, recorder
        self._places = asyncio.Semaphore(most)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._began = self._heard = 0
        self._patience = patience

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
        self._began = self._heard = time.monotonic_ns()
        limits = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self._patience)
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

    def _hear(self) -> None:
        """The server lives."""
        self._heard = time.monotonic_ns()

    async def _until(self, moment: int) -> None:
        await asyncio.sleep(max(0.0, (self._began + moment - time.monotonic_ns()) / _SECOND))

    async def _ask(
        self, session: Any, workflow: Workflow, place: int, prompt: list[int], said: dict[str, Any]
    ) -> list[int] | None:
        """The tokens of an answer; None where there is no whole one."""
        from aiohttp import SocketTimeoutError

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
        answer = _Answer()
        async with self._places:
            try:
                async with session.post(f"{self._url}/completions", json=body) as reply:
                    if reply.status != 200:
                        why = f"status {reply.status}: {(await reply.read()).decode('utf-8', 'replace')[:200]}"
                    else:
                        why = await answer.read(reply.content, self._hear)
            except SocketTimeoutError:
                why = f"not a word for {self._patience:g} seconds"
                if (time.monotonic_ns() - self._heard) / _SECOND >= self._patience:
                    what = f"said nothing for {self._patience:g} s; {self.served:,} requests were served before"
                    raise EngineError(what, where=self._url, fix="see its log, or give more --patience") from None
        if why:
            self.failed[why] = self.failed.get(why, 0) + 1
            return None
        self._record(workflow, place, turn, arrival, answer.first, answer.usage, said)
        return answer.tokens

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
        details = usage.get("prompt_tokens_details")
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
            prompt_tokens=_count(usage, "prompt_tokens", turn.prompt),
            cached_tokens=_count(details if isinstance(details, dict) else {}, "cached_tokens", 0),
            output_tokens=_count(usage, "completion_tokens", turn.output),
        )


def model_of(url: str, key: str = "") -> str:
    """The first model that a server has.

    Raises:
        EngineError: it is not there, or has none.
        SettingsError: no address.
    """
    check_url(url)
    asked = urllib.request.Request(
        f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EngineError(f"is no server with a model ({error})", where=url, fix="give its address up to /v1") from None


@dataclass
class _Answer:
    """What came of one request.

    Attributes:
        tokens: ids.
        first: when the first of them came, in nanoseconds.
        usage: the server's own counts.
    """

    tokens: list[int] = field(default_factory=list)
    first: int | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    async def read(self, lines: Any, hear: Callable[[], None]) -> str:
        """Takes a stream of server-sent events; returns why it is no whole answer, or nothing. Calls `hear` for each.

        A page of another program, an error in the middle and an end without [DONE] come with status 200 as well.
        """
        from aiohttp.http_exceptions import LineTooLong

        try:
            async for line in lines:
                hear()
                if not line.startswith(b"data:"):
                    continue
                if line[5:].strip() == b"[DONE]":
                    return "" if self.tokens or self.first else "an answer without a token"
                if why := self._take(json.loads(line[5:])):
                    return why
        except LineTooLong:
            return "an event that is too long"
        except (ValueError, RecursionError):
            return "an event that is no JSON"
        return "an answer that does not end with [DONE], as that of vLLM does"

    def _take(self, part: Any) -> str:
        """One event; returns what is wrong with it."""
        if not isinstance(part, dict):
            return "an event that is no JSON object"
        if part.get("error"):
            return f"an error in its answer: {str(part['error'])[:200]}"
        if isinstance(usage := part.get("usage"), dict):
            self.usage = usage
        choices = part.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            return "an event whose choices are no list of objects"
        for choice in choices:
            ids = choice.get("token_ids") or []
            if not isinstance(ids, list) or not all(type(one) is int for one in ids):
                return "an event whose token_ids are no whole numbers"
            if self.first is None and (ids or choice.get("text")):
                self.first = time.monotonic_ns()
            self.tokens += ids
        return ""


def _count(said: dict[str, Any], name: str, otherwise: int) -> int:
    """A number of tokens that a server says; `otherwise` where it says none."""
    value = said.get(name)
    return value if type(value) is int and value >= 0 else otherwise


def check_url(url: str) -> None:
    """
    Raises:
        SettingsError: no address that a server can be asked at.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise SettingsError("is no address of a server", where=shown(url), fix="write http://HOST:PORT/v1")


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
    workload: Workload,
    url: str,
    model: str,
    directory: Path,
    *,
    most: int,
    key: str = "",
    about: dict[str, Any],
    patience: float = 600.0,
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
        patience: seconds without a word after which a request is given up.

    Raises:
        EngineError: the server is not there, or is gone; what ended before is recorded. Or it answered no request.
        OutputError: there is a `requests.jsonl` that is no recording.
        SettingsError: no address.
    """
    check_url(url)
    path = directory / FILE
    check_recording(path)
    directory.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    recorder = Recorder(path, about)
    made = Replay(workload, url, model, most=most, key=key, recorder=recorder, patience=patience)
    try:
        interrupts.run(made.run())
    finally:
        recorder.close()
    if not made.served:
        why = "; ".join(list(made.failed)[:3]) or "nothing was asked"
        raise EngineError(f"answered none of the requests ({why})", where=url, fix="give the address of a vLLM")
    return path, made
