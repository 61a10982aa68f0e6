"""What a live scheduler is told: forecasts and their scores, a shadow, the guard, metrics, and a replay."""

from __future__ import annotations

import asyncio
import json
import random
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from burnish.core.errors import EngineError, OutputError, SettingsError
from burnish.serve import metrics
from burnish.serve.forecasts import LEVELS, Forecasts, Scores, interval
from burnish.serve.guard import PolicyGuard
from burnish.serve.policies.laws import FEW, MOST, Law, Laws
from burnish.serve.policies.protocol import Job
from burnish.serve.policies.queues import ProgramFirst
from burnish.serve.policies.retention import FixedHold
from burnish.serve.policies.shares import VirtualTokenCounter
from burnish.serve.recorded import read_recording
from burnish.serve.replay import WORDS, Replay, model_of, prompt_of, replay
from burnish.serve.shadow import Shadow
from burnish.serve.telemetry import Recorder
from burnish.serve.watch import Watcher
from burnish.serve.workload import Turn, Workflow, Workload

SECOND = 10**9
ROOM: Any = SimpleNamespace(now=0, num_running=0, free=10**6, living=0, cached=lambda job: 0)


# -- forecasts ---------------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_numpy():
    law = Law()
    for value in (draw := random.Random(0).choices(range(1000), k=37)):
        law.add(value)
    assert law.quantiles(LEVELS) == np.quantile(draw, LEVELS, method="inverted_cdf").tolist()


def test_the_right_law_covers_what_it_says_and_scores_best():
    draw = np.random.default_rng(0)
    right, wide, late = Scores(), Scores(), Scores()
    quantiles = np.quantile(draw.exponential(size=20_000), LEVELS)
    for outcome in draw.exponential(size=4000):
        right.add(quantiles.tolist(), outcome)
        wide.add((3 * quantiles).tolist(), outcome)
        late.add((quantiles + 1).tolist(), outcome)
    assert right.means()["coverage_80"] == pytest.approx(0.8, abs=0.03)
    assert right.means()["crps"] == pytest.approx(0.5, rel=0.05)  # of the unit exponential law by itself
    assert right.crps < min(wide.crps, late.crps)
    assert interval(LEVELS) == pytest.approx((0.1, 0.9))


def test_a_group_with_few_values_has_the_law_of_all():
    laws = Laws()
    for _ in range(FEW + 1):
        laws.add(5, "common")
    laws.add(7, "rare")
    assert laws.find("rare") is laws.of_all
    assert laws.find("rare", "common") is laws.find("common") is not laws.of_all
    for name in range(2 * MOST):
        laws.add(1, name)
    assert len(laws._of) == MOST  # names come from clients


def test_forecasts_are_made_before_and_scored_after():
    forecasts = Forecasts()
    for number in range(FEW + 1):
        job = Job(str(number), "a", prompt=100)
        assert forecasts.asked(job) is None
        forecasts.answered(job, number)
    job = Job("next", "a", prompt=100)
    made = forecasts.asked(job)
    assert made == np.quantile(range(FEW + 1), LEVELS, method="inverted_cdf").tolist()
    forecasts.answered(job, 50)
    assert forecasts.lengths.means()["coverage_80"] == 1
    assert forecasts.paused("p", "t") is None
    assert forecasts.returned("p", "t", SECOND) is None


# -- a shadow ----------------------------------------------------------------------------------------------------------


def test_a_shadow_says_what_it_would_have_done():
    shadow = Shadow(VirtualTokenCounter(), FixedHold(2.0), ROOM)
    jobs = [Job("a1", "a", prompt=10), Job("a2", "a", prompt=10), Job("b1", "b", prompt=10)]
    for job in jobs:
        shadow.submit(job, 0, None)
    assert [shadow.admitted(name, 0, 0) for name in ("a1", "a2", "b1")] == ["a1", "b1", "b1"]
    assert (shadow.counts.agreed, shadow.counts.differed) == (2, 1)
    assert all(job.paid == 0 for job in jobs)  # nothing reaches the scheduler's own


def test_a_shadow_counts_holds_that_would_have_been_found():
    shadow = Shadow(ProgramFirst(), FixedHold(2.0), ROOM)
    for number, pause in enumerate((1, 3)):
        program = f"p{number}"
        shadow.submit(Job("first", "", program, tool="t"), 0, None)
        shadow.admitted("first", 0, 0)
        assert shadow.ended("first", 0, 10, waits=False, whole=True) == 2 * SECOND
        shadow.submit(Job("second", "", program, 1), pause * SECOND, ("t", pause * SECOND))
        shadow.ended("second", pause * SECOND, 10, waits=True, whole=False)
    assert (shadow.counts.holds, shadow.counts.hits, shadow.counts.late) == (2, 1, 1)
    assert len(shadow.order) == 0


def test_a_watcher_in_the_mode_advise_records_what_would_have_been_done(tmp_path: Path):
    shadow = Shadow(VirtualTokenCounter(), FixedHold(2.0), ROOM)
    watcher = Watcher("advise", 0, recorder=Recorder(tmp_path / "t", {}), shadow=shadow)
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        watcher.arrived(Job(name, tenant, program=name, tool="t", prompt=10), 0)
    watcher.admitted("a1", 1, 0)
    watcher.admitted("a2", 1, 0)
    watcher.ended("a1", 5, how="stopped", computed=10)
    watcher.idle()
    rows = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
    advice = [row for row in rows if row["event"] == "advice"]
    assert [row.get("request") for row in advice] == ["b1", None]
    assert advice[1]["hold_ns"] == 2 * SECOND


# -- the guard ---------------------------------------------------------------------------------------------------------


def fed(slower: float) -> PolicyGuard:
    """A guard that saw control times and others, in which requests waited so much longer."""
    guard, draw = PolicyGuard(), random.Random(0)
    for _ in range(300):
        guard.first_token(45, draw.uniform(1, 2))
        guard.first_token(300, slower * draw.uniform(1, 2))
    return guard


def test_a_policy_at_whose_cost_others_wait_is_left():
    assert fed(1.0).why(1000) == ""
    assert "in control times" in fed(1.2).why(1000)


def test_a_control_time_begins_when_older_holds_have_had_time_to_end():
    assert [PolicyGuard.is_control(now) for now in (0, 59, 60, 599, 600)] == [True, True, False, False, True]
    assert [PolicyGuard.counts_as_control(now) for now in (0, 29, 30, 59, 60)] == [False, False, True, True, False]
    guard = PolicyGuard()
    for _ in range(300):
        guard.first_token(10, 100.0)  # neither side
        guard.first_token(45, 1.0)
    assert guard.why(1000) == ""


def test_a_policy_whose_forecasts_are_lost_is_left():
    guard = PolicyGuard()
    for number in range(200):
        guard.forecast(inside=number % 5 > 0)
    assert guard.why(0) == ""
    for number in range(200):
        guard.forecast(inside=number % 2 > 0)
    assert guard.why(0) == "50% of the last pauses were within the central 80 % of their forecast"


def test_holds_over_their_budget_are_borne_for_half_a_minute():
    guard = PolicyGuard()
    guard.held(100, over=True)
    assert guard.why(129) == ""
    guard.held(129, over=False)
    guard.held(130, over=True)
    assert guard.why(159) == ""
    assert "over their budget" in guard.why(160)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_names_of_clients_do_not_grow_the_metrics():
    tally = metrics.TenantSums(most=3)
    for number in range(1000):
        tally.add(f"t{number}", requests_total=1)
    assert tally.columns()["requests_total"] == {"t0": 1, "t1": 1, "t2": 1, "other": 997}


def test_metrics_are_read_over_http():
    values = {"tenant_requests_total:tenant": {'a"\\\n': 3}, "held_blocks": 7}
    port = metrics.show(lambda: values, 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    assert lines == [
        "# TYPE burnish_tenant_requests_total counter",
        'burnish_tenant_requests_total{tenant="a\\"\\\\\\n"} 3',
        "# TYPE burnish_held_blocks gauge",
        "burnish_held_blocks 7",
    ]
    with pytest.raises(EngineError, match=f"port {port}: cannot be listened at"):
        metrics.show(lambda: values, port)


# -- a replay ----------------------------------------------------------------------------------------------------------


def test_prompts_share_what_the_workload_says_and_go_on():
    shared = tuple(Workflow(str(n), "", 0, (Turn(40, 2, blocks=(1, 2 + n)), Turn(60, 1))) for n in range(2))
    workload = Workload(shared, block_tokens=32)
    one, other = (prompt_of(workload, workflow, 0, []) for workflow in shared)
    assert len(one) == 40
    assert one[:32] == other[:32]
    assert one[32:] != other[32:]
    second = prompt_of(workload, shared[0], 1, [*one, 7, 8])
    assert (second[:42], len(second)) == ([*one, 7, 8], 60)
    assert set(second[:40]) <= set(WORDS)


async def against(answer: Any, workload: Workload, path: Path, most: int = 2, patience: float = 600) -> Replay:
    """A replay against a server of ours."""
    application = web.Application()
    application.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    recorder = Recorder(path, {})
    made = Replay(workload, f"http://127.0.0.1:{port}/v1/", "m", most=most, recorder=recorder, patience=patience)
    try:
        await made.run()
    finally:
        recorder.close()
        await runner.cleanup()
    return made


async def streamed(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    for token in range(body["max_tokens"]):
        piece = {"choices": [{"text": "x", "token_ids": [token]}]}
        await reply.write(f"data: {json.dumps(piece)}\n\n".encode())
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
    await reply.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
    return reply


def test_a_replay_asks_what_the_trace_asked(tmp_path: Path):
    seen, at_once, most = [], 0, 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        body = await request.json()
        seen.append(body)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        if body["vllm_xargs"]["tenant"] == "refused":
            return web.Response(status=400, text="no")
        return await streamed(request, body)

    turns = (Turn(20, 3, 10_000_000, "search"), Turn(30, 2))
    workflows = [Workflow("p", "a", 0, turns), *(Workflow(f"r{n}", "b", n, (Turn(5, 1),)) for n in range(6))]
    workload = Workload((*workflows, Workflow("x", "refused", 0, (Turn(5, 1),))))
    made = asyncio.run(against(answer, workload, tmp_path / "r.jsonl"))
    assert (made.served, list(made.failed), most) == (8, ["status 400: no"], 2)
    assert made.late >= 5
    first, second = (body for body in seen if body["vllm_xargs"].get("program") == "p")
    assert first["vllm_xargs"] == {"tenant": "a", "program": "p", "turn": 0, "tool": "search"}
    assert second["vllm_xargs"]["last"] == 1
    assert second["prompt"][:23] == [*first["prompt"], 0, 1, 2]
    found = read_recording(tmp_path / "r.jsonl")
    assert [len(workflow.turns) for workflow in found.workload.workflows if workflow.name == "p"] == [2]
    assert found.found.jobs[0].prompt in (5, 20)


def test_what_was_measured_before_a_server_dies_is_kept(tmp_path: Path):
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if len(body["prompt"]) == 9:
            await asyncio.sleep(0.2)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await streamed(request, body)

    workload = Workload(tuple(Workflow(str(n), "", 0, (Turn(9 if n == 2 else 5, 1),)) for n in range(4)))
    with pytest.raises(EngineError, match="3 requests were served before"):
        asyncio.run(against(answer, workload, tmp_path / "r.jsonl", most=8))
    assert len(read_recording(tmp_path / "r.jsonl").found.jobs) == 3


def test_a_server_that_falls_silent_in_the_middle_ends_a_replay_and_a_single_request_does_not(tmp_path: Path):
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        hangs = len(body["prompt"]) == 9
        if not hangs:
            return await streamed(request, body)
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(EVENT)
        await asyncio.sleep(30)
        return reply

    hangs = Workflow("hangs", "", 0, (Turn(9, 2),))
    lives = [Workflow(str(n), "", n * 50_000_000, (Turn(5, 1),)) for n in range(20)]
    made = asyncio.run(against(answer, Workload((hangs, *lives)), tmp_path / "r.jsonl", most=8, patience=0.4))
    assert made.served == 20
    assert made.failed == {"not a word for 0.4 seconds": 1}
    with pytest.raises(EngineError, match=r"said nothing for 0\.4 s; 1 requests were served before"):
        asyncio.run(against(answer, Workload((hangs, lives[0])), tmp_path / "s.jsonl", most=8, patience=0.4))
    assert len(read_recording(tmp_path / "s.jsonl").found.jobs) == 1


EVENT = b'data: {"choices": [{"text": "x", "token_ids": [1]}]}\n\n'


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"<html>a page</html>", r"does not end with \[DONE\]"),
        (EVENT, r"does not end with \[DONE\]"),
        (b"data: [DONE]\n\n", "without a token"),
        (EVENT + b"data: {oops\n\n", "no JSON"),
        (b"data: [1]\n\n", "no JSON object"),
        (b"data: " + b"x" * 600_000 + b"\n\n", "too long"),
        (EVENT + b'data: {"error": {"message": "dead"}}\n\ndata: [DONE]\n\n', "an error in its answer.*dead"),
        (b'data: {"choices": [1]}\n\n', "no list of objects"),
        (b'data: {"choices": [{"token_ids": "ab"}]}\n\n', "no whole numbers"),
    ],
)
def test_what_is_no_whole_answer_is_not_recorded_as_served(tmp_path: Path, said: bytes, why: str):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=said)

    made = asyncio.run(against(answer, Workload((Workflow("a", "", 0, (Turn(5, 2),)),)), tmp_path / "r.jsonl"))
    assert made.served == 0
    assert re.search(why, " ".join(made.failed))


def test_counts_that_a_server_cannot_mean_are_those_of_the_trace(tmp_path: Path):
    async def answer(request: web.Request) -> web.Response:
        usage = {"prompt_tokens": -5, "completion_tokens": "x", "prompt_tokens_details": [1]}
        return web.Response(body=EVENT + f"data: {json.dumps({'usage': usage})}\n\ndata: [DONE]\n\n".encode())

    asyncio.run(against(answer, Workload((Workflow("a", "", 0, (Turn(5, 2),)),)), tmp_path / "r.jsonl"))
    (job,) = read_recording(tmp_path / "r.jsonl").found.jobs
    assert (job.prompt, job.cached, job.output) == (5, 0, 2)


def test_a_file_of_somebody_else_stays_where_a_replay_would_write(tmp_path: Path):
    (tmp_path / "requests.jsonl").write_text("mine")
    workload = Workload((Workflow("a", "", 0, (Turn(5, 2),)),))
    with pytest.raises(OutputError, match="another kind of file"):
        replay(workload, "http://127.0.0.1:1/v1", "m", tmp_path, most=1, about={})
    assert (tmp_path / "requests.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    "url", ["foo", "http://a b/v1", "http://[/v1", "ftp://x/v1", "http://h:99999/v1", "http:///v1"]
)
def test_what_is_no_address_is_said_before_anything_is_asked(tmp_path: Path, url: str):
    workload = Workload((Workflow("a", "", 0, (Turn(5, 2),)),))
    with pytest.raises(SettingsError, match="is no address of a server; write http://HOST:PORT/v1"):
        replay(workload, url, "m", tmp_path / "out", most=1, about={})
    with pytest.raises(SettingsError, match="is no address"):
        model_of(url)
    assert not (tmp_path / "out").exists()
