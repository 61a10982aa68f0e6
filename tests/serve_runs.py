"""What the tests of serving share: a server without time, drawn workloads, and small engines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from burnish.serve.policies.fleet import Fleet
from burnish.serve.policies.protocol import Job, Order
from burnish.serve.policies.shares import FairShares
from burnish.serve.workload import Turn, Workflow, Workload

ROOM: Any = SimpleNamespace(now=0, free=10**9, num_running=1, living=0, cached=lambda job: 0)
SECOND = 1_000_000_000


def serve(
    order: Order,
    jobs: Iterable[tuple[int, Job, int]],
    *,
    places: int = 4,
    rounds: int = 10**9,
    each_round: Callable[[int], None] = lambda number: None,
) -> Iterator[Job]:
    """Admits into `places`, one output token a round for each; yields jobs as they are admitted.

    Args:
        order: who is next.
        jobs: (round, job, output tokens), by round.
        places: jobs that run at a time.
        rounds: at most.
        each_round: is called before every round.
    """
    yield from (job for job in _served(order, jobs, places, rounds, each_round) if job is not None)


def _served(
    order: Order, jobs: Iterable[tuple[int, Job, int]], places: int, rounds: int, each_round: Callable[[int], None]
) -> Iterator[Job | None]:
    """None is the end of a round."""
    coming, running = list(jobs), {}
    for number in range(rounds):
        each_round(number)
        while coming and coming[0][0] <= number:
            _, job, output = coming.pop(0)
            order.on_submit(job, number)
            job.arrival = output  # where a policy has no business looking; the server keeps its own note there
        while len(running) < places and (job := order.head(ROOM)) is not None:
            order.on_leave(job, number)
            order.on_scheduled(job, job.prompt, 0)
            running[job] = job.arrival
            yield job
        for job in list(running):
            order.on_scheduled(job, 0, 1)
            running[job] -= 1
            if not running[job]:
                del running[job]
                order.on_finish(job, number)
        yield None
        if not running and not coming and not len(order):
            return


def serve_together(
    orders: Sequence[FairShares],
    jobs: Sequence[Iterable[tuple[int, Job, int]]],
    fleet: Fleet | None,
    *,
    every: int,
    rounds: int,
    places: int = 4,
) -> Iterator[int]:
    """The same on several engines side by side, which exchange what they served all `every` rounds; yields after each
    round."""
    pairs = zip(orders, jobs, strict=True)
    engines = [_served(order, several, places, rounds, lambda number: None) for order, several in pairs]
    for number in range(rounds):
        if fleet and not number % every:
            found = fleet.exchanged({str(place): order.accounts() for place, order in enumerate(orders)})
            for place, order in enumerate(orders):
                order.settle(found[str(place)])
        for engine in engines:
            while next(engine, None) is not None:
                pass
        yield number


def backlog(tenants: dict[str, int], *, prompt: int = 20, output: int = 10) -> list[tuple[int, Job, int]]:
    """So many equal jobs of each tenant, all there from the beginning."""
    most = max(tenants.values(), default=0)
    return [
        (0, Job(f"{tenant}-{number}", tenant, prompt=prompt), output)
        for number in range(most)
        for tenant, num in tenants.items()
        if number < num
    ]


def drawn(seed: int, *, num: int = 60, rate: float = 0.5, tenants: int = 3, blocks: bool = False) -> Workload:
    """Requests and workflows of a few turns, with shared beginnings where `blocks`; nanoseconds of no round size."""
    draw, time, made = random.Random(seed), 0.0, []
    for number in range(num):
        time += draw.expovariate(rate)
        turns, prompt = [], draw.randint(1, 400)
        for _ in range(1 if blocks else draw.choice([1, 1, 3, 5])):
            output = draw.randint(1, 60)
            ids = tuple(draw.randint(0, 2) + 3 * place for place in range(-(-prompt // 64))) if blocks else ()
            turns.append(Turn(prompt, output, round(draw.expovariate(0.5) * SECOND), draw.choice("ab"), ids))
            prompt += output + draw.randint(0, 60)
        made.append(Workflow(f"w{number}", f"t{draw.randrange(tenants)}/u", round(time * SECOND), tuple(turns)))
    return Workload(tuple(made), block_tokens=64 if blocks else 0)
