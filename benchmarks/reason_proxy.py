"""What does `burnish reason serve --upstream` cost: processor time a call, wait added, delay of a streamed token?

A server that answers 1 kB after 50 ms, the proxy, and the client that asks are three processes. The client is a bare
loop over aiohttp, 8 or 64 requests at a time; who is asked takes turns: the server itself, the proxy with a plain
request, the proxy with `direct@`, whose call goes through the journal. Delays of streamed tokens are from the server's
write to the client's read, by one clock; what the proxy adds is the difference of the medians. With 64 at a time a
process that needs 1 ms for a call is busy all the time, and the rest of the wait is that of a queue.

Another proxy in the same turns, fewer calls of each, in an environment of its own:

    python -m venv DIR && DIR/bin/pip install optillm==0.4.0
    python benchmarks/reason_proxy.py --optillm DIR/bin/python

asks optillm with its approach `none`, which is a plain request, and keeps what it finds beside the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import experiment
import psutil
from aiohttp import web

if TYPE_CHECKING:
    from burnish.core.engines import EngineProcess

CALLS, ROUNDS, TOKENS = (40, 1, 20) if experiment.SMOKE else (640, 5, 200)
AT_A_TIME, LATENCY, SPACING = (8, 64), 0.05, 0.005
ITSELF = "the server itself"
SIDES = {ITSELF: "m", "plain through the proxy": "m", "direct@ through the proxy": "direct@m"}
PEER = "plain through optillm, approach none"
PEER_CALLS = 8 if experiment.SMOKE else 128


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
    command = experiment.Command(__file__, __doc__)
    command.add_argument(
        "--optillm", type=Path, help="the interpreter of an environment with optillm: measure beside it"
    )
    options = command.read()
    from burnish.core.engines import EngineProcess

    settings = {"calls": CALLS, "rounds": ROUNDS, "at_a_time": AT_A_TIME, "latency_s": LATENCY, "tokens": TOKENS}
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = stack.enter_context
        smoke = ["--smoke"] * experiment.SMOKE
        server = start(
            EngineProcess([sys.executable, __file__, "--behind", "{port}", *smoke], log=place / "behind.log")
        )
        command = [sys.executable, "-m", "burnish", "reason", "serve", "--upstream", server.url, "--port", "{port}"]
        proxy = start(EngineProcess(command, log=place / "proxy.log", health="/health"))
        sides = {name: Asked(proxy.url, model, of_port(proxy.port)) for name, model in SIDES.items()}
        sides[ITSELF] = Asked(server.url, "m", None)
        if options.optillm:
            peer = start(peer_process(options.optillm, server.url, place))
            sides[PEER] = Asked(peer.url, "m", of_port(peer.port))
            settings |= {"calls": min(CALLS, PEER_CALLS), "version": peer_version(options.optillm)}
        content = asyncio.run(measured(sides, settings["calls"]))
    found = {"settings": settings, "load_before": load, "date": date.today().isoformat(), **content}
    note = f"load {load:.0f} on {os.cpu_count()} cores: waits are those of a busy machine" if load > 1 else "idle"
    if options.optillm:
        with experiment.results(options.out) as kept:
            kept["beside optillm"] = found | {"machine": experiment.machine(note)}
    else:
        experiment.record(options.out, __doc__, found, note=note, libraries=("aiohttp",))


def peer_process(python: Path, url: str, place: Path) -> EngineProcess:
    """optillm in front of a server, at the loopback."""
    from burnish.core.engines import EngineProcess

    command = [
        str(python),
        "-c",
        "from optillm import main; main()",
        "--base-url",
        url,
        "--approach",
        "none",
        "--port",
        "{port}",
    ]
    environment = {"OPENAI_API_KEY": "none", "HOME": str(place), "HF_HUB_OFFLINE": "1"}
    return EngineProcess(command, log=place / "peer.log", environment=environment, health="/health")


def peer_version(python: Path) -> str:
    ask = "from importlib.metadata import version; print(version('optillm'))"
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Asked:
    """Who is asked, for which model, and whose processor time is read."""

    url: str
    model: str
    process: psutil.Process | None

    def seconds(self) -> float:
        return sum(self.process.cpu_times()[:2]) if self.process else 0.0


def of_port(port: int) -> psutil.Process:
    """The process that listens."""
    found = next(one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port)
    return psutil.Process(found)


async def measured(sides: dict[str, Asked], calls: int) -> dict[str, Any]:
    waits: dict[str, dict[str, list[float]]] = {name: {str(many): [] for many in AT_A_TIME} for name in sides}
    cpu: dict[str, dict[str, list[float]]] = {name: {str(many): [] for many in AT_A_TIME} for name in sides}
    delays: dict[str, list[list[float]]] = {ITSELF: [], "plain through the proxy": []}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        for number in range(ROUNDS + 1):  # round 0 warms up
            for name, many in list(itertools.product(sides, AT_A_TIME))[:: -1 if number % 2 else 1]:
                before = sides[name].seconds()
                found = await asked(session, sides[name], calls, many)
                spent = sides[name].seconds() - before
                if number:
                    waits[name][str(many)].append(statistics.median(found))
                    cpu[name][str(many)].append(spent / calls)
            for name in delays:
                found = sorted(await streamed(session, sides[name].url))
                if number:
                    delays[name].append([found[len(found) // 2], found[int(0.99 * len(found))]])
    return {"median_wait_s": waits, "proxy_cpu_s_per_call": cpu, "token_delay_s_median_and_99": delays}


async def asked(session: aiohttp.ClientSession, side: Asked, calls: int, many: int) -> list[float]:
    """Seconds of each of the calls, so many at a time."""
    places = asyncio.Semaphore(many)
    body = {"model": side.model, "messages": [{"role": "user", "content": "How much is it?"}]}

    async def one() -> float:
        async with places:
            began = time.monotonic()
            async with session.post(f"{side.url}/chat/completions", json=body) as answer:
                assert answer.status == 200 and json.loads(await answer.read())["choices"]
            return time.monotonic() - began

    return list(await asyncio.gather(*(one() for _ in range(calls))))


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
    made = {"cost": cost(results)}
    if "beside optillm" in results:
        made["peer"] = cost(results["beside optillm"], delays=False)
    return made


def cost(results: dict[str, Any], *, delays: bool = True) -> str:
    waits, cpu = results["median_wait_s"], results["proxy_cpu_s_per_call"]
    numbers = [str(many) for many in results["settings"]["at_a_time"]]
    rows = []
    for many, name in itertools.product(numbers, waits):
        added = statistics.median(
            one - other for one, other in zip(waits[name][many], waits[ITSELF][many], strict=True)
        )
        own = [f"{1e3 * statistics.median(cpu[name][many]):.2f}", f"{1e3 * added:.1f}"] if name != ITSELF else ["", ""]
        row = [name, many, own[0], f"{1e3 * statistics.median(waits[name][many]):.1f}", own[1]]
        if delays:
            late = results["token_delay_s_median_and_99"].get(name, ()) if many == numbers[0] else ()
            parts = [statistics.median(part) for part in zip(*late, strict=True)]
            row += [f"{1e3 * part:.2f}" for part in parts] or ["", ""]
        rows.append(row)
    header = "asked | at a time: | CPU ms a call: | median wait, ms: | added, ms:"
    return experiment.table(f"{header} | token's delay, ms, median: | 99 %:" if delays else header, rows)


if __name__ == "__main__":
    main()
