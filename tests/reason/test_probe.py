"""What a probe says about servers that each lack one thing; a strategy is refused for what is denied, by name."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.reason import Endpoint, UpstreamError, strategy
from burnish.reason.calls import ContextExceeded
from burnish.reason.probe import WORDS, Finding, Probe, probe, read_probe

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "made")
NOUNS = ["lamp", "tide", "rope", "gull", "pier", "mist", "keel", "buoy", "sand", "moor", "wharf", "crane"]
Body = dict[str, Any]


@dataclass
class Made:
    """A server whose texts follow from prompt, seed and place; `lacks` names what it does not do."""

    lacks: set[str] = field(default_factory=set)
    _at_once: int = 0
    _seen: set[str] = field(default_factory=set)

    async def __call__(self, endpoint: Endpoint, body: Any, /, route: str = "/chat/completions") -> bytes:
        self._at_once += 1
        try:
            await asyncio.sleep(0)
            if route == "/completions":
                return json.dumps(self.completion(dict(body))).encode()
            return self.chat(dict(body))
        finally:
            self._at_once -= 1

    def chat(self, body: Body) -> bytes:
        limit = body.get("max_completion_tokens" if "max_tokens" in self.lacks else "max_tokens")
        if limit is None:
            raise UpstreamError("refused", where="", status=400, body="use 'max_completion_tokens' instead")
        turns = body["messages"]
        begun = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        if begun and "prefill" in self.lacks:
            begun, turns = "", [*turns, {"role": "user", "content": ""}]
        choices = [self.choice(body, turns[0]["content"], begun, limit, len(turns))]
        if "n" not in self.lacks:
            choices *= body.get("n", 1)
        reply: Body = {"choices": choices, "usage": self.usage(turns, choices)}
        if body.get("stream"):
            chunks = [{"choices": [{"delta": {"content": "x"}}]}, {"choices": [], "usage": reply["usage"]}]
            chunks = chunks[: 1 if "stream-usage" in self.lacks else 2]
            return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"
        if "prompt_logprobs" in body and "foreign" not in self.lacks:
            words = [word for turn in body["messages"] for word in turn["content"].split()]
            positions = [{"1": {"logprob": -1.0, "rank": 2, "decoded_token": f" {word}"}} for word in words]
            reply["prompt_logprobs"] = [None, *positions[1:]]
        if "usage" in self.lacks:
            del reply["usage"]
        return json.dumps(reply).encode()

    def choice(self, body: Body, task: str, begun: str, limit: int, num_turns: int) -> Body:
        seed = 0 if not body.get("temperature") or "samples" in self.lacks else body.get("seed")
        seed = random.random() if "seed" in self.lacks and seed else seed
        draw = random.Random(f"{task} {seed} {1 if begun else num_turns}")
        words = [draw.choice(NOUNS) for _ in range(80)]
        text = " ".join(words)
        if begun:
            text = text.removeprefix(begun) if text.startswith(begun) else "and so on"
            text = begun + text if "bare continuation" in self.lacks else text
        words = text.split(" ")[: limit if "limit" not in self.lacks else 99]
        text = " ".join(words)
        for stop in [] if "stop" in self.lacks else body.get("stop", []):
            text = text.partition(stop)[0]
        choice: Body = {"message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        if body.get("logprobs") and "logprobs" not in self.lacks:
            tops = body.get("top_logprobs", 0)
            if tops > 5:
                raise UpstreamError("at most 5", where="", status=400)
            tops = 0 if "alternatives" in self.lacks else tops
            shown = [{"token": f"t{i}", "logprob": -1.0 - i} for i in range(tops)]
            choice["logprobs"] = {"content": [{"token": w, "logprob": -0.5, "top_logprobs": shown} for w in words]}
        return choice

    def usage(self, turns: list[Body], choices: list[Body]) -> Body:
        read = sum(len(turn["content"].split()) for turn in turns)
        text = turns[0]["content"]
        known = text in self._seen and "cached" not in self.lacks
        self._seen.add(text)
        written = sum(len(choice["message"]["content"].split()) for choice in choices)
        details = {"cached_tokens": read if known else 0}
        return {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": details}

    def completion(self, body: Body) -> Body:
        form = "echo" if "prompt_logprobs" in self.lacks else "prompt_logprobs"
        if "given" in self.lacks or (form not in body and ("echo" in body or "prompt_logprobs" in body)):
            return {"choices": [{"text": "x"}]}
        scores = [-0.25 * len(word) for word in body["prompt"].split()]
        if "steady" in self.lacks and (body["prompt"] in self._seen or self._at_once > 2):
            scores = [*scores[1:], -9.0]
        self._seen.add(body["prompt"])
        if form == "echo":
            return {"choices": [{"text": "x", "logprobs": {"token_logprobs": [None, *scores[1:], -3.0]}}]}
        shown = [{"1": {"logprob": -0.1, "rank": 1}, "2": {"logprob": one, "rank": 7}} for one in scores[1:]]
        return {"choices": [{"text": "x", "prompt_logprobs": [None, *shown]}]}


def probed(*lacks: str) -> Probe:
    return asyncio.run(probe(ENDPOINT, transport=Made(set(lacks))))


def denied(found: Probe) -> set[str]:
    return {name for name, finding in found.findings.items() if finding.does is False}


def test_a_server_that_does_all_is_denied_nothing():
    found = probed()
    assert list(found.findings) == list(WORDS)
    assert all(finding.does for finding in found.findings.values()), found.findings
    assert found.continuing["continue_final_message"] is True
    assert found.findings["alternatives"].seen.startswith("5 besides the token")


@pytest.mark.parametrize(
    "lack", ["limit", "n", "seed", "samples", "stream-usage", "cached", "stop", "prefill", "foreign"]
)
def test_what_a_server_lacks_is_denied_and_nothing_else(lack: str):
    assert denied(probed(lack)) == {lack}


def test_without_counts_nothing_that_is_counted_is_there():
    assert denied(probed("usage")) == {"usage", "cached"}


def test_stale_scores_are_noticed():
    found = probed("steady")
    assert denied(found) == {"steady"}
    assert "cached" in found.findings["steady"].seen


def test_scores_of_the_generation_are_looked_at_where_no_text_can_be_given():
    found = probed("given")
    assert denied(found) == {"given"}
    assert found.findings["steady"].does


def test_without_scores_their_steadiness_is_unknown_and_not_denied():
    found = probed("given", "logprobs")
    assert denied(found) == {"given", "logprobs", "alternatives"}
    assert found.findings["steady"].does is None
    assert denied(probed("alternatives")) == {"alternatives"}


def test_both_forms_of_scoring_and_of_continuing_are_known():
    assert probed("prompt_logprobs").findings["given"].seen.endswith("by echo")
    assert probed("bare continuation").findings["prefill"].does


def test_the_name_of_the_limit_is_found_and_used():
    found = probed("max_tokens")
    assert denied(found) == set()
    assert found.applied(ENDPOINT).token_field == "max_completion_tokens"


def test_a_probe_is_read_back_as_it_was():
    found = probed("n")
    assert read_probe(found.text(), where="probe.json") == found
    with pytest.raises(DataError, match="is no probe of a server"):
        read_probe("[]", where="probe.json")


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        ("best-of-n:4", "logprobs"),
        ("best-of-n(n=4,score=confidence)", "alternatives"),
        ("rsa(n=4,k=2,loops=2)", "samples"),
        ("routed-rsa(models=a+b,n=4,k=2,loops=2)", "alternatives"),
        ("gsa:4", "samples"),
    ],
)
def test_a_strategy_is_refused_for_what_is_denied_and_for_nothing_that_is_unknown(spec: str, need: str):
    made = strategy(spec)
    with pytest.raises(SettingsError, match=WORDS[need]):
        Probe("http://h/v1", "m", findings={need: Finding(False, "none came")}).refuse(made)
    Probe("http://h/v1", "m", findings={need: Finding(None, "unclear")}).refuse(made)
    Probe("http://h/v1", "m").refuse(made)


def test_a_scorer_alone_must_score_what_others_wrote():
    made = strategy("routed-rsa(models=a+b,n=4,k=2,loops=2,scorer=a)")
    assert made.needs_of("a") == ("samples", "logprobs", "alternatives", "foreign")
    assert made.needs_of("b") == ("samples",)
    other = strategy("routed-rsa(models=a+b,n=4,k=2,loops=2,scorer=judge)")
    assert (other.needs_of("a"), other.needs_of("judge")) == (("samples",), ("foreign",))
    assert other.asks == ("a", "b", "judge")
    deaf = Probe("http://h/v1", "m", findings={"foreign": Finding(False, "none came")})
    deaf.refuse(made, made.needs_of("b"))
    with pytest.raises(SettingsError, match=f"needs {WORDS['foreign']}, which the probe of 'm' at http://h/v1 did not"):
        deaf.refuse(made, made.needs_of("a"))


def test_one_sample_needs_no_variety():
    only = Probe("http://h/v1", "m", findings={"samples": Finding(False, "1 text")})
    for spec in ("direct", "self-consistency:1", "gsa:0", "rsa(n=1,k=1,loops=3)", "self-refine"):
        only.refuse(strategy(spec))


def test_passing_trouble_is_no_denial(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("burnish.reason.probe._WAITS", (0.0, 0.0))
    made, asked = Made(), 0

    async def busy(endpoint: Endpoint, body: Any, /, route: str = "/chat/completions") -> bytes:
        nonlocal asked
        asked += 1
        if asked % 3:
            raise UpstreamError("refused with status 429", where="x", status=429)
        return await made(endpoint, body, route=route)

    assert denied(asyncio.run(probe(ENDPOINT, transport=busy))) <= {"steady"}  # whose requests come at a time


def test_a_key_that_is_refused_ends_a_probe():
    async def refuses(endpoint: object, body: object, /, route: str = "") -> bytes:
        raise UpstreamError("refused with status 401", where="x", status=401)

    with pytest.raises(UpstreamError, match="401"):
        asyncio.run(probe(ENDPOINT, transport=refuses))


def test_a_context_that_is_too_short_for_a_question_denies_nothing():
    class Short(Made):
        def chat(self, body: Body) -> bytes:
            if len(body["messages"][0]["content"]) > 400:
                raise ContextExceeded("the conversation is too long", where="", status=400)
            return super().chat(body)

    findings = asyncio.run(probe(ENDPOINT, transport=Short())).findings
    assert findings["cached"] == Finding(None, "the model's context is too short to tell")
    assert findings["n"].does and findings["seed"].does
