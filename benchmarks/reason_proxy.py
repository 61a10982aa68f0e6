"""What does `burnish reason serve --upstream` cost: processor time a call, wait added, delay of a streamed token?

A server that answers 1 kB after 50 ms, the proxy, and the client that asks are three processes. The client is a bare
loop over aiohttp, 8 or 64 requests at a time; who is asked takes turns: the server itself, the proxy with a plain
request, the proxy with `direct@`, whose call goes through the journal. Delays of streamed tokens are from the server's
write to the client's read, by one clock; what the proxy adds is the difference of the medians. With 64 at a time a
process that needs 1 ms for a call is busy all the time, and the rest of the wait is that of a queue.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import experiment
import psutil
from aiohttp import web

CALLS, ROUNDS, TOKENS = (40, 1, 20) if experiment.SMOKE else (640, 5, 200)
AT_A_TIME, LATENCY, SPACING = (8, 64), 0.05, 0.005
SIDES = {"the server itself": "m", "plain through the proxy": "m", "direct@ through the proxy": "direct@m"}


def behind(port: int) -> None:
    """The server that is asked."""
    text = "word " * 200

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            await asyncio.sleep(LATENCY)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 200}})
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(TOKENS):
            await asyncio.sleep(SPACING)
            await response.write(b"data: %d\n\n" % time.monotonic_ns())
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", lambda request: web.json_response({}))
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def main() -> None:
    if sys.argv[1:2] == ["--behind"]:
        behind(int(sys.argv[2]))
        return
    arguments = experiment.Command(__file__, __doc__).read()
    from burnish.core.engines import EngineProcess

    with tempfile.TemporaryDirectory() as place:
        log, proxy_log = Path(place, "behind.log"), Path(place, "proxy.log")
        smoke = ["--smoke"] * experiment.SMOKE
        with EngineProcess([sys.executable, __file__, "--behind", "{port}", *smoke], log=log) as server:
            command = [sys.executable, "-m", "burnish", "reason", "serve", "--upstream", server.url, "--port", "{port}"]
            with EngineProcess(command, log=proxy_log, health="/health") as proxy:
                content = asyncio.run(measured(server.url, proxy.url, of_port(proxy.port)))
    settings = {"calls": CALLS, "rounds": ROUNDS, "at_a_time": AT_A_TIME, "latency_s": LATENCY, "tokens": TOKENS}
    load = os.getloadavg()[0]
    experiment.record(
        arguments.out,
        __doc__,
        {"settings": settings, "load_before": load, **content},
        note=f"load {load:.0f} on {os.cpu_count()} cores: waits are those of a busy machine" if load > 1 else "idle",
        libraries=("aiohttp",),
    )


def of_port(port: int) -> psutil.Process:
    """The process that listens."""
    found = next(one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port)
    return psutil.Process(found)


async def measured(server: str, proxy: str, process: psutil.Process) -> dict[str, Any]:
    urls = dict(zip(SIDES, (server, proxy, proxy), strict=True))
    waits: dict[str, dict[str, list[float]]] = {name: {str(many): [] for many in AT_A_TIME} for name in SIDES}
    cpu: dict[str, dict[str, list[float]]] = {name: {str(many): [] for many in AT_A_TIME} for name in SIDES}
    delays: dict[str, list[list[float]]] = {"the server itself": [], "plain through the proxy": []}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        for number in range(ROUNDS + 1):  # round 0 warms up
            for name, many in list(itertools.product(SIDES, AT_A_TIME))[:: -1 if number % 2 else 1]:
                before = sum(process.cpu_times()[:2])
                found = await asked(session, urls[name], SIDES[name], many)
                spent = sum(process.cpu_times()[:2]) - before
                if number:
                    waits[name][str(many)].append(statistics.median(found))
                    cpu[name][str(many)].append(spent / CALLS)
            for name in delays:
                found = sorted(await streamed(session, urls[name]))
                if number:
                    delays[name].append([found[len(found) // 2], found[int(0.99 * len(found))]])
    return {"median_wait_s": waits, "proxy_cpu_s_per_call": cpu, "token_delay_s_median_and_99": delays}


async def asked(session: aiohttp.ClientSession, url: str, model: str, many: int) -> list[float]:
    """Seconds of each of the calls, so many at a time."""
    places = asyncio.Semaphore(many)
    body = {"model": model, "messages": [{"role": "user", "content": "How much is it?"}]}

    async def one() -> float:
        async with places:
            began = time.monotonic()
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                assert answer.status == 200 and json.loads(await answer.read())["choices"]
            return time.monotonic() - began

    return list(await asyncio.gather(*(one() for _ in range(CALLS))))


async def streamed(session: aiohttp.ClientSession, url: str) -> list[float]:
    """Seconds from the write of each token to its reading."""
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
    found = []
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: "):
                found.append((time.monotonic_ns() - int(line[6:])) / 1e9)
    assert len(found) == TOKENS
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the page."""
    waits, cpu, delays = (
        results["median_wait_s"],
        results["proxy_cpu_s_per_call"],
        results["token_delay_s_median_and_99"],
    )
    rows = []
    for many, name in itertools.product(map(str, results["settings"]["at_a_time"]), waits):
        bare = waits["the server itself"][many]
        added = statistics.median(one - other for one, other in zip(waits[name][many], bare, strict=True))
        itself, first = name == "the server itself", many == str(results["settings"]["at_a_time"][0])
        late = [statistics.median(part) for part in zip(*delays.get(name, ()), strict=True)] if first else []
        rows.append(
            [
                name,
                many,
                "" if itself else f"{1e3 * statistics.median(cpu[name][many]):.2f}",
                f"{1e3 * statistics.median(waits[name][many]):.1f}",
                "" if itself else f"{1e3 * added:.1f}",
                *([f"{1e3 * part:.2f}" for part in late] or ["", ""]),
            ]
        )
    header = "asked | at a time: | CPU ms a call: | median wait, ms: | added, ms: | token's delay, ms, median: | 99 %:"
    return {"cost": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
