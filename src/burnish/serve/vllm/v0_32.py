"""The scheduler of vLLM 0.32 with a policy of ours.

vLLM's `schedule()` looks at its queue of waiting requests (is there one, which), tries to place that request, and takes
it out where it fits; `PolicyQueue` answers from an `Order`. What was admitted is charged before the queue is looked at
again, so that two admissions of one step see each other. A context is held by one more reference on its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from burnish.serve.costs import Linear
from burnish.serve.policies.protocol import Hold, Job, Order
from burnish.serve.vllm.requests import job_of, read_plugin

MOST_PROGRAMS = 100_000
"""Paused workflows that are remembered."""


@dataclass(eq=False, slots=True)
class PinnedBlocks(Hold):
    """A hold of vLLM's blocks."""

    blocks: list[Any] = field(default_factory=list)


class PolicyQueue(RequestQueue):
    """vLLM's queue of waiting requests in the order of a policy."""

    def __init__(self, scheduler: PolicyScheduler, order: Order) -> None:
        self._scheduler, self.order = scheduler, order
        self._requests: dict[Job, Request] = {}
        self._next: Request | None = None

    def add_request(self, request: Request) -> None:
        self._scheduler.settle()
        job = self._scheduler.job(request)
        self._requests[job] = request
        self._next = None
        self._scheduler.on_wait(job)
        self.order.on_submit(job, self._scheduler.now)

    def prepend_request(self, request: Request) -> None:
        """One that lost its place, or that could not be looked at in this step: before the others of its tenant."""
        self._scheduler.settle()
        job = self._scheduler.job(request)
        before, job.preempted = job.preempted, True
        self._requests[job] = request
        self._next = None
        self.order.on_submit(job, self._scheduler.now)
        job.preempted = before or request.status == RequestStatus.PREEMPTED

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in list(requests):
            self.prepend_request(request)

    def __bool__(self) -> bool:
        """Whether somebody may be admitted now; `len` says whether anybody waits."""
        self._scheduler.settle()
        job = self.order.head(self._scheduler.room)
        self._next = None if job is None else self._requests[job]
        return self._next is not None

    def peek_request(self) -> Request:
        if self._next is None and not self:
            raise IndexError("peek from an empty queue")
        assert self._next is not None
        return self._next

    def pop_request(self) -> Request:
        request = self.peek_request()
        self._leave(request)
        self._scheduler.popped = request
        return request

    def remove_request(self, request: Request) -> None:
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        self._scheduler.settle()
        for request in requests:
            if self._scheduler.job(request) in self._requests:
                self._leave(request)

    def _leave(self, request: Request) -> None:
        job = self._scheduler.job(request)
        del self._requests[job]
        self._next = None
        self.order.on_leave(job, self._scheduler.now)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))


class PolicyRoom:
    """What an order may ask of vLLM."""

    def __init__(self, scheduler: PolicyScheduler) -> None:
        self._scheduler = scheduler

    @property
    def now(self) -> int:
        return self._scheduler.now

    @property
    def free(self) -> int:
        return self._scheduler.pool.get_num_free_blocks() * self._scheduler.block_size

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def living(self) -> int:
        return len(self._scheduler.running) + len(self._scheduler.holds)

    def cached(self, job: Job) -> int:
        scheduler = self._scheduler
        return scheduler.kv_cache_manager.get_computed_blocks(scheduler.requests[job.name])[1]


class PolicyScheduler(AsyncScheduler):
    """vLLM's own scheduler but for who is admitted next, and what is held for workflows that pause."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.plugin, self.policy = read_plugin(self.vllm_config.additional_config)
        costs = Linear(prefill=1e9 / self.plugin.prefill_tokens_per_second)
        self.order, self.retention = self.policy.objects(costs)
        self.pool = self.kv_cache_manager.block_pool
        self.room = PolicyRoom(self)
        self.now = time.monotonic_ns()
        self.popped: Request | None = None
        self.holds: dict[str, PinnedBlocks] = {}
        self.num_pinned = 0
        self._jobs: dict[str, Job] = {}
        self._paused: dict[str, tuple[str, int, int]] = {}
        self.waiting = PolicyQueue(self, self.order)

    # -- requests --------------------------------------------------------------------------------------------------

    def job(self, request: Request) -> Job:
        """The job of a request, made when it is first seen."""
        found = self._jobs.get(request.request_id)
        if found is None:
            parameters = request.sampling_params
            found = self._jobs[request.request_id] = job_of(
                request.request_id,
                request.num_prompt_tokens,
                None if parameters is None else parameters.extra_args,
                request.session_id,
                self.now,
                trusted=self.plugin.trust_client_tenant,
            )
        return found

    def on_wait(self, job: Job) -> None:
        """A request came: what its workflow's pause taught, and whether its context is held."""
        self.now = time.monotonic_ns()
        job.arrival = self.now
        if paused := self._paused.pop(job.program, None):
            tool, finished, began = paused
            job.program_arrival, job.turn = began, max(1, job.turn)
            self.retention.on_return(job, tool, self.now - finished)
        if hold := self.holds.get(job.program):
            hold.returned = job.kept = True

    def settle(self) -> None:
        """Charges the request that was admitted last, and lets go of what was held for it."""
        request, self.popped = self.popped, None
        if request is None or request.status != RequestStatus.RUNNING:
            return  # it could not be looked at now, and waits again
        job = self.job(request)
        if not job.preempted:
            job.cached = min(request.num_computed_tokens, job.prompt)
            if job.turn:
                self.retention.on_admit(job, self.now - job.arrival)
        self.order.on_scheduled(job, max(0, job.prompt - request.num_computed_tokens), 0)
        job.kept = False
        if hold := self.holds.get(job.program):
            self._unpin(hold, len(hold.blocks))

    # -- vLLM's hooks ----------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self.now = time.monotonic_ns()
        if self.holds:
            self._expire()
            self._make_room()
        return super().schedule(throttle_prefills)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        self.settle()
        super()._update_after_schedule(scheduler_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        found, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if found:
            self.order.on_scheduled(self._jobs[request.request_id], 0, len(found))
        return found, stopped

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        self.order.on_preempted(self.job(request), request.num_computed_tokens)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        job = self._jobs.pop(request.request_id, None)
        if job is not None:
            self.now = time.monotonic_ns()
            self._end(request, job)
        return super()._free_request(request, delay_free_blocks)

    def reset_prefix_cache(self, *arguments: Any, **options: Any) -> bool:
        for hold in list(self.holds.values()):
            self._unpin(hold, len(hold.blocks))
        return super().reset_prefix_cache(*arguments, **options)

    # -- holds -----------------------------------------------------------------------------------------------------

    def _end(self, request: Request, job: Job) -> None:
        """A request ended: what its tool call means for its context."""
        whole = request.status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
        if not whole:
            job.tool = ""
            if hold := self.holds.get(job.program):
                hold.returned = False
        self.order.on_finish(job, self.now)
        if whole and job.program and job.tool:
            self._paused[job.program] = (job.tool, self.now, job.program_arrival)
            if len(self._paused) > MOST_PROGRAMS:
                del self._paused[next(iter(self._paused))]
        wanted = self.retention.on_finish(job, request.num_computed_tokens, self.room) if whole else 0
        if wanted <= 0 or not job.program or job.program in self.holds:
            return
        groups = self.kv_cache_manager.get_blocks(request.request_id).blocks
        blocks = [block for group in groups for block in group if block.block_hash is not None and not block.is_null]
        if blocks and self.num_pinned + len(blocks) <= self.plugin.budget * self.pool.num_gpu_blocks:
            self.pool.touch(blocks)
            self.num_pinned += len(blocks)
            tokens = len(blocks) * self.block_size
            self.holds[job.program] = PinnedBlocks(job, self.now, self.now + wanted, tokens, blocks=blocks)

    def _unpin(self, hold: PinnedBlocks, num: int) -> None:
        """Lets go of the last `num` blocks of a hold, tail first."""
        gone = hold.blocks[len(hold.blocks) - num :]
        del hold.blocks[len(hold.blocks) - num :]
        self.pool.free_blocks(reversed(gone))
        self.num_pinned -= num
        hold.tokens = len(hold.blocks) * self.block_size
        if not hold.blocks:
            del self.holds[hold.job.program]

    def _expire(self) -> None:
        for hold in [hold for hold in self.holds.values() if hold.until <= self.now and not hold.returned]:
            self._unpin(hold, len(hold.blocks))

    def _make_room(self) -> None:
        """Gives up holds for the blocks that those who run need in this step, or for the first who waits where nobody
        runs."""
        size, wanted = self.block_size, 0
        for request in self.running:
            tokens = request.num_tokens_with_spec + request.num_output_placeholders
            wanted += -(-tokens // size) - -(-request.num_computed_tokens // size)
        if not self.running and self.waiting:
            wanted = -(-self.waiting.peek_request().num_tokens // size)
        wanted -= self.pool.get_num_free_blocks()
        for hold in list(self.retention.on_pressure(self.holds.values(), self.room)) if wanted > 0 else []:
            assert isinstance(hold, PinnedBlocks)
            part = min(wanted, len(hold.blocks))
            self._unpin(hold, part)
            wanted -= part
            if wanted <= 0:
                return
