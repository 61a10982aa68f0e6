"""A checkpoint in this process, shown as an OpenAI-like server. The engine is handed in; nothing here knows torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from burnish.core.errors import BurnishError
from burnish.core.settings import first_mistake
from burnish.reason.calls import Endpoint, Usage
from burnish.reason.pool import refused
from burnish.reason.serve.shapes import DONE, Refusal, error_of, event, head, model_list, usage_object


class Odds(Protocol):
    """A token's log-probability under the model, and those of the likeliest tokens."""

    @property
    def logprob(self) -> float: ...
    @property
    def tops(self) -> Sequence[tuple[int, float]]: ...


class GivenOdds(Odds, Protocol):
    """Those of a token of the prompt, and how many are likelier, it included."""

    @property
    def token(self) -> int: ...
    @property
    def rank(self) -> int: ...


class Part(Protocol):
    """What has come of one continuation since the last piece."""

    @property
    def place(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def noted(self) -> Sequence[Odds]: ...
    @property
    def finish(self) -> str: ...
    @property
    def given(self) -> Sequence[GivenOdds]: ...


class Underway(Protocol):
    def cancel(self) -> None: ...


class Writer(Protocol):
    """What `burnish.generate.Engine` is."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def context(self) -> int: ...
    def chat(self, messages: Sequence[dict[str, Any]], *, continued: bool = False, **options: Any) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str: ...
    def draw(
        self,
        prompt: Sequence[int],
        told: Callable[[Any], None],
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        num_tops: int | None = None,
        num_given: int | None = None,
        gradual: bool = False,
    ) -> Underway: ...
    def close(self) -> None: ...


class _Stream(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Text(BaseModel):
    type: Literal["text"] = "text"


class _Asked(BaseModel):
    """Fields of both routes. What would change an answer and is not known here is refused by its name."""

    model_config = ConfigDict(extra="forbid")
    model: str
    n: int | None = Field(None, ge=1, le=1024)
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: _Stream | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class _Chat(_Asked):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: _Text | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Any = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(_Asked):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None


@dataclass(frozen=True)
class _Order:
    """A request as the engine takes it.

    Attributes:
        how: settings of a drawing.
    """

    chat: bool
    prompts: list[list[int]]
    n: int
    how: dict[str, Any]
    stream: bool
    include_usage: bool

    @property
    def num_read(self) -> int:
        return sum(map(len, self.prompts))


class Local:
    """Answers of an engine.

    Args:
        engine: asked for continuations; closed with this.
    """

    def __init__(self, engine: Writer) -> None:
        self.engine = engine

    @property
    def called(self) -> str:
        return f"{self.engine.name} in this process"

    @property
    def identity(self) -> dict[str, str]:
        return {"local": self.engine.identity}

    @property
    def secrets(self) -> tuple[str, ...]:
        return ()

    def asked_by(self, headers: Mapping[str, str], /) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def endpoint(self, model: str) -> Endpoint:
        self._check_name(model)
        return Endpoint("http://in-this-process/v1", model, key_variable="")

    async def models(self, request: web.Request) -> web.StreamResponse:
        listed = model_list({self.engine.name: {"max_model_len": self.engine.context}})
        if name := request.match_info.get("name"):
            self._check_name(name)
            return web.json_response(listed["data"][0])
        return web.json_response(listed)

    async def plain(self, request: web.Request, raw: bytes, body: dict[str, Any]) -> web.StreamResponse:
        order = await self._order(body, chat=request.path.endswith("/chat/completions"))
        name = f"{'chatcmpl' if order.chat else 'cmpl'}-{secrets.token_hex(12)}"
        if order.stream:
            return await self._stream(request, order, name)
        return web.json_response(await self._answer(order, name))

    async def transport(self, endpoint: Endpoint, body: Mapping[str, Any], /) -> bytes:
        """A call of a strategy."""
        try:
            order = await self._order({**body, "stream": False}, chat=True)
            return json.dumps(await self._answer(order, "call")).encode()
        except BurnishError as error:
            status, said = error_of(error)
            raise refused(endpoint, status, json.dumps(said), {}) from None

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)

    # -- requests -------------------------------------------------------------------------------------------------

    def _check_name(self, model: str) -> None:
        if model != self.engine.name:
            known = f"this server has '{self.engine.name}'"
            raise Refusal(f"there is no model '{model}'; {known}", status=404, code="model_not_found", param="model")

    async def _order(self, body: dict[str, Any], *, chat: bool) -> _Order:
        if body.pop("tools", None):
            raise Refusal("this server calls no tools", param="tools", code="unsupported_parameter")
        try:
            asked = _Chat.model_validate(body) if chat else _Completion.model_validate(body)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"][:1])) or None
            raise Refusal(first_mistake(error), param=place) from None
        self._check_name(asked.model)
        if asked.stream and asked.prompt_logprobs is not None:
            raise Refusal("a stream has no log-probabilities of its prompt", param="prompt_logprobs")
        prompts = await asyncio.to_thread(self._prompts, asked)
        limit = asked.max_tokens
        if isinstance(asked, _Chat):
            limit = asked.max_completion_tokens or limit
            num_tops = (asked.top_logprobs or 0) if asked.logprobs else None
        else:
            limit, num_tops = limit or 16, asked.logprobs  # 16 is OpenAI's
        longest = max(map(len, prompts))
        limit = limit or max(1, self.engine.context - longest)
        if longest + limit > self.engine.context:
            raise Refusal(
                f"This model's maximum context length is {self.engine.context} tokens; the prompt has {longest}, and "
                f"{limit} new ones were asked for",
                code="context_length_exceeded",
                param="messages" if chat else "prompt",
            )
        how = {
            "max_new_tokens": limit,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "top_k": max(asked.top_k or 0, 0),
            "stop": [asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
            "seed": secrets.randbits(63) if asked.seed is None else asked.seed,
            "num_tops": num_tops,
            "num_given": asked.prompt_logprobs,
        }
        options = asked.stream_options
        return _Order(chat, prompts, asked.n or 1, how, bool(asked.stream), bool(options and options.include_usage))

    def _prompts(self, asked: _Chat | _Completion) -> list[list[int]]:
        if isinstance(asked, _Chat):
            if asked.continue_final_message == asked.add_generation_prompt and asked.continue_final_message:
                raise Refusal(
                    "a message is either continued or begun: add_generation_prompt must be false",
                    param="continue_final_message",
                )
            messages = [_plain(message) for message in asked.messages]
            options = asked.chat_template_kwargs or {}
            return [self.engine.chat(messages, continued=asked.continue_final_message, **options)]
        given: list[Any] = [asked.prompt] if _is_one(asked.prompt) else list(asked.prompt)
        prompts = [self.engine.encode(one) if isinstance(one, str) else list(one) for one in given]
        if not prompts or not all(prompts):
            raise Refusal("the prompt has no token", param="prompt")
        return prompts

    # -- answers --------------------------------------------------------------------------------------------------

    async def _answer(self, order: _Order, name: str) -> dict[str, Any]:
        whole: dict[int, dict[str, Any]] = {}
        given: dict[int, list[Any]] = {}
        written = 0
        with _Drawn(self.engine, order, gradual=False) as drawn:
            async for index, piece in drawn.pieces():
                written += len(piece.tokens)
                said = {"message": {"role": "assistant", "content": piece.text}} if order.chat else {"text": piece.text}
                whole[index] = self._choice(order, index, said, piece, 0)
                if order.how["num_given"] is not None:
                    given[index] = self._given(piece)
        kind = "chat.completion" if order.chat else "text_completion"
        usage = usage_object(Usage(1, order.num_read, 0, written))
        choices = [whole[index] for index in sorted(whole)]
        if not order.chat:  # a conversation's stand beside its choices, as in vLLM
            choices = [one | {"prompt_logprobs": given.get(one["index"])} for one in choices]
        more = {"prompt_logprobs": given[0]} if order.chat and given else {}
        return {**head(name, kind, self.engine.name), "choices": choices, "usage": usage, **more}

    def _given(self, piece: Part) -> list[dict[str, Any] | None]:
        """Of each token of the prompt, by their ids, its own log-probability and the likeliest ones."""

        def one(token: int, logprob: float, rank: int) -> dict[str, Any]:
            return {"logprob": logprob, "rank": rank, "decoded_token": self.engine.decode([token], special=True)}

        rows: list[dict[str, Any] | None] = [None]
        for odds in piece.given:
            tops = {str(token): one(token, logprob, rank) for rank, (token, logprob) in enumerate(odds.tops, start=1)}
            rows.append({str(odds.token): one(odds.token, odds.logprob, odds.rank)} | tops)
        return rows

    async def _stream(self, request: web.Request, order: _Order, name: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        first = head(name, "chat.completion.chunk" if order.chat else "text_completion", self.engine.name)
        written = 0
        offsets = dict.fromkeys(range(len(order.prompts) * order.n), 0)
        with _Drawn(self.engine, order, gradual=True) as drawn:  # what cannot be drawn is refused before the status
            await response.prepare(request)
            try:
                for index in offsets if order.chat else ():
                    opening = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    await response.write(event({**first, "choices": [opening]}))
                async for index, piece in drawn.pieces():
                    written += len(piece.tokens)
                    delta = {"content": piece.text} if piece.text else {}
                    said: dict[str, Any] = {"delta": delta} if order.chat else {"text": piece.text}
                    choice = self._choice(order, index, said, piece, offsets[index])
                    offsets[index] += len(piece.text)
                    await response.write(event({**first, "choices": [choice]}))
                if order.include_usage:
                    usage = usage_object(Usage(1, order.num_read, 0, written))
                    await response.write(event({**first, "choices": [], "usage": usage}))
                await response.write(DONE)
            except ConnectionError:  # the client has gone
                return response
            except Exception as error:  # noqa: BLE001 - the status has been sent: an error is an event of the stream
                await response.write(event(error_of(error)[1]))
        await response.write_eof()
        return response

    def _choice(self, order: _Order, index: int, said: dict[str, Any], piece: Part, offset: int) -> dict[str, Any]:
        noted = None
        if order.how["num_tops"] is not None:
            noted = self._chat_logprobs(piece) if order.chat else self._text_logprobs(piece, offset)
        return {"index": index, **said, "logprobs": noted, "finish_reason": piece.finish or None}

    def _chat_logprobs(self, piece: Part) -> dict[str, Any]:
        def token(number: int, logprob: float) -> dict[str, Any]:
            text = self.engine.decode([number], special=True)
            raw = None if "\ufffd" in text else list(text.encode())
            return {"token": text, "logprob": logprob, "bytes": raw}

        rows = []
        for number, noted in zip(piece.tokens, piece.noted, strict=True):
            tops = [token(other, logprob) for other, logprob in noted.tops]
            rows.append({**token(number, noted.logprob), "top_logprobs": tops})
        return {"content": rows, "refusal": None}

    def _text_logprobs(self, piece: Part, offset: int) -> dict[str, Any]:
        tokens = [self.engine.decode([number], special=True) for number in piece.tokens]
        offsets = [offset + sum(map(len, tokens[:place])) for place in range(len(tokens))]
        tops = [
            {self.engine.decode([other], special=True): logprob for other, logprob in noted.tops}
            | {token: noted.logprob}
            for token, noted in zip(tokens, piece.noted, strict=True)
        ]
        logprobs = [noted.logprob for noted in piece.noted]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


class _Drawn:
    """Continuations under way. At the end of the context those that are not finished leave the batch."""

    def __init__(self, engine: Writer, order: _Order, *, gradual: bool) -> None:
        self._loop, self._heard = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        self._n, self._num = order.n, len(order.prompts) * order.n
        self._drawings: list[Underway] = []
        for number, prompt in enumerate(order.prompts):
            how = {**order.how, "seed": order.how["seed"] + number}
            self._drawings.append(engine.draw(prompt, self._teller(number), n=order.n, gradual=gradual, **how))

    def __enter__(self) -> _Drawn:
        return self

    def __exit__(self, *_: object) -> None:
        for drawing in self._drawings:
            drawing.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Part]]:
        """Every piece with the index of its choice."""
        running = self._num
        while running:
            number, piece = await self._heard.get()
            if isinstance(piece, Exception):
                raise piece
            running -= bool(piece.finish)
            yield number * self._n + piece.place, piece

    def _teller(self, number: int) -> Callable[[Any], None]:
        def tell(piece: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                self._loop.call_soon_threadsafe(self._heard.put_nowait, (number, piece))

        return tell


def _is_one(prompt: Any) -> bool:
    return isinstance(prompt, str) or bool(prompt and isinstance(prompt[0], int))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is one text."""
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise Refusal("this model reads text alone", param="messages", code="unsupported_content")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise Refusal("every message needs a role and a text as its content", param="messages")
    return {**message, "content": content}
