"""What a server really does, found by asking it: some thirty short requests, and a table of what came of them.

Servers drop `n` without a word, give one text for every seed, count no tokens in a stream, or begin a new turn where
they were to continue one. A strategy names what it needs, and one that needs what the probe denies is refused before
anything is paid. What a probe could not tell is no denial.

    found = asyncio.run(probe(Endpoint("http://127.0.0.1:8000/v1", "qwen")))
    found.refuse(strategy("best-of-n:8"))       # SettingsError where the server gives no log-probabilities

Scores are looked at three times: on a text that is new to the server, when it lies in the prefix cache, and while other
requests run. Engines have returned values of another request then.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from burnish.core.errors import DataError, SettingsError
from burnish.reason.calls import ContextExceeded, Endpoint, Reply, UpstreamError
from burnish.reason.pool import OpenAITransport, worth_another
from burnish.reason.replies import json_of, read, read_score

if TYPE_CHECKING:
    from burnish.reason.strategies.base import Strategy

WORDS = {
    "limit": "a limit of tokens",
    "n": "several choices for one request",
    "seed": "the same text for the same seed",
    "samples": "other texts for other seeds",
    "usage": "the number of tokens",
    "stream-usage": "the number of tokens in a stream",
    "cached": "the number of cached tokens",
    "stop": "an end at a stop text",
    "prefill": "an assistant turn that is continued",
    "logprobs": "log-probabilities of what it writes",
    "alternatives": "log-probabilities of alternatives",
    "given": "log-probabilities of a given text",
    "foreign": "log-probabilities of an answer that another model wrote",
    "steady": "scores that neither cache nor load changes",
}
"""What is asked for, by the names that `Strategy.needs` uses."""
STEADY = 0.02
"""Nats a token, on average, by which a score may move and still be called the same; sixteen-bit sums move by less."""
_TASK = "Write a short story about a harbour, a lamp and the number seven."
_TOPS = (20, 5, 1, 0)
_LENGTH, _OTHERS = 48, 8
_WAITS = (0.1, 0.5, 2.0)


@dataclass(frozen=True)
class Finding:
    """Whether the server does it, None where that could not be told, and what was seen."""

    does: bool | None
    seen: str


@dataclass(frozen=True)
class Probe:
    """What was found about one model of one server.

    Attributes:
        address: without credentials.
        token_field: what the server calls its limit.
        continuing: the fields that make it continue an assistant turn.
        findings: by the names of `WORDS`.
    """

    address: str
    model: str
    token_field: str = "max_tokens"
    continuing: Mapping[str, Any] = field(default_factory=dict)
    findings: Mapping[str, Finding] = field(default_factory=dict)

    def refuse(self, made: Strategy, needs: Sequence[str] | None = None) -> None:
        """
        Args:
            needs: of this model; by default all that the strategy needs.

        Raises:
            SettingsError: the strategy needs what the server does not do.
        """
        for need in made.needs if needs is None else needs:
            finding = self.findings.get(need)
            if finding is not None and finding.does is False:
                raise SettingsError(
                    f"needs {WORDS[need]}, which the probe of {self.model!r} at {self.address} did not get "
                    f"({finding.seen})",
                    where=made.label,
                    fix="use another strategy or another server",
                )

    def fits(self, endpoint: Endpoint) -> bool:
        return (self.address, self.model) == (endpoint.address, endpoint.model)

    def applied(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, asked in the words that the server understands."""
        return replace(endpoint, token_field=self.token_field, continuing=dict(self.continuing))

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_probe(text: str, *, where: str) -> Probe:
    """What `Probe.text` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        kept = json.loads(text)
        findings = {name: Finding(one["does"], one["seen"]) for name, one in kept.pop("findings").items()}
        return Probe(**kept, findings=findings)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fix = "write one with burnish reason probe URL --model NAME -o FILE"
        raise DataError("is no probe of a server", where=where, fix=fix) from None


Scoring = Callable[[str], Awaitable[list[float]]]
"""Log-probabilities of the tokens of a text, or of what follows it."""


class Carrier(Protocol):
    """A transport that reaches the route of completions as well."""

    async def __call__(self, endpoint: Endpoint, body: Mapping[str, Any], /, route: str = ...) -> bytes: ...


async def probe(endpoint: Endpoint, *, transport: Carrier | None = None) -> Probe:
    """Asks for everything in turn.

    Raises:
        UpstreamError: the server cannot be asked at all.
    """
    carrier = transport or OpenAITransport([endpoint])
    try:
        return await _Asking(endpoint, carrier).all()
    finally:
        if isinstance(carrier, OpenAITransport):
            await carrier.close()


class _Asking:
    def __init__(self, endpoint: Endpoint, carrier: Carrier) -> None:
        self.endpoint, self.carrier = endpoint, carrier
        self.continuing: dict[str, Any] = {}

    async def all(self) -> Probe:
        findings = {"limit": await self.limit()}
        first = await self.chat(_LENGTH, temperature=0.0, seed=1)
        checks: dict[str, Callable[[], Awaitable[Finding]]] = {
            "n": self.choices,
            "seed": self.repeats,
            "samples": self.varies,
            "usage": self.usage,
            "stream-usage": self.stream_usage,
            "cached": self.cached,
            "stop": lambda: self.stop(written(first)),
            "prefill": lambda: self.prefill(written(first)),
        }
        for name, check in checks.items():
            findings[name] = await self.judged(check)
        findings["logprobs"], findings["alternatives"], tops = await self.logprobs()
        findings["given"], scored = await self.given()
        findings["foreign"] = await self.judged(self.foreign)
        if findings["given"].does:
            findings["steady"] = await self.judged(lambda: self.steady(scored, self.raw))
        elif findings["logprobs"].does:
            own = partial(self.own_scores, tops)
            findings["steady"] = await self.judged(lambda: self.steady(own, own))
        else:
            findings["steady"] = Finding(None, "there are no scores")
        return Probe(self.endpoint.address, self.endpoint.model, self.endpoint.token_field, self.continuing, findings)

    async def judged(self, check: Callable[[], Awaitable[Finding]]) -> Finding:
        """A check; a server that refuses its request or answers with nonsense does not do it."""
        try:
            return await check()
        except ContextExceeded:
            return Finding(None, "the model's context is too short to tell")
        except UpstreamError as error:
            if error.status in (401, 403):
                raise
            return Finding(False, error.what)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def ask(self, body: Mapping[str, Any], route: str = "/chat/completions") -> dict[str, Any]:
        content = await self.carried({"model": self.endpoint.model, **body}, route)
        found = json_of(content)
        if not isinstance(found, dict):
            raise UpstreamError("answered with something that is no JSON object", where=self.endpoint.address)
        return found

    async def carried(self, body: Mapping[str, Any], route: str) -> bytes:
        """A server in passing trouble is asked again, so that trouble is not taken for a denial."""
        for wait in _WAITS:
            try:
                return await self.carrier(self.endpoint, body, route=route)
            except UpstreamError as error:
                if error.status is None or not worth_another(error):
                    raise
                await asyncio.sleep(wait)
        return await self.carrier(self.endpoint, body, route=route)

    async def chat(self, length: int, *, task: str = _TASK, written: str = "", **fields: Any) -> Reply:
        """One answer; `written` is an assistant turn to be continued."""
        turns = [{"role": "user", "content": task}] + ([{"role": "assistant", "content": written}] if written else [])
        body = {"messages": turns, self.endpoint.token_field: length, **fields}
        return read(json.dumps(await self.ask(body)).encode(), self.endpoint, "")

    # -- what is looked at ----------------------------------------------------------------------------------------

    async def limit(self) -> Finding:
        """Also which of both names the server takes; without any answer there is nothing to probe."""
        try:
            reply = await self.chat(4, temperature=0.0)
        except UpstreamError as error:
            if error.status != 400 or "max_completion_tokens" not in error.body:
                raise
            self.endpoint = replace(self.endpoint, token_field="max_completion_tokens")
            reply = await self.chat(4, temperature=0.0)
        tokens, name = reply.usage.completion, self.endpoint.token_field
        if reply.usage.unknown:
            return Finding(True if reply.cut else None, f"{name} is taken; tokens are not counted")
        return Finding(tokens <= 4, f"{tokens} tokens where {name} is 4")

    async def choices(self) -> Finding:
        messages = [{"role": "user", "content": _TASK}]
        body = {"messages": messages, "n": 3, "temperature": 1.0, self.endpoint.token_field: 24}
        found = listed(await self.ask(body), "choices")
        texts = {str(table(choice, "message").get("content")) for choice in found}
        return Finding(len(found) == 3, f"{len(found)} of 3 choices, {len(texts)} different texts")

    async def repeats(self) -> Finding:
        one, two = [written(await self.chat(24, temperature=1.0, seed=5)) for _ in range(2)]
        return Finding(one == two, "the same text twice" if one == two else "two texts for one seed")

    async def varies(self) -> Finding:
        texts = {written(await self.chat(24, temperature=1.0, seed=seed)) for seed in range(11, 16)}
        return Finding(len(texts) > 1, f"{len(texts)} different texts for 5 seeds")

    async def usage(self) -> Finding:
        used = (await self.chat(8)).usage
        seen = "not counted" if used.unknown else f"{used.prompt} read, {used.completion} written"
        return Finding(not used.unknown and used.prompt > 0, seen)

    async def stream_usage(self) -> Finding:
        messages = [{"role": "user", "content": _TASK}]
        fields = {"stream": True, "stream_options": {"include_usage": True}, self.endpoint.token_field: 8}
        body = {"model": self.endpoint.model, "messages": messages, **fields}
        chunks = events(await self.carried(body, "/chat/completions"))
        if not chunks:
            return Finding(False, "no stream came")
        counted = any(table(chunk, "usage").get("prompt_tokens") for chunk in chunks)
        return Finding(counted, f"{len(chunks)} chunks, {'counted' if counted else 'none of them with tokens'}")

    async def cached(self) -> Finding:
        task = f"{secrets.token_hex(4)} " + "A long text that is read more than once. " * 40
        replies = [await self.chat(1, task=task) for _ in range(3)]
        cached = replies[-1].usage.cached
        return Finding(True, f"{cached} of {replies[-1].usage.prompt}") if cached else Finding(False, "none were said")

    async def stop(self, text: str) -> Finding:
        """A piece from the middle of a text is the stop of the same text."""
        middle = len(text) // 2
        piece = text[middle : middle + 4]
        if len(text) < 12 or text.find(piece) != middle:
            return Finding(None, "the text was too short to tell")
        again = written(await self.chat(_LENGTH, temperature=0.0, seed=1, stop=[piece]))
        if again.strip() == text[:middle].strip():
            return Finding(True, "the text ended before it")
        return Finding(False, "the text went on") if piece in again else Finding(None, "the text was another one")

    async def prefill(self, text: str) -> Finding:
        """The first half of a text, given as the assistant's turn, must be followed by its second half."""
        if len(text) < 12:
            return Finding(None, "the text was too short to tell")
        cut = text.find(" ", len(text) // 3)
        cut = cut if 0 < cut < len(text) - 6 else len(text) // 2
        seen = "refused"
        for fields in (CONTINUE, {}):
            try:
                reply = await self.chat(_LENGTH, written=text[:cut], temperature=0.0, seed=1, **fields)
                went_on = written(reply)
                if went_on.startswith(text[:cut]):  # it repeats the turn, or has not read it
                    odd = "Zq7 Zq7 Zq7"
                    repeats = written(await self.chat(16, written=odd, temperature=0.0, **fields)).startswith(odd)
                    went_on = went_on[cut:] if repeats else ""
            except UpstreamError as error:
                if error.status not in (400, 422):
                    raise
                continue
            wanted = text[cut:].lstrip()[:12]
            if wanted and went_on.lstrip().startswith(wanted):
                self.continuing = dict(fields)
                return Finding(True, f"with {', '.join(fields)}" if fields else "without being told")
            seen = "it began anew"
        return Finding(False, seen)

    async def logprobs(self) -> tuple[Finding, Finding, int]:
        """Of the generation, and the most alternatives that the server gives."""
        seen = ""
        for tops in _TOPS:
            fields: dict[str, Any] = {"logprobs": True} | ({"top_logprobs": tops} if tops else {})
            try:
                reply = await self.chat(8, temperature=0.0, **fields)
            except UpstreamError as error:
                if error.status in (401, 403):
                    raise
                seen = error.what
                continue
            if not reply.logprobs:
                return Finding(False, "none came"), Finding(False, "none came"), 0
            others = max(len(token) - 1 for token in reply.logprobs)
            many = Finding(others > 0, f"{others} besides the token, where {tops} were asked for")
            return Finding(True, f"of {len(reply.logprobs)} tokens"), many, tops
        return Finding(False, seen), Finding(False, seen), 0

    async def given(self) -> tuple[Finding, Scoring]:
        """Of a text that is handed over, in one of the two forms that servers know."""
        seen, scored = "", partial(self.given_by, "echo")
        for form in SCORING:
            scored = partial(self.given_by, form)
            try:
                found = await scored(_TASK)
            except UpstreamError as error:
                if error.status in (401, 403):
                    raise
                seen = seen or error.what
                continue
            if found:
                return Finding(True, f"{len(found)} tokens, by {form}"), scored
            seen = "none came"
        return Finding(False, seen), scored

    async def given_by(self, form: str, text: str) -> list[float]:
        body = {"prompt": text, "max_tokens": 1, "temperature": 0.0, **SCORING[form]}
        return given_scores(await self.ask(body, "/completions"), form)

    async def foreign(self) -> Finding:
        """Of an answer in a conversation: its tokens and no others are scored."""
        text = "The lamp was lit seven times."
        turns = [{"role": "user", "content": _TASK}, {"role": "assistant", "content": text}]
        endpoint = replace(self.endpoint, continuing=self.continuing or CONTINUE)
        body = endpoint.scoring_body(turns, 1)
        scored = read_score(await self.carried(body, "/chat/completions"), endpoint, "", text).logprobs or ()
        return Finding(True, f"of {len(scored)} tokens, the prompt's left out")

    async def raw(self, text: str) -> None:
        """Brings a text into the server's cache as it stands, without a template."""
        await self.ask({"prompt": text, "max_tokens": 4}, "/completions")

    async def own_scores(self, tops: int, text: str) -> list[float]:
        fields: dict[str, Any] = {"logprobs": True} | ({"top_logprobs": tops} if tops else {})
        reply = await self.chat(16, task=text, temperature=0.0, seed=1, **fields)
        return [token[0] for token in reply.logprobs or ()]

    async def steady(self, scored: Scoring, warms: Callable[[str], Awaitable[object]]) -> Finding:
        text = f"{secrets.token_hex(4)} " + "The lamp in the harbour burns at seven and is put out at nine. " * 8
        cold = await scored(text)
        for _ in range(2):
            await warms(text)
        warm = await scored(text)
        others = asyncio.gather(*(self.chat(_LENGTH, task=f"{_TASK} {i}", temperature=1.0) for i in range(_OTHERS)))
        *loaded, _ = await asyncio.gather(scored(text), scored(text), others)
        moved = [moved_by(cold, one) for one in (warm, *loaded)]
        if None in moved:
            return Finding(False, "cached or under load it scores other tokens")
        cache, load = moved[0] or 0.0, max(one or 0.0 for one in moved[1:])
        return Finding(max(cache, load) <= STEADY, f"moved by {cache:.2g} cached, {load:.2g} under load")


CONTINUE: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
SCORING: Mapping[str, Mapping[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
}


def written(reply: Reply) -> str:
    """What the model wrote first: its thoughts, where it was still thinking at the end."""
    return reply.text or reply.reasoning


def events(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a stream."""
    lines = [line.removeprefix(b"data:").strip() for line in content.split(b"\n") if line.startswith(b"data:")]
    found = [json_of(line) for line in lines if line and line != b"[DONE]"]
    return [one for one in found if isinstance(one, dict)]


def given_scores(body: Mapping[str, Any], form: str) -> list[float]:
    """Log-probabilities of the tokens of a prompt, its first left out; empty where the server gave none.

    Of one position vLLM gives the likeliest token and the one that stands there; the latter has the greater rank.
    """
    choice = next(iter(listed(body, "choices")), {})
    if form == "echo":
        found = listed(table(choice, "logprobs"), "token_logprobs")
        return [float(one) for one in found[1:-1] if isinstance(one, int | float)]
    positions = [one for one in listed(choice, "prompt_logprobs") if isinstance(one, dict) and one]
    own = [max(one, key=lambda name: table(one, name).get("rank") or 0) for one in positions]
    scores = [table(one, name).get("logprob") for one, name in zip(positions, own, strict=True)]
    return [float(one) for one in scores if isinstance(one, int | float)]


def table(given: Any, name: str) -> Mapping[str, Any]:
    """An object of an object; an empty one where a server has put something else."""
    found = given.get(name) if isinstance(given, dict) else None
    return found if isinstance(found, dict) else {}


def listed(given: Mapping[str, Any], name: str) -> list[Any]:
    """A list of an object; an empty one where a server has put something else."""
    found = given.get(name)
    return found if isinstance(found, list) else []


def moved_by(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Nats a token, on average; None where other tokens were scored."""
    if not one or len(one) != len(other):
        return None
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
