"""Calls: each issued once, whatever the server does; all that left the machine is counted."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.core.errors import OutputError, SettingsError
from burnish.reason import Budget, Endpoint, Journal, JournalReader, Pool, Price, UpstreamError, Usage
from burnish.reason.journal import FILE
from burnish.reason.limits import Limiter
from exact_server import ExactServer, InProcess
from reason_runs import Ends, run

STRATEGIES = ["direct", "self-consistency:6", "gsa:4", "rsa(n=4,k=2,loops=3)"]


def reader(directory: Path) -> JournalReader:
    return JournalReader(directory)


def test_strategies_share_plain_samples_and_each_is_charged_in_full(tmp_path: Path, server: ExactServer):
    found = run(tmp_path, STRATEGIES, 2, server=server)
    paid = reader(tmp_path).paid()["exact"]
    assert sum(server.asked.values()) == paid.usage.calls == 2 * (6 + 1 + 8)
    assert paid.usage.prompt == server.tokens["prompt_tokens"]
    assert paid.usage.completion == server.tokens["completion_tokens"]
    charged = {name.partition("|")[2]: result.used["exact"].calls for name, result in found.items()}
    assert list(charged.values()) == [1, 6, 5, 12]


FAULTS = [
    ((0.5, "429"),),
    ((0.2, "500"), (0.2, "html")),
    ((0.2, "empty"), (0.2, "null"), (0.2, "break")),
]


@pytest.mark.parametrize("faults", FAULTS, ids=["429", "500 and html", "half answers"])
def test_faults_and_latencies_change_no_record_and_no_call_is_issued_again_after_success(tmp_path: Path, faults):
    expected = run(tmp_path / "calm", STRATEGIES, 2)
    with ExactServer(latency=0.02, faults=faults) as server:
        found = run(tmp_path / "storm", STRATEGIES, 2, server=server, attempts=40)
        assert found == expected
        assert set(server.answered.values()) == {1}
        paid = reader(tmp_path / "storm").paid()["exact"]
        assert paid.usage.calls == sum(server.asked.values())
        assert paid.retried == sum(server.asked.values()) - sum(server.answered.values()) > 0
    assert reader(tmp_path / "storm").problems() == []


def test_a_finished_run_asks_for_nothing(tmp_path: Path):
    transport = InProcess()
    first = run(tmp_path, STRATEGIES, 3, transport=transport)
    asked = len(transport.bodies)
    assert run(tmp_path, STRATEGIES, 3, transport=transport) == first
    assert len(transport.bodies) == asked


@pytest.mark.parametrize("where", ["key", "address"])
def test_no_secret_is_in_any_file(tmp_path: Path, where: str):
    with ExactServer(key="another") as server:
        url, key = server.url, "sk-canary-1234"
        if where == "address":
            url, key = url.replace("http://", "http://user-canary:word-canary@"), ""
        endpoint = Endpoint(url, "exact", api_key=key)
        with pytest.raises(UpstreamError, match="401") as caught:
            run(tmp_path, ["direct"], endpoints=[endpoint], transport="http")
    assert endpoint.authorization.split()[1] not in caught.value.body
    for text in (str(caught.value), caught.value.body, endpoint.address):
        assert "canary" not in text
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes()
        assert endpoint.authorization.split()[1].encode() not in path.read_bytes()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_two_processes_or_runs_do_not_share_a_journal(tmp_path: Path):
    with Journal(tmp_path, {"data": 1}), pytest.raises(OutputError, match="written by another process"):
        Journal(tmp_path, {"data": 1})
    with pytest.raises(OutputError, match="what differs: data"):
        Journal(tmp_path, {"data": 2})
    Journal(tmp_path, {"data": 1}).close()


def test_a_journal_with_a_bound_forgets_its_older_half_and_stays_sound(tmp_path: Path):
    """Three megabytes go through one of at most half a megabyte; what is newest is there."""
    endpoint, most = Endpoint("http://127.0.0.1:1/v1", "m"), 512 * 1024

    async def said(endpoint: Endpoint, body: object, /) -> bytes:
        message = {"content": "x" * 10_000}
        return json.dumps({"choices": [{"message": message}]}).encode()

    async def go() -> int:
        async with Pool([endpoint], journal, transport=said) as pool:
            replies = [
                await pool.call("m", [{"role": "user", "content": str(number)}], f"p{number}") for number in range(300)
            ]
            assert journal.find(replies[-1].key) == replies[-1]
            assert journal.find(replies[0].key) is None
        return len(list(reader(tmp_path).calls()))

    with Journal(tmp_path, most=most) as journal:
        kept = asyncio.run(go())
        size = (tmp_path / FILE).stat().st_size
    assert 10 < kept < 60
    assert size < 2 * most
    assert reader(tmp_path).problems() == []


def test_a_file_that_is_no_journal_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(OutputError, match="is no journal or is damaged"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("budget", "calls"), [(Budget(calls=5), 5), (Budget(completion_tokens=0), 0), (Budget(seconds=0), 0)]
)
def test_a_budget_ends_a_strategy_with_what_it_has(tmp_path: Path, budget: Budget, calls: int):
    transport = InProcess()
    found = run(tmp_path, ["self-consistency:8"], transport=transport, budget=budget)
    (result,) = found.values()
    assert result.stopped == "budget"
    assert len(transport.bodies) == calls
    assert len(result.loops[0]) == calls if calls else result.text == ""


def test_a_budget_of_money_needs_prices(tmp_path: Path):
    with pytest.raises(SettingsError, match="a price or the server's count of tokens is unknown"):
        run(tmp_path, ["self-consistency:8"], budget=Budget(cost=1.0))


def test_a_price_or_a_usage_that_is_unknown_makes_no_cost_of_zero(tmp_path: Path):
    price = Price(input=1.0, output=2.0, cached_input=0.5)
    assert Usage(1, 1_000_000, 500_000, 1_000_000).cost(price) == pytest.approx(0.5 + 0.25 + 2.0)
    assert Usage(1, 10, 0, 10).cost(None) is None
    with ExactServer(faults=((1.0, "no usage"),)) as server:
        (result,) = run(tmp_path, ["direct"], server=server).values()
    assert result.used["exact"] == Usage(calls=1, unknown=1)
    assert result.used["exact"].cost(price) is None


def test_an_unreachable_server_is_one_sentence(tmp_path: Path):
    with pytest.raises(UpstreamError, match=r"http://127\.0\.0\.1:1/v1: cannot be reached"):
        run(tmp_path, ["direct"], endpoints=[Endpoint("http://127.0.0.1:1/v1", "m")], transport="http", attempts=1)


def test_who_gives_up_ends_the_request_unless_another_waits(tmp_path: Path):
    async def go() -> None:
        started = asyncio.Event()
        release = asyncio.Event()

        async def slow(endpoint: object, body: object) -> bytes:
            started.set()
            await release.wait()
            return await InProcess()(endpoint, body)

        with Journal(tmp_path) as journal:
            pool = Pool([Endpoint("http://127.0.0.1:1/v1", "exact")], journal, transport=slow)
            message = [{"role": "user", "content": "x"}]
            one, two = (asyncio.create_task(pool.call(None, message, "p/sample/0")) for _ in range(2))
            await started.wait()
            one.cancel()
            await asyncio.sleep(0)
            release.set()
            assert (await two).text
            assert journal.paid()["exact"].usage.calls == 1

    asyncio.run(go())


def test_a_limiter_halves_once_for_a_storm_and_grows_after_quiet():
    now = [0.0]

    async def go() -> None:
        limiter = Limiter(64, 16, clock=lambda: now[0])
        entered = [await limiter.enter() for _ in range(16)]
        now[0] = 1.0
        for one in entered:
            limiter.leave(one, trouble=True)
        assert limiter.places == 8
        now[0] = 22.0
        limiter.leave(await limiter.enter(), trouble=False)
        assert limiter.places == pytest.approx(8 * 1.3)

    asyncio.run(go())


def test_extracted_answers_are_compared_not_texts():
    assert Ends().extract("x Final answer: 3") == "3"


def test_three_hundred_calls_each_leave_once(tmp_path: Path, server: ExactServer):
    server.latency = 0.01
    endpoint = Endpoint(server.url, "exact", concurrency=64)
    found = run(tmp_path, ["self-consistency:15"], 20, endpoints=[endpoint], transport="http", start=64)
    assert sum(one.used["exact"].calls for one in found.values()) == 300
    assert set(server.asked.values()) == set(server.answered.values()) == {1}
    assert len(server.asked) == reader(tmp_path).paid()["exact"].usage.calls == 300
    assert server.most_at_once <= 64


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fifty_thousand_calls_leave_memory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
):
    """What is kept of a call would be some hundred bytes: its key and path alone are that."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import reason_client

    held: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50_000):
            if number in (10_000, 49_999):
                held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            yield number

    with reason_client.server() as url:
        asyncio.run(reason_client.asked("burnish", url, numbers(), tmp_path))
    record_property("bytes_more_a_call", (held[1] - held[0]) / 40_000)
    assert (held[1] - held[0]) / 40_000 < 100
    assert reader(tmp_path).paid()["m"].usage.calls == 50_000
