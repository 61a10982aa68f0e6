"""Loaders: what they read, and what they refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import DataError
from burnish.serve.traces import drawn_programs, hit_share, read_trace, with_tenants
from burnish.serve.workload import Turn

REFERENCE = Path(__file__).parent.parent / "reference/serve"


def written(tmp_path: Path, text: str, name: str = "trace.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


MOONCAKE = {"timestamp": 27, "input_length": 700, "output_length": 5, "hash_ids": [3, 4]}


def test_mooncake(tmp_path: Path):
    text = lines(MOONCAKE, MOONCAKE | {"timestamp": 1027, "hash_ids": [3, 9]})
    for path in (written(tmp_path, text), tmp_path / "trace.jsonl.gz"):
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        workload = read_trace(path)
        assert [one.arrival for one in workload.workflows] == [0, 1_000_000_000]
        assert workload.workflows[0].turns == (Turn(700, 5, blocks=(3, 4)),)
        assert workload.block_tokens == 512
        assert hit_share(workload) == (1, 4)
        assert not workload.synthetic


def test_azure(tmp_path: Path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.0000000,396,0"
    )
    workload = read_trace(written(tmp_path, text, "azure.csv"))
    assert [one.arrival for one in workload.workflows] == [0, 4_314_579_000]
    assert [one.turns[0] for one in workload.workflows] == [Turn(374, 44), Turn(396, 109)]
    assert workload.dropped == {"answers of no token": 1}
    assert workload.block_tokens == 0  # it has no prefixes, and none are made up


def test_burst(tmp_path: Path):
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,1,2,ChatGPT,472,18,490,Conversation log\n45.5,1,2,ChatGPT,0,0,0,API log\n"
        "46,1,2,GPT-4,1087,230,1317,API log\n"
    )
    workload = read_trace(written(tmp_path, text, "burst.csv"))
    assert [one.arrival for one in workload.workflows] == [0, 41_000_000_000]
    assert workload.dropped == {"no tokens": 1}


def test_own_rows_of_a_program_are_its_turns(tmp_path: Path):
    text = lines(
        {"arrival_s": 2, "prompt_tokens": 10, "output_tokens": 5, "tenant": "a/институт", "program": "p"},
        {"arrival_s": 1.5, "prompt_tokens": 9, "output_tokens": 1},
        {"prompt_tokens": 20, "output_tokens": 6, "program": "p", "pause_s": 0.25, "tool": "search"},
    )
    single, program = read_trace(written(tmp_path, text)).workflows
    assert (single.arrival, program.arrival) == (0, 500_000_000)
    assert program.tenant == "a/институт"
    assert program.turns == (Turn(10, 5, 250_000_000, "search"), Turn(20, 6))


def span(begin: float, end: float, names: tuple[str, str] = ("input", "output"), **said: object) -> dict:
    """A span of OTLP JSON of 30 tokens and 5, from and to so many seconds; numbers as texts, as protobuf has them."""
    counts = {f"gen_ai.usage.{names[0]}_tokens": 30, f"gen_ai.usage.{names[1]}_tokens": 5}
    values = counts | {f"gen_ai.{name.replace('__', '.')}": value for name, value in said.items()}
    attributes = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
    ]
    times = {f"{which}TimeUnixNano": str(round(1e18 + at * 1e9)) for which, at in (("start", begin), ("end", end))}
    return {"name": "request", "attributes": attributes} | times


def otlp(*spans: dict) -> dict:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def test_spans_of_opentelemetry_are_requests(tmp_path: Path):
    """Spans are written when they end; those of whole agents sum up others, and what has no tokens is no request."""
    text = lines(
        otlp(span(2, 3), span(0, 9, operation__name="invoke_agent"), {"name": "tool", "attributes": []}),
        otlp(span(1.5, 2, usage__output_tokens=0)),
        otlp(span(1, 8, names=("prompt", "completion")), span(4, 9, operation__name="chat")),
    )
    workload = read_trace(written(tmp_path, text))
    assert [one.arrival / 1e9 for one in workload.workflows] == [0, 1, 3]
    assert {one.turns for one in workload.workflows} == {(Turn(30, 5),)}
    assert {one.tenant for one in workload.workflows} == {""}
    assert workload.dropped == {"no tokens": 1}
    assert len(read_trace(written(tmp_path, text), limit=2).workflows) == 2
    assert not workload.synthetic


def test_what_the_sdk_of_opentelemetry_writes_is_read():
    conversation, single = read_trace(REFERENCE / "otlp.jsonl").workflows
    assert conversation.turns == (Turn(100, 20, 2_250_000_000, "tool"), Turn(160, 7))
    assert (single.arrival, single.turns) == (2_000_000_000, (Turn(44, 3),))


def test_spans_of_one_conversation_are_turns_while_one_holds_the_other(tmp_path: Path):
    same: dict[str, Any] = {"conversation__id": "c"}
    longer: dict[str, Any] = {"usage__input_tokens": 40}
    text = lines(
        otlp(span(0, 1, **same), span(3, 4, **same, **longer)),  # two turns
        otlp(span(5, 6, **same)),  # its beginning was cut off
        otlp(span(5.5, 7, **same, **longer)),  # under way at the same time
    )
    workflows = read_trace(written(tmp_path, text)).workflows
    assert [[turn.prompt for turn in one.turns] for one in workflows] == [[30, 40], [30], [40]]
    assert workflows[0].turns[0].pause == 2_000_000_000
    assert len({one.name for one in workflows}) == 3


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"resourceSpans": [5]}, r"jsonl:1: resourceSpans is \[5\]"),
        (otlp({"attributes": {}}), "attributes is"),
        (otlp(span(0, 1, usage__input_tokens="many")), "gen_ai.usage.input_tokens is 'many'"),
        (otlp(span(0, 1) | {"startTimeUnixNano": None}), "startTimeUnixNano is None"),
        (otlp(), "has no span of a request"),
        (otlp(span(0, 1, usage__output_tokens=0)), "has no span of a request"),
    ],
)
def test_what_is_no_span_of_a_request_is_one_sentence(tmp_path: Path, row: dict, told: str):
    with pytest.raises(DataError, match=told):
        read_trace(written(tmp_path, lines(row)))


OWN = {"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 5}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("", "t.jsonl", "has no rows"),
        ("\n\n", "t.jsonl", "has no rows"),
        ('{"a": 1}\n', "t.jsonl", "is no trace that is known.*has a"),
        (lines(MOONCAKE) + "{broken\n", "t.jsonl", "t.jsonl:2: is not valid JSON"),
        (lines(MOONCAKE) + "[1]\n", "t.jsonl", "t.jsonl:2: is no object"),
        (lines(MOONCAKE | {"input_length": 1025}), "t.jsonl", "1,025 tokens in 2 pieces of 512"),
        (lines(MOONCAKE | {"hash_ids": "3"}), "t.jsonl", "hash_ids are '3'"),
        (lines(MOONCAKE | {"hash_ids": [-1, 2]}), "t.jsonl", "hash_ids are"),
        (lines(MOONCAKE | {"hash_ids": [True, False]}), "t.jsonl", "hash_ids are"),
        (lines(MOONCAKE, MOONCAKE | {"timestamp": 26}), "t.jsonl", "t.jsonl:2: is earlier than the row before it"),
        (lines(MOONCAKE | {"input_length": 0}), "t.jsonl", "input_length is 0"),
        (lines(MOONCAKE | {"output_length": True}), "t.jsonl", "output_length is True"),
        (lines(MOONCAKE | {"output_length": 0}), "t.jsonl", "has no request in it"),
        (lines(MOONCAKE | {"timestamp": -1}), "t.jsonl", "timestamp is -1"),
        (lines(MOONCAKE | {"timestamp": "soon"}), "t.jsonl", "timestamp is 'soon'"),
        (AZURE + "yesterday,1,2\n", "t.csv", "TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:15:46,x,2\n", "t.csv", "t.csv:2: ContextTokens is 'x'"),
        (AZURE + "2023-11-16 18:15:46\n", "t.csv", "GeneratedTokens is None"),
        (lines(OWN | {"prompt_tokens": 1e3}), "t.jsonl", "prompt_tokens is 1000.0"),
        (lines(OWN | {"prompt_tokens": 10**12}), "t.jsonl", "prompt_tokens is 1000000000000"),
        (lines(OWN | {"tenant": 5}), "t.jsonl", "tenant is 5"),
        (lines({"prompt_tokens": 1, "output_tokens": 1}), "t.jsonl", "arrival_s is None"),
        (lines(OWN | {"program": "p"}, OWN | {"program": "p", "pause_s": 1}), "t.jsonl", "does not hold the turn"),
        (lines(OWN | {"program": "p"}, OWN | {"program": "p", "prompt_tokens": 20}), "t.jsonl", "pause_s is None"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, name: str, told: str):
    with pytest.raises(DataError, match=told):
        read_trace(written(tmp_path, text, name))


def test_drawn_tenants_are_said_to_be_drawn_and_the_same_for_a_seed(tmp_path: Path):
    workload = read_trace(written(tmp_path, lines(*[MOONCAKE] * 400)))
    one, two = (with_tenants(workload, {"a": 3, "b": 1}, seed=1) for _ in range(2))
    assert one == two
    assert one.synthetic == ("tenants are drawn",)
    assert sum(workflow.tenant == "a" for workflow in one.workflows) == pytest.approx(300, abs=40)


def test_drawn_workflows_have_the_laws_that_are_stated():
    workload = drawn_programs(2000, 0.5, lambda draw: ("t", draw.expovariate(1.0)), 0, law="nothing")
    turns = [len(workflow.turns) for workflow in workload.workflows]
    assert sum(turns) / len(turns) == pytest.approx(16, rel=0.06)
    assert workload.workflows[-1].arrival / 1e9 == pytest.approx(4000, rel=0.06)
    first, second = next(workflow for workflow in workload.workflows if len(workflow.turns) == 2).turns
    assert (first.prompt, second.prompt) == (12_000, 13_200)
    assert (second.pause, second.tool) == (0, "")
    assert workload.synthetic


def test_azures_dates_have_a_zone_and_a_fraction_or_not(tmp_path: Path):
    stamps = ["2024-05-10 00:00:00.0099309+00:00", "2024-05-10 00:00:01+00:00", "2024-05-10 00:00:02"]
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{stamp},3,4\n" for stamp in stamps)
    workload = read_trace(written(tmp_path, text, "azure.csv"))
    assert [one.arrival for one in workload.workflows] == [0, 990_070_000, 1_990_070_000]


def test_a_field_without_end_is_said_with_its_line(tmp_path: Path):
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{'x' * 200_000},3,4\n"
    with pytest.raises(DataError, match=r"azure.csv:2: is no row of a table \(field larger"):
        read_trace(written(tmp_path, text, "azure.csv"))


def test_a_program_has_one_tenant(tmp_path: Path):
    first = {"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 5, "program": "p", "tenant": "a"}
    later = {"pause_s": 1, "prompt_tokens": 20, "output_tokens": 5, "program": "p"}
    assert read_trace(written(tmp_path, lines(first, later))).workflows[0].tenant == "a"
    with pytest.raises(DataError, match=r":2: is of tenant 'b', but its program 'p' began as 'a'"):
        read_trace(written(tmp_path, lines(first, later | {"tenant": "b"})))


def test_what_is_too_much_is_said_with_the_bound(tmp_path: Path):
    row = {"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 5}
    with pytest.raises(DataError, match="from 1 to 100,000,000"):
        read_trace(written(tmp_path, lines(row | {"prompt_tokens": 10**12})))
    with pytest.raises(DataError, match="below 1e12"):
        read_trace(written(tmp_path, lines(row | {"arrival_s": 1e300})))
