"""What vLLM is proposed: rows are their requests wherever they stand, and answers stay with their tenant and salt."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from burnish import cli
from burnish.core.errors import EngineError
from burnish.serve.up import Foretold, speculating_options
from burnish.serve.vllm.keys import SaltNamed
from burnish.serve.vllm.requests import memory_of
from burnish.serve.vllm.v0_32_proposer import TrieProposer

PROMPT, ANSWER = list(range(100, 120)), list(range(500, 530))


class Runner:
    """The part of vLLM's model runner that a proposer sees; in a step requests stand in any row."""

    def __init__(self, k: int = 4, longest: int = 64) -> None:
        config: Any = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=longest),
            speculative_config=SimpleNamespace(num_speculative_tokens=k),
        )
        self.drafter = TrieProposer(config)
        self.requests: dict[str, Any] = {}
        self.texts: dict[str, list[int]] = {}
        self.input_batch: Any = SimpleNamespace(req_ids=[], token_ids_cpu=np.zeros((4, longest), np.int32))

    def add(self, name: str, prompt: list[int], **arguments: Any) -> None:
        sampling = SimpleNamespace(extra_args=arguments or None)
        self.requests[name] = SimpleNamespace(num_prompt_tokens=len(prompt), sampling_params=sampling)
        self.texts[name] = list(prompt)

    def step(self, order: list[str], drawn: dict[str, list[int]], *, as_view: bool = False) -> dict[str, list[int]]:
        batch = self.input_batch
        batch.req_ids = order
        num = np.zeros(4, np.int32)
        for row, name in enumerate(order):
            self.texts[name] += drawn.get(name, [])
            num[row] = len(self.texts[name])
            batch.token_ids_cpu[row, : num[row]] = self.texts[name]
        sampled = [drawn.get(name, []) for name in order]
        tokens = batch.token_ids_cpu[:] if as_view else batch.token_ids_cpu
        return dict(zip(order, self.drafter.propose(sampled, num, tokens), strict=True))

    def answer(self, name: str, answer: list[int]) -> list[list[int]]:
        """Token by token to the end; what was proposed after each."""
        found = [self.step([name], {name: [token]})[name] for token in answer]
        del self.requests[name]
        return found


def test_an_answer_is_proposed_to_the_next_request_like_it():
    runner = Runner()
    runner.drafter.load_model("whatever")
    runner.add("a", PROMPT)
    assert runner.answer("a", ANSWER) == [[]] * len(ANSWER)
    runner.add("b", PROMPT)
    proposed = runner.answer("b", ANSWER)
    assert proposed[:3] == [ANSWER[1:5], ANSWER[2:6], ANSWER[3:7]]
    assert runner.drafter.memory.counts.tokens == 2 * (len(ANSWER) - 1)


def test_rows_may_move_and_a_prompt_that_is_not_read_gets_nothing():
    runner = Runner()
    runner.add("a", [1, 2, 3, 4, 1])
    runner.add("b", [5, 6, 7, 8, 5])
    assert runner.step(["a", "b"], {"a": [2]}) == {"a": [3, 4, 1, 2], "b": []}
    assert runner.step(["b", "a"], {"a": [3], "b": [6]}) == {"a": [4, 1, 2, 3], "b": [7, 8, 5, 6]}
    assert set(runner.drafter._under_way) == {"a", "b"}
    del runner.requests["b"]
    runner.step(["a"], {"a": [4]})
    assert set(runner.drafter._under_way) == {"a"}


def test_nothing_is_proposed_past_the_longest_text():
    runner = Runner(k=8, longest=16)
    runner.add("a", [1, 2, 3] * 4)
    assert len(runner.step(["a"], {"a": [1]})["a"]) == 3
    assert len(runner.step(["a"], {"a": [2, 3]})["a"]) == 1
    assert runner.step(["a"], {"a": [1]})["a"] == []


@pytest.mark.parametrize("apart", [{"cache_salt": "x"}, {"tenant": "org/x"}])
def test_salts_and_tenants_keep_answers_apart(apart: dict[str, str]):
    runner = Runner()
    runner.add("a", PROMPT, **apart)
    runner.answer("a", ANSWER)
    runner.add("b", PROMPT)
    assert runner.answer("b", ANSWER)[0] == []
    runner.add("c", PROMPT, **{next(iter(apart)): "y"})
    assert runner.answer("c", ANSWER)[0] == []
    runner.add("d", PROMPT, **apart)
    assert runner.answer("d", ANSWER)[0] == ANSWER[1:5]


def test_a_tenant_and_a_salt_are_no_other_pair_and_a_salt_counts_whatever_it_is():
    said = [None, {"tenant": "a", "cache_salt": "b"}, {"tenant": "ab"}, {"cache_salt": "ab"}, {"cache_salt": 7}]
    said.append({"cache_salt": "x" * 10_000})
    assert len({memory_of(one) for one in said}) == len(said)
    assert memory_of(None) == memory_of({"turn": 3}) == ""


def test_where_requests_cannot_be_told_apart_nothing_is_shared_and_that_is_said(caplog: pytest.LogCaptureFixture):
    runner = Runner()
    for name in ("a", "b"):
        runner.add(name, [1, 2, 3, 4, 1])
        assert runner.step([name], {name: [2]}, as_view=True)[name] == [3, 4, 1, 2]
        assert runner.step([name], {name: [9, 8]}, as_view=True)[name] == []
        del runner.requests[name]
    assert (
        runner.drafter.memory.nbytes
        == TrieProposer(
            SimpleNamespace(  # pyright: ignore[reportArgumentType]
                model_config=SimpleNamespace(max_model_len=64),
                speculative_config=SimpleNamespace(num_speculative_tokens=4),
            )
        ).memory.nbytes
    )
    assert [record.message for record in caplog.records].count(
        "burnish: requests cannot be told apart in this vLLM, so each remembers its own prompt and answer alone"
    ) == 1


# -- the server --------------------------------------------------------------------------------------------------------


def passed(body: Any) -> Any:
    """What the server behind the layer reads of a request."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        seen.append(message["body"])

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-length", str(len(body)).encode()), (b"x-burnish-tenant", b"z")]
    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": headers}
    send: Any = None
    asyncio.run(SaltNamed(app)(scope, receive, send))
    return seen[0]


def test_a_salt_is_copied_to_where_the_proposer_sees_it():
    read = json.loads(
        passed(json.dumps({"cache_salt": "s", "vllm_xargs": {"turn": 1, "cache_salt": "of another"}}).encode())
    )
    assert read == {"cache_salt": "s", "vllm_xargs": {"turn": 1, "cache_salt": "s"}}
    for body in (b'{"prompt": "x"}', b'{"cache_salt": 7}', b"no json", b"[1]"):
        assert passed(body) == body


def test_options_and_counts_are_those_of_vllm():
    options = speculating_options(6)
    config = json.loads(options[options.index("--speculative-config") + 1])
    assert config == {"method": "custom_class", "model": "burnish.serve.vllm.TrieProposer", "num_speculative_tokens": 6}
    text = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
vllm:generation_tokens_total{engine="0",model_name="m"} 120.0
vllm:generation_tokens_total{engine="1",model_name="m"} 80.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 70.0
"""
    assert Foretold.of_metrics(text) == Foretold(200, 150)
    assert str(Foretold(200, 150)) == "150 of 200 tokens (75%) took no forward pass of their own"
    assert str(Foretold()) == "0 of 0 tokens took no forward pass of their own"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "one is needed, a policy, proposals or vectors to steer with; give"),
        (["--speculate", "trie", "--policy", "vtc"], "asynchronous scheduler"),
        (["--speculate", "trie", "--telemetry", "t.jsonl"], "some options are those of a policy"),
        (["--speculate", "ngram"], "speculate"),
        (["--speculate", "trie", "--num-speculative-tokens", "0"], "num"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Any, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="1"):
        cli.main(["serve", "up", str(tmp_path), "--python", "x", *options])
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_proposals_of_a_server_behind_are_its_own(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="1"):
        cli.main(["reason", "serve", "--upstream", "http://127.0.0.1:1/v1", "--speculate", "trie"])
    assert "is for a local model" in capsys.readouterr().err


def test_a_server_that_is_too_busy_to_count_is_served_on(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    from burnish.cli.serve import _stay

    answers, looks = iter([TimeoutError(), Foretold(200, 150)]), []

    def counted(url: str) -> Foretold:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    def check() -> None:
        looks.append(None)
        if len(looks) == 3:
            raise EngineError("has ended")

    monkeypatch.setattr("burnish.serve.up.foretold", counted)
    monkeypatch.setattr("burnish.cli.serve.SAY_EVERY", -1.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    engine: Any = SimpleNamespace(url="http://127.0.0.1:1/v1", check=check)
    with pytest.raises(EngineError, match="has ended"):
        _stay(engine, proposes=True)
    assert capsys.readouterr().out == "150 of 200 tokens (75%) took no forward pass of their own\n"
