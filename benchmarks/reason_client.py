"""What does a call cost the client that asks, once its answer is durable?

    python benchmarks/reason_client.py

How many calls does one core-second of the client carry, at 256 calls at a time to a server that answers each with 1 kB
after 50 ms? The server is a process of its own. Beside `burnish.reason.Pool`, which writes every call to its journal
before anybody sees the answer, stand `openai` over httpx, `openai` over aiohttp and bare aiohttp, which keep nothing.
The sides take turns in one process and are measured by its CPU time, threads included. A further process makes 50,000
calls and says after every 5,000 how much memory it has.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import experiment

AT_ONCE, DELAY, SIZE = 256, 0.05, 1024
CALLS, ROUNDS = (64, 1) if experiment.SMOKE else (2000, 5)
MANY, STEP = (200, 50) if experiment.SMOKE else (50_000, 5_000)
SIDES = {
    "burnish": "burnish.reason.Pool, journalled",
    "openai-aiohttp": "openai over aiohttp",
    "openai-httpx": "openai over httpx",
    "aiohttp": "aiohttp alone",
}
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
Call = Callable[[int], Awaitable[object]]


def serve(port: Any) -> None:
    """The server's process: 1 kB after 50 ms."""
    from aiohttp import web

    message = {"role": "assistant", "content": "4 " * (SIZE // 2)}
    usage = {"prompt_tokens": 9, "completion_tokens": 512, "total_tokens": 521}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    body = json.dumps(whole).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(DELAY)
        return web.Response(body=body, content_type="application/json")

    async def go() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(go())


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that ends with the block."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


async def drive(call: Call, numbers: Iterator[int]) -> None:
    """Every number once, so many at a time."""

    async def worker() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def asked(side: str, url: str, numbers: Iterator[int], directory: Path) -> None:
    """The calls of one side, with what it takes to open and close it."""
    if side == "burnish":
        from burnish.reason import Endpoint, Journal, Pool

        with Journal(directory) as journal:
            async with Pool([Endpoint(url, "m", concurrency=AT_ONCE)], journal, start=AT_ONCE) as pool:
                await drive(lambda number: pool.call(None, MESSAGES, f"p/sample/{number}"), numbers)
    elif side == "aiohttp":
        import aiohttp

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:

            async def post(number: int) -> object:
                body = {"model": "m", "messages": MESSAGES, "seed": number}
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    return await response.json()

            await drive(post, numbers)
    else:
        from openai import AsyncOpenAI, DefaultAioHttpClient

        carried: dict[str, Any] = {"http_client": DefaultAioHttpClient()} if side == "openai-aiohttp" else {}
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, **carried) as client:
            await drive(
                lambda number: client.chat.completions.create(model="m", messages=MESSAGES, seed=number),  # pyright: ignore
                numbers,
            )


def remember(url: str, directory: str, said: Any) -> None:
    """The process of the many calls: its resident bytes after every so many."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    held = []

    def numbers() -> Iterator[int]:
        for number in range(MANY):
            if number and number % STEP == 0:
                held.append(resident())
            yield number

    started = time.process_time()
    asyncio.run(asked("burnish", url, numbers(), Path(directory)))
    said.send({"resident": [*held, resident()], "cpu_seconds": time.process_time() - started})


def main() -> None:
    arguments = experiment.Command(__file__, __doc__).read()
    with tempfile.TemporaryDirectory() as place, server() as url:
        directories = iter(Path(place) / f"run{number}" for number in range(10_000))

        def side(name: str) -> Callable[[], None]:
            return lambda: asyncio.run(asked(name, url, iter(range(CALLS)), next(directories)))

        seconds = experiment.turns({name: side(name) for name in SIDES}, ROUNDS)
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=remember, args=(url, f"{place}/many", theirs))
        child.start()
        many = ours.recv()
        child.join()
    experiment.record(
        arguments.out,
        __doc__,
        {
            "calls": CALLS,
            "at_once": AT_ONCE,
            "cpu_seconds": seconds,
            "many": {"calls": MANY, "every": STEP, **many},
            "load": os.getloadavg()[0],
        },
        note="CPU seconds of the client's process, machine shared with other work",
        libraries=("openai", "aiohttp", "httpx"),
    )
    print(tables(json.loads(arguments.out.read_text()))["sides"])


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    ours = results["cpu_seconds"]["burnish"]
    for name, title in SIDES.items():
        seconds = results["cpu_seconds"][name]
        each = sum(seconds) / len(seconds) / results["calls"]
        against = "" if name == "burnish" else experiment.cell(experiment.ratio(ours, seconds), ".2f")
        rows.append([title, f"{1000 * each:.2f} ms", f"{1 / each:,.0f}", against])
    many = results["many"]
    memory = [
        [f"{number * many['every']:,}", f"{held / 1e6:.0f} MB"] for number, held in enumerate(many["resident"], start=1)
    ]
    return {
        "sides": experiment.table("client | CPU a call: | calls a core-second: | ours against it:", rows),
        "memory": experiment.table("calls: | memory of the client:", memory),
    }


if __name__ == "__main__":
    main()
