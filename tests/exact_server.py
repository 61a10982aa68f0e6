"""An OpenAI-like server whose every answer follows from the request, with faults on demand.

It speaks real HTTP on the loopback from a thread of its own. What it answers is a rule of (model, messages, seed); it
counts what it was asked, and what it answered. It is for exact tests and says nothing about the quality of any model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Rule = Callable[[str, list[dict[str, Any]], random.Random], str]
Body = dict[str, Any]


def chance(body: Body) -> random.Random:
    """Follows from model, messages and seed alone."""
    parts = [body["model"], body["messages"], body.get("seed")]
    return random.Random(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())


def text_of(messages: list[dict[str, Any]]) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def candidates(messages: list[dict[str, Any]]) -> list[str]:
    """The final answers of the attempts that a prompt shows."""
    return re.findall(r"(?:Attempt|Response) \d+:\n.*?Final answer: (\S+)", text_of(messages), re.DOTALL)


@dataclass
class Chain:
    """Right ("1") with probability `first`; an aggregate with `any_right` where a candidate is right, else `none`."""

    first: float = 0.3
    any_right: float = 0.9
    none: float = 0.05

    def __call__(self, model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        seen = candidates(messages)
        right = self.first if not seen else self.any_right if "1" in seen else self.none
        return f"Final answer: {1 if draw.random() < right else draw.randint(2, 9)}"


def majority(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
    """The most frequent of the answers that are shown, the first of equals; else right with probability 0.4."""
    seen = candidates(messages)
    if seen:
        return f"Final answer: {max(seen, key=lambda one: (seen.count(one), -seen.index(one)))}"
    return f"Final answer: {1 if draw.random() < 0.4 else draw.randint(2, 4)}"


@dataclass
class ExactServer:
    """
    Attributes:
        rule: the answer's text.
        latency: seconds at most before an answer, drawn anew for each request.
        faults: (share of requests, what happens): "429", "500", "html", "empty", "null", "break", "no usage".
        key: that a request must carry.
        context: characters of a conversation at most.
    """

    rule: Rule = field(default_factory=Chain)
    latency: float = 0.0
    faults: tuple[tuple[float, str], ...] = ()
    key: str = ""
    context: int = 10**9
    num_tops: int = 3
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    _now: int = 0

    def __enter__(self) -> ExactServer:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.asked[name] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.latency:
                await asyncio.sleep(random.uniform(0, self.latency))
            fault = self._fault()
            answer = self.refusal(request, body) or await self._faulty(request, fault) or self.answer(body, fault)
        finally:
            self._now -= 1
        if answer.status == 200 and fault in ("", "no usage"):
            self.answered[name] += 1
        return answer

    def _fault(self) -> str:
        drawn = random.random()
        for share, fault in self.faults:
            if drawn < share:
                return fault
            drawn -= share
        return ""

    def refusal(self, request: web.Request, body: Body) -> web.Response | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            return _error(401, f"Incorrect API key provided: {given}")
        if len(text_of(body["messages"])) > self.context:
            return _error(400, "This model's maximum context length is exceeded")
        return None

    async def _faulty(self, request: web.Request, fault: str) -> web.StreamResponse | None:
        if fault == "429":
            return web.Response(status=429, headers={"Retry-After": "0.01"}, text="slow down")
        if fault == "500":
            return _error(500, "internal error")
        if fault == "html":
            return web.Response(text="<html>a proxy's page</html>", content_type="text/html")
        if fault == "empty":
            return web.json_response({"choices": []})
        if fault == "null":
            return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
        if fault == "break":
            broken = web.StreamResponse(headers={"Content-Length": "1000"})
            await broken.prepare(request)
            await broken.write(b'{"choices": [{"mess')
            assert request.transport is not None
            request.transport.abort()
            return broken
        return None

    def answer(self, body: Body, fault: str = "") -> web.Response:
        reply = completion(self.rule, body, self.num_tops)
        self.tokens.update({name: count for name, count in reply["usage"].items() if isinstance(count, int)})
        if fault == "no usage":
            del reply["usage"]
        return web.json_response(reply)


def completion(rule: Rule, body: Body, num_tops: int = 3) -> Body:
    """The whole answer to a request."""
    draw = chance(body)
    text = rule(body["model"], body["messages"], draw)
    words = text.split()
    read = len(text_of(body["messages"]).split())
    finish = "stop"
    if (limit := body.get("max_tokens")) and len(words) > limit:
        words, finish = words[:limit], "length"
        text = " ".join(words)
    choice: Body = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if body.get("logprobs"):
        tops = min(num_tops, body.get("top_logprobs", 0))
        choice["logprobs"] = {"content": [_token(word, draw, tops) for word in words]}
    usage = {"prompt_tokens": read, "completion_tokens": len(words), "total_tokens": read + len(words)}
    whole = {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
    if body.get("prompt_logprobs") is not None:
        tops = min(num_tops, body["prompt_logprobs"])
        positions = [_given(body["model"], word, tops) for word in text_of(body["messages"]).split()]
        whole["prompt_logprobs"] = [None, *positions[1:]]
    return whole


def _token(word: str, draw: random.Random, tops: int) -> Body:
    own = -draw.random() / 4
    others = [{"token": word, "logprob": own}, *({"token": f"?{i}", "logprob": own - 1 - i} for i in range(tops - 1))]
    return {"token": word, "logprob": own, "top_logprobs": others[:tops]}


def given_logprob(model: str, word: str) -> float:
    """Of a word wherever it stands: it follows from the model and the word."""
    return -random.Random(f"{model} {word}").random()


def _given(model: str, word: str, tops: int) -> Body:
    own = given_logprob(model, word)
    others = {str(i): {"logprob": own - 1 - i, "rank": i + 2, "decoded_token": f" ?{i}"} for i in range(tops - 1)}
    return {"own": {"logprob": own, "rank": 1, "decoded_token": f" {word}"}, **others}


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "error"}}, status=status)


class InProcess:
    """The same answers without HTTP, for tests of many thousand calls."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule or Chain()
        self.bodies: list[Body] = []

    async def __call__(self, endpoint: object, body: Any) -> bytes:
        self.bodies.append(dict(body))
        return json.dumps(completion(self.rule, dict(body))).encode()
