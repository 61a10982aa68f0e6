"""Requests that name a strategy: its calls go to the backend through a journal, its answer back as an OpenAI object.

A request with a seed has a name that follows from its content: asked again, after a crash as well, it is answered from
the journal as far as that goes. Without a seed every request is another draw.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from burnish.reason.calls import Conversation, Endpoint, Reply, UpstreamError, Usage, digest
from burnish.reason.journal import Journal
from burnish.reason.pool import Pool, Transport
from burnish.reason.serve.shapes import DONE, Refusal, comment, error_of, event, head, usage_object
from burnish.reason.serve.wanted import Wanted
from burnish.reason.session import Answers, Result, Session, Texts, gathered
from burnish.reason.strategies.base import Strategy

KEEP_ALIVE = 5.0
"""Seconds of silence after which a stream says that it lives."""
ATTEMPTS = 4
MOST = 128
"""Answers of one request."""
SCRATCH = 256 * 2**20
"""Bytes of calls that a server remembers which was given no directory to keep them in."""
TOPS = 20
"""Alternatives that are asked for where a strategy needs log-probabilities."""
_OURS = ("model", "messages", "prompt", "stream", "stream_options", "n", "seed", "burnish", "logprobs", "top_logprobs")


@dataclass(frozen=True)
class StrategyRequest:
    """One request.

    Attributes:
        problem: the first part of all its paths.
        fields: of every call.
    """

    name: str
    chat: bool
    strategy: Strategy
    model: str
    conversation: Conversation
    fields: Mapping[str, Any]
    n: int
    problem: str
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class _Solved:
    result: Result
    reply: Reply


@dataclass
class _Watched(Session):
    """A session that tells how far it is, and remembers the reply that its answer is."""

    told: Callable[[int, int], None] = lambda started, tokens: None
    said: Reply | None = field(default=None)

    async def _call(self, path: str, conversation: Conversation, model: str | None, fields: Mapping[str, Any]) -> Reply:
        self.told(1, 0)
        reply = await super()._call(path, conversation, model, fields)
        self.told(0, reply.usage.completion)
        return reply

    def result(self, reply: Reply | None, loops: Sequence[Sequence[Reply]] = (), *, stopped: str = "") -> Result:
        self.said = reply
        return super().result(reply, loops, stopped=stopped)


class Behind(Protocol):
    """What carries the calls."""

    @property
    def transport(self) -> Transport: ...
    def endpoint(self, model: str) -> Endpoint: ...


class Solver:
    """What answers for strategies.

    Args:
        backend: its endpoints and transport carry the calls.
        journal: where the calls are kept; closed with this.
        answers: how answers are found and compared; whole texts where nothing is said.
        prompts: texts in place of ours, by name.
    """

    def __init__(
        self,
        backend: Behind,
        journal: Journal,
        answers: Answers | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        self._backend, self._journal, self._answers = backend, journal, answers or Texts()
        self._prompts = dict(prompts or {})
        self._pool: Pool | None = None

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        await asyncio.to_thread(self._journal.close)

    def task(self, wanted: Wanted, body: Mapping[str, Any], *, chat: bool) -> StrategyRequest:
        """A request, understood.

        Raises:
            Refusal: it cannot be done.
        """
        task = _task(wanted, body, chat=chat)
        for name in (task.model, *task.strategy.asks):
            self._know(name)
        return task

    async def whole(self, task: StrategyRequest) -> dict[str, Any]:
        """The answer as one object."""
        return _whole(task, await self._solve(task, lambda started, tokens: None))

    async def events(self, task: StrategyRequest) -> AsyncGenerator[bytes]:
        """The answer as a stream: comments while the strategy works, then what it says. Closed early, the calls end."""
        yield comment(f"{task.strategy.label} over {task.model}")
        news = asyncio.Event()
        counts = {"started": 0, "back": 0, "tokens": 0}

        def told(started: int, tokens: int) -> None:
            counts["started"] += started
            counts["back"] += not started
            counts["tokens"] += tokens
            news.set()

        solving = asyncio.create_task(self._solve(task, told))
        solving.add_done_callback(lambda _: news.set())
        try:
            while not solving.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), KEEP_ALIVE)
                news.clear()
                yield comment("{back} of {started} calls are back, {tokens} tokens written".format(**counts))
            for chunk in _chunks(task, solving.result()):
                yield event(chunk)
            yield DONE
        except Exception as error:  # noqa: BLE001 - the status has been sent: an error is an event of the stream
            yield event(error_of(error)[1])
        finally:
            solving.cancel()
            await asyncio.gather(solving, return_exceptions=True)

    def _know(self, model: str) -> None:
        if self._pool is None:
            endpoint = self._backend.endpoint(model)
            # Clients decide how much they ask at a time: there is no slow start, and trouble halves it all the same.
            start, transport = endpoint.concurrency, self._backend.transport
            self._pool = Pool([endpoint], self._journal, start=start, attempts=ATTEMPTS, transport=transport)
        elif model not in self._pool.endpoints:
            self._pool.add(self._backend.endpoint(model))

    async def _solve(self, task: StrategyRequest, told: Callable[[int, int], None]) -> list[_Solved]:
        return await gathered([self._one(task, number, told) for number in range(task.n)])

    async def _one(self, task: StrategyRequest, number: int, told: Callable[[int, int], None]) -> _Solved:
        assert self._pool is not None
        session = _Watched(
            self._pool,
            f"{task.problem}/{number}",
            task.strategy.label,
            answers=self._answers,
            model=task.model,
            fields=task.fields,
            prompts=self._prompts,
            told=told,
        )
        result = await task.strategy(task.conversation, session)
        if session.said is None:
            raise UpstreamError("gave no answer", where=task.model)
        return _Solved(result, session.said)


# -- reading ---------------------------------------------------------------------------------------------------------


def _task(wanted: Wanted, body: Mapping[str, Any], *, chat: bool) -> StrategyRequest:
    assert wanted.strategy is not None
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refusal("the body holds half of a surrogate pair, which is no character") from None
    if body.get("logprobs"):
        raise Refusal(
            "log-probabilities of a strategy's answer are not given", param="logprobs", code="unsupported_parameter"
        )
    n, seed, options = body.get("n"), body.get("seed"), body.get("stream_options")
    if n is not None and not (_is_int(n) and 1 <= n <= MOST):
        raise Refusal(f"n is {n!r}, but a number from 1 to {MOST} is needed", param="n")
    if seed is not None and not _is_int(seed):
        raise Refusal(f"seed is {seed!r}, but a whole number is needed", param="seed")
    conversation = _conversation(body) if chat else _prompt(body)
    fields = {name: value for name, value in body.items() if name not in _OURS and value is not None}
    name = secrets.token_hex(12)
    problem = name if seed is None else digest([conversation, fields, seed])
    if "logprobs" in wanted.strategy.needs:
        fields |= {"logprobs": True, "top_logprobs": TOPS}
    return StrategyRequest(
        f"{'chatcmpl' if chat else 'cmpl'}-{name}",
        chat,
        wanted.strategy,
        wanted.model,
        conversation,
        fields,
        n or 1,
        problem,
        bool(body.get("stream")),
        bool(isinstance(options, dict) and options.get("include_usage")),
    )


def _conversation(body: Mapping[str, Any]) -> Conversation:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages must be a list that holds some", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal("every message must be an object with a role", param="messages")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not (content is None or isinstance(content, str | list)) or not all(isinstance(one, dict) for one in parts):
            raise Refusal("the content of a message must be a text or a list of objects", param="messages")
    if not any(message["role"] == "user" for message in messages):
        raise Refusal("a strategy needs a message of a user", param="messages")
    return messages


def _prompt(body: Mapping[str, Any]) -> Conversation:
    """A prompt is a conversation of one message."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Refusal("a strategy takes one prompt, which must be a text", param="prompt")
    for name in ("echo", "suffix", "best_of"):
        if body.get(name) not in (None, False, "", 1):
            raise Refusal(f"{name} is nothing that a strategy knows", param=name, code="unsupported_parameter")
    return [{"role": "user", "content": prompt}]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# -- writing ---------------------------------------------------------------------------------------------------------


def _whole(task: StrategyRequest, solved: Sequence[_Solved]) -> dict[str, Any]:
    choices = []
    for index, one in enumerate(solved):
        message = {"role": "assistant", "content": one.result.text} | _reasoning(one)
        said = {"message": message} if task.chat else {"text": one.result.text}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": _finish(one)})
    kind = "chat.completion" if task.chat else "text_completion"
    return {**head(task.name, kind, task.model), "choices": choices, **_bill(task, solved)}


def _chunks(task: StrategyRequest, solved: Sequence[_Solved]) -> list[dict[str, Any]]:
    """The answers as a stream has them. The bill is a chunk of its own, without choices, for clients that asked for it,
    and otherwise beside the last choice: clients that look for a choice in every chunk find one."""
    first = head(task.name, "chat.completion.chunk" if task.chat else "text_completion", task.model)
    chunks: list[dict[str, Any]] = []
    for index, one in enumerate(solved):
        delta = {"role": "assistant", "content": one.result.text} | _reasoning(one)
        said: dict[str, Any] = {"delta": delta} if task.chat else {"text": one.result.text}
        end: dict[str, Any] = {"delta": {}} if task.chat else {"text": ""}
        chunks.append({**first, "choices": [{"index": index, **said, "finish_reason": None}]})
        chunks.append({**first, "choices": [{"index": index, **end, "finish_reason": _finish(one)}]})
    if task.include_usage:
        return [*chunks, {**first, "choices": [], **_bill(task, solved)}]
    return [*chunks[:-1], {**chunks[-1], **_bill(task, solved)}]


def _finish(one: _Solved) -> str:
    return one.reply.finish or "stop"


def _reasoning(one: _Solved) -> dict[str, str]:
    return {"reasoning_content": one.reply.reasoning} if one.reply.reasoning else {}


def _bill(task: StrategyRequest, solved: Sequence[_Solved]) -> dict[str, Any]:
    used: dict[str, Usage] = {}
    for one in solved:
        for model, usage in one.result.used.items():
            used[model] = used.get(model, Usage()) + usage
    total = sum(used.values(), Usage())
    notes = list(dict.fromkeys(note for one in solved for note in one.result.notes))
    models = {model: asdict(usage) for model, usage in used.items()}
    ours = {"strategy": task.strategy.label, "calls": total.calls, "models": models, "notes": notes}
    return {"usage": usage_object(total), "burnish": ours}
