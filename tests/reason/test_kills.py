"""A run that is killed again and again loses nothing, and pays for nothing that it has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from kills import killed_and_resumed, killed_live, many

from burnish.core.engines import vllm
from burnish.reason import Endpoint
from small_models import small_llama, small_tokenizer


def recorded(record_property: Callable[[str, object], None], found: Mapping[str, int]) -> None:
    """Counts beside the outcome of a test."""
    for name, number in found.items():
        record_property(name, number)


@pytest.mark.slow
def test_five_kills_lose_nothing_and_issue_nothing_twice_after_success(tmp_path: Path):
    assert killed_and_resumed(tmp_path, 5)["kills"] > 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_kills(record_property: Callable[[str, object], None]):
    found = many(100)
    recorded(record_property, found)
    assert found["kills"] == 100


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    "VLLM_PYTHON" not in os.environ, reason="needs an environment with vLLM, which make test-reason has"
)
def test_ten_kills_against_vllm(tmp_path: Path, record_property: Callable[[str, object], None]):
    small_llama(max_position_embeddings=2048, head_dim=32).save_pretrained(tmp_path / "tiny")
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tiny")
    with vllm(os.environ["VLLM_PYTHON"], tmp_path / "tiny", log=tmp_path / "log") as engine:
        endpoint = Endpoint(engine.url, "tiny", sampling={"temperature": 1.0, "max_tokens": 24})
        found = killed_live(tmp_path / "run", endpoint, 10)
    recorded(record_property, found)
    assert found["kills"] == 10


def test_the_newest_run_against_a_real_server_is_kept():
    kept = json.loads((Path(__file__).parent / "killed_live.json").read_text())
    assert kept["kills"] >= 10
    assert kept["calls"] <= kept["counted_by_the_server"] <= kept["calls"] + kept["lost"] + kept["retried"]


def test_the_newest_long_run_is_kept():
    kept = json.loads((Path(__file__).parent / "killed.json").read_text())
    assert kept["kills"] >= 100
    assert kept["records_that_differ"] == kept["issued_again_after_success"] == 0


def test_the_newest_outcome_of_make_test_reason_is_kept():
    kept = json.loads((Path(__file__).parent / "at_length.json").read_text())
    assert {"long tests", "tests against vLLM"} <= set(kept)
    assert all(part["passed"] for part in kept.values())
    tests = {name.rpartition(".")[2]: outcome for name, outcome in kept["long tests"]["tests"].items()}
    assert tests["test_a_hundred_kills"] | {"kills": "100"} == tests["test_a_hundred_kills"]
    assert tests["test_ten_kills_against_vllm"] | {"kills": "10"} == tests["test_ten_kills_against_vllm"]
    assert float(tests["test_fifty_thousand_calls_leave_memory_as_it_was"]["bytes_more_a_call"]) < 100
    assert tests["test_164_solutions_pass_and_164_mutants_fail"]["outcome"] == "passed"
