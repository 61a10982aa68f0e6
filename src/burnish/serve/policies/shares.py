"""Fair shares: a tree of weights, and VTC, which is a tree of one level.

Every node n of the tree (organisation, team, tenant, workflow) has a weight w_n and a virtual runtime v_n. What a
request costs,

    cost = prompt_price * uncached prompt tokens + output_price * output tokens,

is added as cost / w_n to every node above it. The next request is found from the root: of the children with somebody
waiting the one with the smallest v, ties by who came first. When a node begins to wait,

    v_n = max(v_n, min over waiting siblings of v - credit),

or, where no sibling waits, the runtime of the one that waited last, so that nobody is paid for the time in which he
did not ask. With one level and equal weights this is VTC (Fairness in Serving Large Language Models, 2024,
arXiv:2401.00588) decision for decision, and no two waiting siblings drift further apart in service over weight than
2 max(prompt_price * longest prompt, output_price * tokens of the pool) / smallest weight.

The prompt is charged when the request is admitted. A request that loses its place gets back what it had not computed
yet, and computing again what it had computed is charged to nobody: that is the server's doing. Runtimes are integers,
in units of 1/2^40 token at weight 1, so that charging k tokens at once is exactly charging one token k times.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from burnish.serve.policies.fleet import Account, Settlement
from burnish.serve.policies.protocol import Job, Order, Room
from burnish.serve.policies.queues import FirstComeFirstServed, Staying

UNIT = 1 << 40
DEFAULT = "default"


@dataclass(eq=False, slots=True)
class Share:
    """A node of the tree.

    Attributes:
        name: its own, without those above.
        parent: None for the root.
        number: its place among its siblings by first use, which breaks ties.
        per_token: what a token of price 1 adds to its runtime, UNIT / weight.
        runtime: v_n.
        served: cost of all that was served below it, whatever its weight.
        waiting: jobs that wait below it.
        backlog: cost of their prompts.
        children: by name.
        queue: of a leaf.
        heap: (runtime, number, child) of waiting children; a runtime in it may be smaller than the child's is by now.
        key: the runtime of its valid entry in its parent's heap, None without one.
        last: the child that waited last, while none does.
        present: jobs that wait or run below it.
        mass: sum of the `weight` of those children that have any.
        idle: (runtime, number, child) of workflows with no job, which are forgotten once it makes no difference.
    """

    name: str
    parent: Share | None
    number: int
    per_token: int = UNIT
    runtime: int = 0
    served: int = 0
    waiting: int = 0
    backlog: int = 0
    children: dict[str, Share] = field(default_factory=dict)
    queue: Order | None = None
    heap: list[tuple[int, int, Share]] = field(default_factory=list)
    key: int | None = None
    last: Share | None = None
    present: int = 0
    mass: int = 0
    idle: list[tuple[int, int, Share]] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """In units of 1 / `UNIT`."""
        return UNIT * UNIT // self.per_token

    @property
    def running(self) -> int:
        return self.present - self.waiting

    def may_take(self, places: int) -> bool:
        """Whether one place more of the `places` of its parent is within its share; the first one always is."""
        assert self.parent is not None
        return not self.running or (self.running + 1) * self.parent.mass <= places * self.weight

    def may_lose(self, places: int) -> bool:
        """Whether it has its share of them with one place less, and still one."""
        assert self.parent is not None
        return self.running > 1 and (self.running - 1) * self.parent.mass >= places * self.weight

    def first(self) -> Share | None:
        """The waiting child with the smallest runtime."""
        heap = self.heap
        while heap:
            runtime, number, child = heap[0]
            if child.key != runtime:  # a newer entry took its place
                heapq.heappop(heap)
            elif not child.waiting:
                heapq.heappop(heap)
                child.key = None
            elif child.runtime != runtime:
                child.key = child.runtime
                heapq.heapreplace(heap, (child.runtime, number, child))
            else:
                return child
        return None

    def enter(self, child: Share) -> None:
        """Makes sure that a waiting child is found at its runtime, or earlier."""
        if child.key is None or child.runtime < child.key:
            child.key = child.runtime
            heapq.heappush(self.heap, (child.runtime, child.number, child))


class FairShares:
    """A tree of weights over tenants.

    Args:
        weights: of "organisation", "organisation/team" and so on; 1 where nothing is said. Where weights are given, a
            tenant below no first name of theirs is a child of `default`.
        prompt_price: of an uncached token of a prompt.
        output_price: of an output token.
        credit: tokens of price 1 and weight 1 by which one that begins to wait may be ahead of its siblings.
        lift_when_idle: whether one that begins to wait when no sibling does is lifted to the one that waited last, as
            the paper of VTC has it; its published program does not.
        by_program: whether a tenant's workflows share as children of its own.
        within: the order of the requests of a leaf.
        spare: places that are left to children who run less than their share of the others.
        takes: whether a child that runs less than its share of those who run takes the place of one who runs more,
            where it finds none free, or no room; of the request that was admitted last, and never twice of one.
    """

    stable = False

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        prompt_price: int = 1,
        output_price: int = 2,
        credit: int = 0,
        lift_when_idle: bool = True,
        by_program: bool = False,
        within: Callable[[], Order] = FirstComeFirstServed,
        spare: int = 0,
        takes: bool = False,
    ) -> None:
        self.root = Share("", None, 0)
        self.takes, self._spare = takes, spare
        self._weights = dict(weights or {})
        self._known = {path.split("/")[0] for path in self._weights}
        self._parts: dict[str, float] = {}
        self._prices = (prompt_price, output_price)
        self._credit, self._lift_when_idle = credit * UNIT, lift_when_idle
        self._by_program, self._within = by_program, within
        self._leaves: dict[Share, None] = {}
        self._above: dict[Job, tuple[Share, ...]] = {}
        self._number = 0
        self.strangers: set[str] = set()
        """Tenants below no known first name."""

    # -- the tree --------------------------------------------------------------------------------------------------

    def path(self, job: Job) -> tuple[str, ...]:
        """Where a job stands in the tree."""
        names = tuple(name for name in job.tenant.split("/") if name) or (DEFAULT,)
        if self._known and names[0] not in self._known and names[0] != DEFAULT:
            self.strangers.add(job.tenant)
            names = (DEFAULT, *names)
        return (*names, f"program {job.program or job.name}") if self._by_program else names

    def share(self, path: tuple[str, ...]) -> Share:
        """The node of a path, made where there is none yet."""
        node = self.root
        for depth, name in enumerate(path, start=1):
            if name not in node.children:
                self._number += 1
                made = Share(name, node, self._number)
                made.per_token = self._per_token(path[:depth])
                node.children[name] = made
            node = node.children[name]
        return node

    def set_weight(self, path: str, weight: float) -> None:
        """Changes a weight; what was served keeps the weight that it was served at."""
        self._weights[path] = weight
        self._weigh(tuple(path.split("/")))

    def _weigh(self, path: tuple[str, ...]) -> Share:
        """Gives a node the weight that it has by now."""
        node = self.share(path)
        before = node.weight
        node.per_token = self._per_token(path)
        if node.present and node.parent is not None:
            node.parent.mass += node.weight - before
        return node

    def weight(self, path: tuple[str, ...]) -> float:
        """Of a node, over all engines that share the tree."""
        return self._weights.get("/".join(path), 1.0)

    def _per_token(self, path: tuple[str, ...]) -> int:
        return max(1, round(UNIT / (self.weight(path) * self._parts.get("/".join(path), 1.0))))

    def _leaf(self, job: Job) -> Share:
        leaf = self.share(self.path(job))
        if leaf.children:  # a tenant that is also the parent of tenants stands among them
            leaf = self.share((*self.path(job), "itself"))
        if leaf.queue is None:
            leaf.queue = self._within()
            self._leaves[leaf] = None
        return leaf

    def _lineage(self, job: Job) -> tuple[Share, ...]:
        """A job's leaf and all above it, the root left out."""
        found = self._above.get(job)
        if found is None:
            line, node = [], self._leaf(job)
            while node.parent is not None:
                line.append(node)
                node = node.parent
            found = self._above[job] = tuple(line)
            for node in found:
                assert node.parent is not None
                if not node.present:
                    node.parent.mass += node.weight
                node.present += 1
        return found

    # -- other engines with the same tree --------------------------------------------------------------------------

    def accounts(self) -> dict[tuple[str, ...], Account]:
        """Of every node but single workflows, whose turns stay on one engine."""
        found: dict[tuple[str, ...], Account] = {}
        line: list[tuple[tuple[str, ...], Share]] = [((), self.root)]
        while line:
            path, node = line.pop()
            for name, child in node.children.items():
                if not (self._by_program and child.queue is not None):
                    below = (*path, name)
                    found[below] = Account(child.served, child.backlog)
                    line.append((below, child))
        return found

    def settle(self, parts: Mapping[tuple[str, ...], Settlement]) -> None:
        """Takes over what the engines have found together (`burnish.serve.policies.fleet`)."""
        for path, part in parts.items():
            self._parts["/".join(path)] = part.share
            node = self._weigh(path)
            node.runtime = round(part.runtime * UNIT)
            if node.waiting and node.parent is not None:
                node.parent.enter(node)

    # -- the order -------------------------------------------------------------------------------------------------

    def _cost_of_waiting(self, job: Job) -> int:
        return max(1, self._prices[0] * job.prompt)

    def on_submit(self, job: Job, now: int) -> None:
        line = self._lineage(job)
        queue = line[0].queue
        assert queue is not None
        queue.on_submit(job, now)
        cost = self._cost_of_waiting(job)
        for node in line:
            assert node.parent is not None
            if not node.waiting:
                self._lift(node, node.parent)
            node.waiting += 1
            node.backlog += cost
            node.parent.enter(node)
        self.root.waiting += 1

    def _lift(self, node: Share, parent: Share) -> None:
        lifted = self._lifted(parent)
        if lifted is not None:
            node.runtime = max(node.runtime, lifted)

    def _lifted(self, parent: Share) -> int | None:
        """The runtime below which no child begins to wait."""
        first = parent.first()
        if first is not None:
            return first.runtime - self._credit
        if self._lift_when_idle and parent.last is not None:
            return parent.last.runtime - self._credit
        return None

    def head(self, room: Room) -> Job | None:
        leaf = self._first_leaf()
        if leaf is None or leaf.queue is None:
            return None
        if self._spare:
            shared = room.places - self._spare
            if room.num_running >= shared and not self._taker(leaf, shared):
                return None
        return leaf.queue.head(room)

    def _first_leaf(self) -> Share | None:
        """Whose request is next."""
        node = self.root
        while node.queue is None or not len(node.queue):
            child = node.first()
            if child is None:
                return None
            node = child
        return node

    def _taker(self, leaf: Share, places: int) -> tuple[Share, int] | None:
        """The highest of a leaf and those above it for whom one place more is within its share, with the places that
        it shares with its siblings."""
        line = [leaf]
        while line[-1].parent is not None:
            line.append(line[-1].parent)
        for node in reversed(line[:-1]):
            if node.may_take(places):
                return node, places
            places = node.running
        return None

    def victim(self, running: Sequence[Job]) -> Job | None:
        leaf = self._first_leaf() if self.takes else None
        found = self._taker(leaf, len(running)) if leaf else None
        if found is None:
            return None
        taker, places = found
        assert taker.parent is not None
        losers = {child for child in taker.parent.children.values() if child is not taker and child.may_lose(places)}
        last = (job for job in reversed(running) if not job.preempted and not losers.isdisjoint(self._lineage(job)))
        return next(last, None)

    def on_leave(self, job: Job, now: int) -> None:
        line = self._lineage(job)
        queue = line[0].queue
        assert queue is not None
        queue.on_leave(job, now)
        cost = self._cost_of_waiting(job)
        for node in line:
            node.waiting -= 1
            node.backlog -= cost
            if not node.waiting and node.parent is not None:
                node.parent.last = node
        self.root.waiting -= 1

    def on_scheduled(self, job: Job, prompt: int, output: int) -> None:
        if prompt:
            if job.preempted:  # what it had computed before is not charged again
                prompt = max(0, min(prompt, job.prompt - job.cached - job.paid))
            job.paid += prompt
        self._charge(self._lineage(job), self._prices[0] * prompt + self._prices[1] * output)

    def on_outputs(self, jobs: Sequence[Job], each: int) -> None:
        for line, num in Counter(map(self._above.__getitem__, jobs)).items():
            self._charge(line, self._prices[1] * num * each)

    def on_preempted(self, job: Job, computed: int) -> None:
        back = job.paid - max(0, min(computed, job.prompt) - job.cached)
        if back > 0:
            job.paid -= back
            self._charge(self._lineage(job), -self._prices[0] * back)

    def _charge(self, line: Sequence[Share], cost: int) -> None:
        for node in line:
            node.runtime += cost * node.per_token
            node.served += cost
            if cost < 0 and node.waiting and node.parent is not None:
                node.parent.enter(node)

    def on_finish(self, job: Job, now: int) -> None:
        line = self._above.pop(job)
        queue = line[0].queue
        assert queue is not None
        queue.on_finish(job, now)
        leaf, parent = line[0], line[0].parent
        for node in line:
            node.present -= 1
            if not node.present and node.parent is not None:
                node.parent.mass -= node.weight
        if self._by_program and parent is not None:
            if not leaf.present:
                heapq.heappush(parent.idle, (leaf.runtime if job.tool else -1, leaf.number, leaf))
            self._forget(parent)

    def _forget(self, parent: Share) -> None:
        """Forgets workflows without a job: those that have ended, and those to whose runtime a new one would be lifted.

        Whoever begins to wait is at least where `_lift` puts him, and that only rises, so a workflow that pauses and
        is not further than that loses nothing by it but its place among equals.
        """
        lifted = self._lifted(parent)
        while parent.idle and parent.idle[0][0] <= (-1 if lifted is None else lifted):
            runtime, _, leaf = heapq.heappop(parent.idle)
            if not leaf.present and runtime in (-1, leaf.runtime) and parent.children.get(leaf.name) is leaf:
                del parent.children[leaf.name]
                del self._leaves[leaf]

    def __len__(self) -> int:
        return self.root.waiting

    def __iter__(self) -> Iterator[Job]:
        for leaf in self._leaves:
            assert leaf.queue is not None
            yield from leaf.queue


class VirtualTokenCounter(FairShares):
    """VTC: the whole name of a tenant is one child of the root, and all weigh the same."""

    def path(self, job: Job) -> tuple[str, ...]:
        return (job.tenant or DEFAULT,)


class DeficitLongestPrefix(Staying):
    """DLPM: longest cached prefix first, among tenants who have not used up their quantum.

    Deficit longest prefix match (Locality-aware Fair Scheduling in LLM Serving, 2025, arXiv:2501.14312): a tenant is
    served while its deficit is above 0; uncached prompt tokens and output tokens are taken off it, and where nobody
    who waits has any left, all of them get a quantum more. Waiting tenants drift no further apart than 2 (U + quantum).
    """

    stable = False

    def __init__(self, quantum: int = 4096, prompt_price: int = 1, output_price: int = 2) -> None:
        self._quantum, self._prices = quantum, (prompt_price, output_price)
        self.deficits: dict[str, int] = {}
        self._queues: dict[str, deque[Job]] = {}
        self._chosen: Job | None = None

    def on_submit(self, job: Job, now: int) -> None:
        self._chosen = None
        self.deficits.setdefault(job.tenant, self._quantum)
        queue = self._queues.setdefault(job.tenant, deque())
        queue.appendleft(job) if job.preempted else queue.append(job)

    def head(self, room: Room) -> Job | None:
        if self._chosen is None and self._queues:
            while not (able := [name for name in self._queues if self.deficits[name] > 0]):
                for name in self._queues:
                    self.deficits[name] += self._quantum
            self._chosen = max((job for name in able for job in self._queues[name]), key=room.cached)
        return self._chosen

    def on_leave(self, job: Job, now: int) -> None:
        self._chosen = None
        queue = self._queues[job.tenant]
        queue.remove(job)
        if not queue:
            del self._queues[job.tenant]

    def on_scheduled(self, job: Job, prompt: int, output: int) -> None:
        self._chosen = None
        self.deficits[job.tenant] -= self._prices[0] * prompt + self._prices[1] * output

    def on_outputs(self, jobs: Sequence[Job], each: int) -> None:
        self._chosen = None
        for tenant, num in Counter(job.tenant for job in jobs).items():
            self.deficits[tenant] -= self._prices[1] * num * each

    def on_preempted(self, job: Job, computed: int) -> None:
        self._chosen = None

    def on_finish(self, job: Job, now: int) -> None:
        self._chosen = None

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Job]:
        return (job for queue in self._queues.values() for job in queue)
