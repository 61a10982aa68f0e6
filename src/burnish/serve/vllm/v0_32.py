"""The scheduler of vLLM 0.32 with a policy of ours.

vLLM's `schedule()` looks at its queue of waiting requests (is there one, which), tries to place that request, and takes
it out where it fits; `PolicyQueue` answers from an `Order`. What was admitted is charged before the queue is looked at
again, so that two admissions of one step see each other. A context is held by one more reference on its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from burnish.serve import metrics
from burnish.serve.costs import Linear
from burnish.serve.exchange import FileExchange
from burnish.serve.guard import SECOND, PolicyGuard
from burnish.serve.policies.protocol import Hold, Job, Order, Retention
from burnish.serve.policies.queues import FirstComeFirstServed, needs_place
from burnish.serve.policies.retention import NoRetention
from burnish.serve.policies.shares import FairShares
from burnish.serve.shadow import Shadow
from burnish.serve.telemetry import Recorder
from burnish.serve.vllm import installed
from burnish.serve.vllm.requests import job_of, read_plugin
from burnish.serve.watch import StepClock, Watcher

logger = init_logger(__name__)
_ENDS = {RequestStatus.FINISHED_STOPPED: "stopped", RequestStatus.FINISHED_LENGTH_CAPPED: "length"}


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
        self.order.on_submit(job, self._scheduler.now)

    def follow(self, order: Order) -> None:
        """Another order takes over all who wait."""
        self.order, self._next = order, None
        for job in sorted(self._requests, key=lambda job: (not job.preempted, job.arrival)):
            order.on_submit(job, self._scheduler.now)

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
    def places(self) -> int:
        return self._scheduler.max_num_active_reqs

    @property
    def living(self) -> int:
        return len(self._scheduler.running) + len(self._scheduler.holds)

    def cached(self, job: Job) -> int:
        scheduler = self._scheduler
        return scheduler.kv_cache_manager.get_computed_blocks(scheduler.requests[job.name])[1]


class PolicyScheduler(AsyncScheduler):
    """vLLM's own scheduler but for who is admitted next, and what is held for workflows that pause.

    Only in the mode `enforce` is vLLM's queue replaced and anything held; in all modes but `off` it is watched.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.plugin, self.policy = read_plugin(self.vllm_config.additional_config)
        self.policy.check_places(self.max_num_active_reqs)
        self.pool = self.kv_cache_manager.block_pool
        self.room = PolicyRoom(self)
        self.now = time.monotonic_ns()
        self.popped: Request | None = None
        self.holds: dict[str, PinnedBlocks] = {}
        self.num_pinned = 0
        self.enforces = self.plugin.mode == "enforce"
        self.order: Order = FirstComeFirstServed()
        self.retention: Retention = NoRetention()
        self._jobs: dict[str, Job] = {}
        self._clock = StepClock()
        self._shown_at = 0
        self.watcher = self._watcher() if self.plugin.mode != "off" else None
        if self.enforces:
            self.order, self.retention = self._policy()
            self.waiting = PolicyQueue(self, self.order)
        self.exchange = self._exchange() if self.enforces and self.plugin.exchange else None
        self.shown: metrics.Values = {}
        if self.plugin.metrics_port:
            metrics.show(lambda: self.shown, self.plugin.metrics_port)

    def _policy(self) -> tuple[Order, Retention]:
        return self.policy.objects(Linear(prefill=1e9 / self.plugin.prefill_tokens_per_second))

    def _exchange(self) -> FileExchange:
        fleet = self.policy.fleet(engines=2)  # how many there are is seen
        assert fleet is not None
        return FileExchange(Path(self.plugin.exchange), fleet, lambda what: logger.warning("burnish: %s", what))

    def _watcher(self) -> Watcher:
        plugin = self.plugin
        recorder = Recorder(Path(plugin.telemetry), self.about()) if plugin.telemetry else None
        shadow = Shadow(*self._policy(), self.room) if plugin.mode in ("shadow", "advise") else None
        guard = PolicyGuard() if plugin.mode == "enforce" and plugin.fall_back and self.policy.hold != "none" else None
        pauses = self.policy.pause_laws()
        return Watcher(plugin.mode, self.now, recorder=recorder, shadow=shadow, guard=guard, pauses=pauses)

    def about(self) -> dict[str, Any]:
        """Of the start in the telemetry; limits have the names of an engine file."""
        config, caching = self.scheduler_config, self.cache_config.enable_prefix_caching
        return {
            "vllm": installed(),
            "mode": self.plugin.mode,
            "policy": self.policy.model_dump(mode="json", exclude_defaults=True),
            "num_blocks": self.pool.num_gpu_blocks - 1,  # one is never given out
            "block_size": self.block_size,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_num_seqs": config.max_num_seqs,
            "reserve_full": bool(config.scheduler_reserve_full_isl),
            "budget": self.plugin.budget,
            "prefix_caching": bool(caching),
            "chunked_prefill": bool(config.enable_chunked_prefill),
            "long_prefill_token_threshold": config.long_prefill_token_threshold,
        }

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

    def add_request(self, request: Request) -> None:
        if self.watcher and request.request_id not in self.requests:
            self.now = time.monotonic_ns()
            self._arrived(self.job(request), self.watcher)
        super().add_request(request)

    def _arrived(self, job: Job, watcher: Watcher) -> None:
        """A request came: what its workflow's pause taught, and whether its context is held."""
        if pause := watcher.arrived(job, self.now):
            self.retention.on_return(job, *pause)
        if hold := self.holds.get(job.program):
            hold.returned = job.kept = True

    def settle(self) -> None:
        """Charges the request that was admitted last, and lets go of what was held for it."""
        request, self.popped = self.popped, None
        if request is None or request.status != RequestStatus.RUNNING:
            return  # it could not be looked at now, and waits again
        job = self.job(request)
        assert self.watcher is not None
        self.watcher.admitted(job.name, self.now, request.num_computed_tokens)
        if not job.preempted:
            job.cached = min(request.num_computed_tokens, job.prompt)
            if job.turn:
                self.retention.on_admit(job, self.now - job.arrival)
        self.order.on_scheduled(job, max(0, job.prompt - request.num_computed_tokens), 0)
        job.kept = False
        if hold := self.holds.get(job.program):
            self._unpin(hold, len(hold.blocks), "returned")

    # -- vLLM's hooks ----------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if self.watcher is None:
            return super().schedule(throttle_prefills)
        self.now = time.monotonic_ns()
        begun, idle = (self.now, time.process_time_ns()), not self.running
        if self.holds:
            self._expire()
            self._make_room()
        self._look()
        if self.exchange and isinstance(self.order, FairShares):
            self.exchange.tick(self.order)
        if needs_place(self.order, self.room):
            self._make_place()
        made = super().schedule(throttle_prefills)
        if self.watcher.recorder and made.total_num_scheduled_tokens:
            self._clock.planned(made, begun, idle=idle, what=computed(made))
        return made

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        found = super().update_from_output(scheduler_output, model_runner_output)
        if self.watcher and self.watcher.recorder:
            taken = self._clock.ended(scheduler_output, (time.monotonic_ns(), time.process_time_ns()))
            if taken:
                self.watcher.step(time.monotonic_ns(), **taken)
        if self.watcher and not self.requests:
            self.watcher.idle()
            self._show()
        return found

    def shutdown(self) -> None:
        if self.watcher and self.watcher.recorder:
            self.watcher.recorder.flush()
        if self.exchange:
            self.exchange.close()
        super().shutdown()

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        self.settle()
        if self.watcher and not self.enforces:
            for new in scheduler_output.scheduled_new_reqs:
                self.watcher.admitted(new.req_id, self.now, new.num_computed_tokens)
            for name in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
                self.watcher.admitted(name, self.now, self.requests[name].num_computed_tokens)
        super()._update_after_schedule(scheduler_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        found, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if found and self.watcher:
            self.order.on_scheduled(self._jobs[request.request_id], 0, len(found))
            self.watcher.tokens(request.request_id, time.monotonic_ns(), len(found))
        return found, stopped

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        if self.watcher:
            self.order.on_preempted(self.job(request), request.num_computed_tokens)
            self.watcher.preempted(request.request_id, request.num_computed_tokens, self.now)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        job = self._jobs.pop(request.request_id, None)
        if job is not None and self.watcher:
            self.now = time.monotonic_ns()
            self._end(request, job)
            self.watcher.ended(
                job.name,
                self.now,
                how=_ENDS.get(request.status, "given up"),
                computed=request.num_computed_tokens,
                hashes=request.block_hashes if self.watcher.recorder else (),
            )
        return super()._free_request(request, delay_free_blocks)

    def reset_prefix_cache(self, *arguments: Any, **options: Any) -> bool:
        for hold in list(self.holds.values()):
            self._unpin(hold, len(hold.blocks), "dropped")
        return super().reset_prefix_cache(*arguments, **options)

    def _make_place(self) -> None:
        """Takes a place away where the order says from whom. What is under way for that request is still delivered, and
        the worker is told all its tokens when it has a place again, as if it had not been in the last step."""
        jobs = [self.job(request) for request in self.running]
        victim = self.order.victim(jobs)
        if victim is not None:
            request = self.running.pop(jobs.index(victim))
            self._preempt_request(request, time.monotonic())
            self.prev_step_scheduled_req_ids.discard(victim.name)

    # -- the guard -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """What is looked at before every step: whether the policy is to be left, and, each second, the metrics."""
        assert self.watcher is not None
        if guard := self.watcher.guard:
            now = self.now / SECOND
            guard.held(now, over=self.num_pinned > self.plugin.budget * self.pool.num_gpu_blocks)
            if why := guard.why(now):
                self.fall_back(why)
        if self.now - self._shown_at > SECOND:
            self._show()

    def _show(self) -> None:
        """Metrics as they are now; another thread reads them."""
        self._shown_at = self.now
        if self.watcher and self.plugin.metrics_port:
            self.shown = self.watcher.values(pinned=self.num_pinned, waiting=len(self.waiting))

    def fall_back(self, why: str) -> None:
        """Leaves the policy for vLLM's own order, without holds; telemetry goes on."""
        assert self.watcher is not None
        assert isinstance(self.waiting, PolicyQueue)
        logger.warning("burnish: the policy %s is left: %s", self.policy.called, why)
        self.watcher.mode, self.watcher.guard = "telemetry", None
        self.watcher.event("fallback", self.now, why=why)
        for hold in list(self.holds.values()):
            self._unpin(hold, len(hold.blocks), "dropped")
        self.order, self.retention = FirstComeFirstServed(), NoRetention()
        self.waiting.follow(self.order)

    # -- holds -----------------------------------------------------------------------------------------------------

    def _end(self, request: Request, job: Job) -> None:
        """A request ended: what its tool call means for its context."""
        whole = request.status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
        if not whole:
            job.tool = ""
            if hold := self.holds.get(job.program):
                hold.returned = False
        self.order.on_finish(job, self.now)
        wanted = self.retention.on_finish(job, request.num_computed_tokens, self.room) if whole else 0
        if wanted <= 0 or not job.program or job.program in self.holds or not self._may_hold(job):
            return
        groups = self.kv_cache_manager.get_blocks(request.request_id).blocks
        blocks = [block for group in groups for block in group if block.block_hash is not None and not block.is_null]
        if blocks and self.num_pinned + len(blocks) <= self.plugin.budget * self.pool.num_gpu_blocks:
            self.pool.touch(blocks)
            self.num_pinned += len(blocks)
            tokens = len(blocks) * self.block_size
            self.holds[job.program] = PinnedBlocks(job, self.now, self.now + wanted, tokens, blocks=blocks)

    def _may_hold(self, job: Job) -> bool:
        guard = self.watcher.guard if self.watcher else None
        return self.plugin.holds(job.program) and not (guard and guard.is_control(self.now / SECOND))

    def _unpin(self, hold: PinnedBlocks, num: int, until: str) -> None:
        """Lets go of the last `num` blocks of a hold, tail first; `until` says why."""
        assert self.watcher is not None
        program, pinned = hold.job.program, self.num_pinned
        self.watcher.hold_ended(program, self.now, until, blocks=num, since=hold.since, pinned=pinned)
        gone = hold.blocks[len(hold.blocks) - num :]
        del hold.blocks[len(hold.blocks) - num :]
        self.pool.free_blocks(reversed(gone))
        self.num_pinned -= num
        hold.tokens = len(hold.blocks) * self.block_size
        if not hold.blocks:
            del self.holds[hold.job.program]

    def _expire(self) -> None:
        for hold in [hold for hold in self.holds.values() if hold.until <= self.now and not hold.returned]:
            self._unpin(hold, len(hold.blocks), "expired")

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
            self._unpin(hold, part, "reclaimed")
            wanted -= part
            if wanted <= 0:
                return


def computed(plan: Any) -> dict[str, int]:
    """What a step computes: tokens of prompts, requests that decode, and tokens that those hold."""
    prompt = sum(plan.num_scheduled_tokens[new.req_id] for new in plan.scheduled_new_reqs)
    decodes = context = 0
    running = plan.scheduled_cached_reqs
    for name, computed in zip(running.req_ids, running.num_computed_tokens, strict=True):
        tokens = plan.num_scheduled_tokens[name]
        if tokens == 1:
            decodes += 1
            context += computed
        else:
            prompt += tokens
    return {"prompt": prompt, "decodes": decodes, "context": context}
