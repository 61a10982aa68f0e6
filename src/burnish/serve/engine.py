"""One engine of the simulator: the scheduler of vLLM V1 on a virtual clock.

In every step those who run are served first, in the order of their admission, then those who wait, in the order of the
policy, until the tokens of a step, the places or the blocks are used up; the first who does not fit ends the step's
admissions. A prompt is computed in chunks. Where a running request finds no block, holds are given up, and then the
request that was admitted last loses its place: its blocks are freed and it starts again, with what is still cached.

**Skip-ahead.** A step in which all running requests decode and nobody is admitted is followed by equal ones until a
request ends, a block is missing, or somebody comes. `begin` takes all of them as one run; `interrupt` ends it early,
at the step that is under way when something happens. That is exact where nobody waits, where the places are full, and
where the order is `stable`: decoding takes blocks and frees none, so that who did not fit does not fit later in the
run. Otherwise steps are taken one by one.

What differs from vLLM 0.32: scheduling is synchronous (the asynchronous scheduler decides a step before the last one's
tokens are known, so that blocks are freed a step later), one group of KV blocks, no speculation, no multimodal inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from burnish.serve.blocks import BlockPool
from burnish.serve.costs import CostModel, run, step
from burnish.serve.decoding import Decoding
from burnish.serve.policies.protocol import Hold, Job, Order, Retention
from burnish.serve.policies.queues import needs_place


@dataclass(frozen=True)
class EngineShape:
    """The limits of an engine, by the names that vLLM gives them.

    Attributes:
        num_blocks: KV blocks.
        block_size: tokens of a block.
        max_num_batched_tokens: of a step.
        max_num_seqs: requests that run at a time.
        reserve_full: a request is admitted only where all of its prompt fits, not only its first chunk.
        watermark: share of the blocks that an admission leaves free while others run.
        budget: share of the blocks that may be held for those who pause.
        prefix_caching: whether what was computed is found again.
        chunked_prefill: whether a prompt may be computed in several steps.
        long_prefill_token_threshold: tokens of a prompt that are computed in a step at most, where there is more than
            one request; 0 is no limit.
    """

    num_blocks: int
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    reserve_full: bool = True
    watermark: float = 0.0
    budget: float = 0.5
    prefix_caching: bool = True
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0


@dataclass(eq=False, slots=True)
class SimulatedJob(Job):
    """A job with what the simulator alone knows of it.

    Attributes:
        output: tokens that the answer will have.
        chain: keys of the first full blocks of its prompt; those after them are `own`, `own` + 1 and so on.
        own: first key of what it shares with its workflow alone.
        computed, generated: tokens so far.
        num_blocks: that it has.
        keys: those of its blocks that can be found again, in order.
        looked: full blocks that were given a name so far, or found to have one.
        known: tokens of the prompt that its workflow had computed before.
        admitted, first_token, finished: nanoseconds, -1 where it has not happened.
        scheduled: tokens that were computed for it.
        evicted: of those, what its workflow had computed before and the cache had lost.
        redone: of those, what it had itself computed before it lost its place.
        preemptions: times that it lost its place.
        lost: tokens that it had when it lost its place last.
        seat: its place among all admissions.
        since: step from which it decodes with others; see `burnish.serve.decoding`, which also says what `computed`,
            `scheduled` and `generated` are until then.
    """

    output: int = 1
    chain: Sequence[int] = ()
    own: int = 0
    computed: int = 0
    generated: int = 0
    num_blocks: int = 0
    keys: list[int] = field(default_factory=list)
    looked: int = 0
    known: int = 0
    admitted: int = -1
    first_token: int = -1
    finished: int = -1
    scheduled: int = 0
    evicted: int = 0
    redone: int = 0
    preemptions: int = 0
    lost: int = 0
    seat: int = 0
    since: int = 0

    def key(self, index: int) -> int:
        """Of its block number `index`."""
        return self.chain[index] if index < len(self.chain) else self.own + index


@dataclass(eq=False, slots=True)
class HeldBlocks(Hold):
    """A hold with the blocks that it holds."""

    keys: list[int] = field(default_factory=list)
    began: int = 0


@dataclass
class Counters:
    """What an engine counts.

    Attributes:
        steps: of the engine, those taken together included.
        calls: times that it planned a step, or a run of them.
        scheduled: tokens that were computed.
        preemptions: places lost.
        useful, wasted: block-nanoseconds of holds whose workflow came back to them, and of all others.
        expired, reclaimed: holds that ended by themselves, and blocks that were given up under pressure.
        pinned: most blocks held at a time.
        busy: nanoseconds in which it computed.
    """

    steps: int = 0
    calls: int = 0
    scheduled: int = 0
    preemptions: int = 0
    useful: int = 0
    wasted: int = 0
    expired: int = 0
    reclaimed: int = 0
    pinned: int = 0
    busy: int = 0


class SimulatedEngine:
    """An engine with its policy.

    Args:
        shape: its limits.
        costs: what a step takes.
        order, retention: the policy; objects of this engine alone.
        step_by_step: never takes steps together, nor requests.
        note: is called as `note(time, what, job)` for every admission ("admit"), preemption ("preempt") and end
            ("finish").
    """

    def __init__(
        self,
        shape: EngineShape,
        costs: CostModel,
        order: Order,
        retention: Retention,
        *,
        step_by_step: bool = False,
        note: Callable[[int, str, SimulatedJob], None],
    ) -> None:
        self.shape, self.costs, self.order, self.retention = shape, costs, order, retention
        self.pool = BlockPool(shape.num_blocks)
        self.running: list[SimulatedJob] = []
        self.holds: dict[str, HeldBlocks] = {}
        self.counters = Counters()
        self.now = 0
        self.until: int | None = None
        """When the run of steps under way ends; None while idle."""
        self._step_by_step, self._note = step_by_step, note
        self._decoding = Decoding(shape.block_size)
        # Else some who decode get no token in a step, or stand behind prompts that are not done.
        self._together = (
            not step_by_step
            and shape.max_num_seqs <= shape.max_num_batched_tokens
            and not shape.long_prefill_token_threshold
        )
        self._batch: list[tuple[SimulatedJob, int]] = []  # of a step, all others
        self._steps = self._began = self._before = self._context = 0
        self._held = self._seats = 0
        self._longest = shape.max_num_batched_tokens
        self._paused: dict[str, tuple[str, int]] = {}
        self._watermark = int(shape.watermark * shape.num_blocks)

    # -- what orders may ask (Room) --------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        return self.pool.free * self.shape.block_size

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def places(self) -> int:
        return self.shape.max_num_seqs

    @property
    def living(self) -> int:
        return len(self.running) + len(self.holds)

    def cached(self, job: Job) -> int:
        assert isinstance(job, SimulatedJob)
        return self._hits(job) * self.shape.block_size

    def _hits(self, job: SimulatedJob) -> int:
        """Leading blocks of a job that are cached; at least one token is always computed."""
        if not self.shape.prefix_caching:
            return 0
        most, pool, number = (job.prompt + job.generated - 1) // self.shape.block_size, self.pool, 0
        while number < most and pool.known(job.key(number)):
            number += 1
        return number

    # -- events ----------------------------------------------------------------------------------------------------

    def fits(self, job: SimulatedJob) -> bool:
        """Whether the whole of a job fits into the empty pool, and into a step where prompts are not cut."""
        whole, shape = job.prompt + job.output, self.shape
        if not shape.chunked_prefill and whole > shape.max_num_batched_tokens:
            return False
        return -(-whole // shape.block_size) <= shape.num_blocks

    def submit(self, job: SimulatedJob, now: int) -> None:
        """A job comes; `interrupt` has been called."""
        self.now = now
        if paused := self._paused.pop(job.program, None):
            self.retention.on_return(job, paused[0], now - paused[1])
        if hold := self.holds.get(job.program):
            hold.returned = job.kept = True
        self.order.on_submit(job, now)

    def expire(self, hold: HeldBlocks, now: int) -> bool:
        """The time of a hold is over; nothing happens where its workflow waits, or it is gone."""
        if hold.returned or self.holds.get(hold.job.program) is not hold:
            return False
        self.counters.expired += 1
        self._let_go(hold, len(hold.keys), now, useful=False)
        return True

    def begin(self, now: int) -> None:
        """Plans the next step, or run of steps; `until` says when it ends."""
        self.now = now
        self.counters.calls += 1
        chunks, lowered, stalled = self._schedule()
        decodes = self._decoding.num + len(self._batch) - len(chunks)
        if not decodes and not chunks:
            self.until = None
            return
        self._began, self._steps = now, 1
        self._context = self._decoding.context
        if self._batch:
            self._context += sum(job.computed for job, _ in self._batch) - sum(before for _, before in chunks)
        alone = bool(self._batch) or lowered or self._step_by_step or (stalled and not self.order.stable)
        if alone or (most := self._most_steps()) == 1:
            self.until = now + step(self.costs, chunks, decodes, self._context)
            return
        self._steps, self._before, length = run(self.costs, decodes, self._context, most)
        self.until = now + length

    def interrupt(self, now: int) -> bool:
        """Something happens during a run of steps: it ends with the step under way. Whether `until` has changed."""
        if self.until is None or self._steps <= 1:
            return False
        began = self._began
        steps, before, length = run(self.costs, self._decoding.num, self._context, self._steps, now - began)
        changed = steps != self._steps
        if steps > 1:
            self._advance(steps - 1, before)
        self._steps, self.until = 1, began + length
        return changed

    def complete(self) -> list[SimulatedJob]:
        """The end of the run under way; returns those who have finished."""
        assert self.until is not None
        self.now = self.until
        if self._steps > 1:
            self._advance(self._steps - 1, self._before)
        self.counters.busy += self.now - self._began
        self.counters.steps += 1
        finished = self._decoded(1)
        for job, tokens in self._batch:
            job.computed += tokens
            job.scheduled += tokens
            self.counters.scheduled += tokens
            if job.computed == job.prompt + job.generated:
                job.generated += 1
                if job.generated == 1:
                    job.first_token = self.now
                self.order.on_scheduled(job, 0, 1)
                if job.generated == job.output:
                    finished.append(job)
                    continue
            if self._together and job.generated and job.computed == job.prompt + job.generated - 1:
                self._decoding.join(job)
        self._batch, self._steps, self.until = [], 0, None
        if finished:
            gone = set(finished)
            self.running = [job for job in self.running if job not in gone]
            for job in finished:
                self._finish(job)
        return finished

    def _decoded(self, steps: int) -> list[SimulatedJob]:
        """So many steps are over for those who decode together; returns those who have finished."""
        together = self._decoding
        if not together.num:
            return []
        self.counters.scheduled += steps * together.num
        self.order.on_outputs(self.running[: together.num], steps)
        together.step(steps)
        return together.ended()

    def _advance(self, steps: int, length: int) -> None:
        """So many steps of the run under way are over, after `length`; the blocks of the next one are taken."""
        self._began += length
        self._steps -= steps
        self.counters.busy += length
        self.counters.steps += steps
        together, last = self._decoding, self._decoding.steps + steps
        while together.next_due() <= last:
            self._decoded(together.next_due() - together.steps)
            for job, tokens in together.blocks_due():
                self._grow(job, tokens)
                together.has_blocks(job)
        self._decoded(last - together.steps)
        self._context = together.context

    # -- a step ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> tuple[list[tuple[int, int]], bool, bool]:
        """Fills `_batch` with those who do not decode together. Returns the chunks of prompts, whether anybody lost its
        place or was admitted, and whether somebody waits whom the order could let in were it asked again."""
        shape, batch, chunks = self.shape, [], []
        self._make_place()
        self._set_longest()
        if not self._blocks_for_all():
            self._decoding.part()
        place, lowered = self._decoding.num, False
        budget = shape.max_num_batched_tokens - place
        while place < len(self.running) and budget:
            job = self.running[place]
            wanted = job.prompt + job.generated - job.computed
            tokens = min(wanted, budget, self._longest)
            while not self._grow(job, job.computed + tokens):
                if self._reclaim(self._missing(job, job.computed + tokens)):
                    continue
                lowered = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is job:
                    break
            else:
                if wanted > 1 or not job.generated:
                    chunks.append((tokens, job.computed))
                batch.append((job, tokens))
                budget -= tokens
                place += 1
                continue
            break
        self._batch = batch
        if lowered:
            return chunks, True, bool(len(self.order))
        admitted, stalled = self._admit(budget, chunks)
        return chunks, admitted, stalled

    def _set_longest(self) -> None:
        """Tokens of a prompt in this step: as in vLLM, nobody is held back who is alone."""
        limit = self.shape.long_prefill_token_threshold
        self._longest = (
            limit if limit and len(self.running) + len(self.order) > 1 else self.shape.max_num_batched_tokens
        )

    def _make_place(self) -> None:
        """Takes a place away where the order says from whom."""
        if needs_place(self.order, self) and (victim := self.order.victim(self.running)) is not None:
            assert isinstance(victim, SimulatedJob)
            self._decoding.part()
            self.running.remove(victim)
            self._preempt(victim)

    def _blocks_for_all(self) -> bool:
        """Gives those who decode together the blocks of the next step; False, and nothing done, where some lack."""
        if self._decoding.next_due() > self._decoding.steps:
            return True
        due = self._decoding.blocks_due()
        if sum(job.num_blocks * self.shape.block_size < tokens for job, tokens in due) > self.pool.free:
            return False
        for job, tokens in due:
            self._grow(job, tokens)
            self._decoding.has_blocks(job)
        return True

    def _admit(self, budget: int, chunks: list[tuple[int, int]]) -> tuple[bool, bool]:
        """Lets in who waits. Returns whether anybody was, and whether places and tokens were left."""
        admitted, shape = False, self.shape
        while budget and len(self.running) < shape.max_num_seqs and len(self.order):
            job = self.order.head(self)
            if job is None:
                return admitted, True
            assert isinstance(job, SimulatedJob)
            tokens = self._place(job, budget)
            if not tokens:
                return admitted, True
            admitted = True
            chunks.append((tokens, job.computed))
            self._batch.append((job, tokens))
            budget -= tokens
        return admitted, self.order.takes and len(self.order) > 0

    def _place(self, job: SimulatedJob, budget: int) -> int:
        """Admits a job where it fits; how many tokens it computes in this step, 0 where it does not fit."""
        size, pool, hits = self.shape.block_size, self.pool, self._hits(job)
        whole = job.prompt + job.generated
        if not self.shape.chunked_prefill and whole - hits * size > budget:
            return 0
        tokens = min(whole - hits * size, budget, self._longest)
        reserved = whole if self.shape.reserve_full else hits * size + tokens
        idle = sum(pool.is_idle(job.key(index)) for index in range(hits))
        needed = -(-reserved // size) - hits + idle + (self._watermark if self.running else 0)
        if needed > pool.free and not (not self.running and self._reclaim(needed - pool.free, job)):
            return 0
        self.order.on_leave(job, self.now)
        for index in range(hits):
            pool.use(job.key(index))
        job.keys = [job.key(index) for index in range(hits)]
        job.num_blocks = job.looked = hits
        job.computed = hits * size
        self._account(job)
        self._grow(job, job.computed + tokens)
        self._seats += 1
        job.seat = self._seats
        self.running.append(job)
        self._note(self.now, "admit", job)
        if job.turn and not job.preempted:
            self.retention.on_admit(job, self.now - job.arrival)
        job.kept = False
        if hold := self.holds.get(job.program):
            self._let_go(hold, len(hold.keys), self.now, useful=True)
        return tokens

    def _account(self, job: SimulatedJob) -> None:
        """What an admission costs its tenant, and what of it is computed a second time."""
        if job.admitted < 0:
            job.admitted, job.cached = self.now, min(job.computed, job.prompt)
            job.evicted += max(0, min(job.known, job.prompt) - job.computed)
        else:
            job.redone += max(0, job.lost - job.computed)
            job.cached += max(0, job.computed - job.lost)
        self.order.on_scheduled(job, max(0, job.prompt - job.computed), 0)

    def _grow(self, job: SimulatedJob, tokens: int) -> bool:
        """Gives a job the blocks for so many tokens; False, and nothing done, where they are not free."""
        size, pool = self.shape.block_size, self.pool
        missing = -(-tokens // size) - job.num_blocks
        if missing > 0:
            if missing > pool.free:
                return False
            pool.take(missing)
            job.num_blocks += missing
        if tokens // size > job.looked:
            for index in range(job.looked, tokens // size) if self.shape.prefix_caching else ():
                key = job.key(index)
                if pool.name(key):
                    job.keys.append(key)
            job.looked = tokens // size
        return True

    def _missing(self, job: SimulatedJob, tokens: int) -> int:
        return -(-tokens // self.shape.block_size) - job.num_blocks - self.pool.free

    def _most_steps(self) -> int:
        """Steps until the first of those who decode ends, or until a block is missing; the first step's are taken."""
        together = self._decoding
        if not together.num:
            return 1
        most = together.most_steps()
        size, free = self.shape.block_size, self.pool.free
        if together.num * (-(-most // size)) <= free:
            return most
        lengths = [(together.tokens(job), job.num_blocks) for job in self.running[: together.num]]
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            needed = sum(-(-(tokens + middle) // size) - blocks for tokens, blocks in lengths)
            low, high = (middle, high) if needed <= free else (low, middle - 1)
        return low

    def _preempt(self, job: SimulatedJob) -> None:
        self.counters.preemptions += 1
        self.order.on_preempted(job, job.computed)
        job.lost = job.computed
        job.preemptions += 1
        self._release(job)
        job.computed, job.preempted = 0, True
        self._note(self.now, "preempt", job)
        self.order.on_submit(job, self.now)

    def _release(self, job: SimulatedJob) -> None:
        self.pool.give_back(job.keys, job.num_blocks - len(job.keys))
        job.keys, job.num_blocks, job.looked = [], 0, 0

    # -- ends and holds --------------------------------------------------------------------------------------------

    def _finish(self, job: SimulatedJob) -> None:
        job.finished = self.now
        self._note(self.now, "finish", job)
        self.order.on_finish(job, self.now)
        if job.program and job.tool:
            self._paused[job.program] = (job.tool, self.now)
        wanted = self.retention.on_finish(job, job.computed, self)
        room = int(self.shape.budget * self.shape.num_blocks) - self._held
        if wanted > 0 and job.program and len(job.keys) <= room:
            keys = job.keys
            hold = HeldBlocks(
                job, self.now, self.now + wanted, len(keys) * self.shape.block_size, keys=keys, began=self.now
            )
            job.num_blocks -= len(keys)
            job.keys = []
            self.holds[job.program] = hold
            self._held += len(keys)
            self.counters.pinned = max(self.counters.pinned, self._held)
        self._release(job)

    def _let_go(self, hold: HeldBlocks, num: int, now: int, *, useful: bool) -> None:
        """Ends the hold of the last `num` blocks."""
        spent = num * (now - hold.began)
        if useful:
            self.counters.useful += spent
        else:
            self.counters.wasted += spent
        self.pool.give_back(hold.keys[len(hold.keys) - num :], 0)
        del hold.keys[len(hold.keys) - num :]
        hold.tokens = len(hold.keys) * self.shape.block_size
        self._held -= num
        if not hold.keys:
            del self.holds[hold.job.program]

    def _reclaim(self, num: int, wanted_by: SimulatedJob | None = None) -> bool:
        """Gives up as much of what is held as frees `num` blocks; False, and nothing done, where that is not enough.

        The context that `wanted_by` comes back for is not given up for it.
        """
        open_to = [hold for hold in self.holds.values() if wanted_by is None or hold.job.program != wanted_by.program]
        if not open_to or sum(len(hold.keys) for hold in open_to) < num:
            return False
        for hold in self.retention.on_pressure(open_to, self):
            assert isinstance(hold, HeldBlocks)
            part = min(num, len(hold.keys))
            self.counters.reclaimed += part
            self._let_go(hold, part, self.now, useful=False)
            num -= part
            if hold.returned and not hold.keys:
                self._lower_kept(hold.job.program)
            if not num:
                break
        return True

    def _lower_kept(self, program: str) -> None:
        """Tells a job that waits that its context is no longer held."""
        for job in self.order:
            if job.program == program:
                job.kept = False


def total(counters: Iterable[Counters]) -> Counters:
    """Of several engines; the most that were pinned is the largest of them."""
    counters = list(counters)
    names = [name for name in vars(Counters()) if name != "pinned"]
    summed = {name: sum(getattr(one, name) for one in counters) for name in names}
    return Counters(**summed, pinned=max((one.pinned for one in counters), default=0))
