"""A vLLM engine of one narrow layer with random weights, without a tokenizer, under a policy: prints JSON of counts.

    python dummy_engine.py WORK SCENARIO POLICY [SETTINGS of the plug-in, as JSON]

It is run in the environment of vLLM by `test_vllm_scheduler.py`, in one process, so that its scheduler can be seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_PLUGINS": "",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
POLICY = "burnish.serve.vllm.Scheduler"


class Dummy:
    """The engine, driven step by step.

    Attributes:
        admitted: ids of requests in the order of their admission.
        steps: how many there were.
        tokens: that were computed in them.
        cached: tokens that each request found computed.
        schedule: sha256 over what every step computed for whom.
    """

    plugin: ClassVar[dict[str, Any]] = {}

    def __init__(self, work: Path, policy: str, **options: Any) -> None:
        from vllm import EngineArgs, LLMEngine

        work.mkdir(parents=True, exist_ok=True)
        (work / "config.json").write_text(json.dumps(CONFIG))
        if policy != "none":
            options["scheduler_cls"] = POLICY
            settings = {"policy": policy, "trust_client_tenant": True} | self.plugin
            options["additional_config"] = {"burnish": settings}
        arguments = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 2048,
            "dtype": "float32",
            "disable_log_stats": True,
            "num_gpu_blocks_override": 64,
        }
        self.engine = LLMEngine.from_engine_args(EngineArgs(model=str(work), **arguments | options))
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.admitted: list[str] = []
        self.steps = self.tokens = 0
        self.cached: dict[str, int] = {}
        self.seconds: list[float] = []
        self.asked: dict[str, str] = {}
        self.schedule = hashlib.sha256()
        self.lost = 0
        schedule = self.scheduler.schedule

        def watched(*arguments: Any, **keywords: Any) -> Any:
            before = time.perf_counter()
            made = schedule(*arguments, **keywords)
            self.seconds.append(time.perf_counter() - before)
            self.admitted += [
                self.asked.get(one.req_id.rsplit("-", 1)[0], one.req_id) for one in made.scheduled_new_reqs
            ]
            for one in made.scheduled_new_reqs:
                self.cached[self.admitted[len(self.cached)]] = one.num_computed_tokens
            self.steps += made.total_num_scheduled_tokens > 0
            self.tokens += made.total_num_scheduled_tokens
            taken = {name.rsplit("-", 1)[0]: num for name, num in made.num_scheduled_tokens.items()}
            blocks = [one.block_ids for one in made.scheduled_new_reqs], made.scheduled_cached_reqs.new_block_ids
            self.lost += len(made.preempted_req_ids or ())
            self.schedule.update(repr((taken, blocks)).encode())
            return made

        self.scheduler.schedule = watched

    def ask(self, name: str, prompt: list[int], output: int, **said: Any) -> None:
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=output, ignore_eos=True, detokenize=False, temperature=0, extra_args=said or None
        )
        self.asked[name] = name
        self.engine.add_request(name, {"prompt_token_ids": prompt}, parameters)

    def run(self, most: int = 10**9) -> None:
        while self.engine.has_unfinished_requests() and most:
            self.engine.step()
            most -= 1

    @property
    def blocks_in_use(self) -> int:
        pool = self.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one is never given out


def words(seed: int, num: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 256) for _ in range(num)]


def tenants(work: Path, policy: str) -> dict[str, Any]:
    """Ten requests of A, then four of B, two places."""
    dummy = Dummy(work, policy, max_num_seqs=2)
    for number in range(14):
        dummy.ask(f"{'A' if number < 10 else 'B'}{number}", words(number, 20), 8, tenant="A" if number < 10 else "B")
    dummy.run()
    return {"admitted": "".join(name[0] for name in dummy.admitted), "steps": dummy.steps, "tokens": dummy.tokens}


def elsewhere(work: Path, policy: str) -> dict[str, Any]:
    """As many requests of A as of B, beside an engine without vLLM at which A is served a great deal meanwhile."""
    from burnish.serve.exchange import FileExchange
    from burnish.serve.policies.protocol import Job
    from burnish.serve.policies.shares import FairShares
    from burnish.serve.settings import read_policy

    dummy, tree = Dummy(work, policy, max_num_seqs=2), FairShares()
    directory = Path(dummy.plugin["exchange"])
    other = FileExchange(directory, read_policy(policy).fleet(engines=2), print)
    there = Job("there", "A", prompt=10**6)
    tree.on_submit(there, 0)
    for number in range(20):
        dummy.ask(f"{'AB'[number % 2]}{number}", words(number, 20), 60, tenant="AB"[number % 2])
    while dummy.engine.has_unfinished_requests():
        other.tick(tree)
        if len(dummy.admitted) == 2 and there in tree and dummy.steps > 20:
            tree.on_leave(there, 0)
            tree.on_scheduled(there, there.prompt, 0)
        dummy.run(1)
    num = len(list(directory.glob("*.json")))
    dummy.scheduler.shutdown()
    left = len(list(directory.glob("*.json")))
    return {"admitted": "".join(name[0] for name in dummy.admitted), "engines": num, "left": left}


def light(work: Path, policy: str) -> dict[str, Any]:
    """Steps that a light tenant waits for its first token: alone, and beside one who sends all it has at once. And what
    the engine does in a step meanwhile: tokens of the requests themselves, so that what is computed twice counts once.
    """
    found: dict[str, Any] = {}
    for name, crowd in (("alone", 0), ("beside", 60)):
        dummy = Dummy(work, policy, max_num_seqs=8)
        for number in range(crowd):
            dummy.ask(f"heavy{number}", words(number, 64), 24, tenant="heavy")
        found[name] = []
        for number in range(12):
            dummy.run(3)
            begun = dummy.steps
            dummy.ask(f"light{number}", words(1000 + number, 32), 8, tenant="light")
            while f"light{number}" not in dummy.admitted:
                dummy.engine.step()
            found[name].append(dummy.steps - begun)
        dummy.run()
        asked = crowd * (64 + 24 - 1) + 12 * (32 + 8 - 1)
        found[f"tokens a step, {name}"] = asked / dummy.steps
        found[f"computed twice, {name}"] = dummy.tokens - asked
        found[f"places taken, {name}"] = dummy.lost
    return found


def returns(work: Path, policy: str) -> dict[str, Any]:
    """A workflow pauses while eight others fill the 24 blocks; how much of its 640 tokens is found again."""
    dummy = Dummy(work, policy, max_num_seqs=4, num_gpu_blocks_override=24)
    context = words(1, 640)
    dummy.ask("first", context, 4, program="agent", tool="search")
    dummy.run()
    held = dummy.blocks_in_use
    for number in range(8):
        dummy.ask(f"other{number}", words(100 + number, 640), 4)
    dummy.run()
    dummy.ask("second", context + words(2, 60), 4, program="agent", last=True)
    dummy.run()
    return {
        "held": held,
        "cached": dummy.cached["second"],
        "in use": dummy.blocks_in_use,
        "others": len(dummy.admitted),
    }


def aborts(work: Path, policy: str) -> dict[str, Any]:
    """A thousand requests of workflows, most of them given up at a random moment."""
    dummy, draw = Dummy(work, policy, max_num_seqs=16, num_gpu_blocks_override=40), random.Random(0)
    for number in range(1000):
        program = f"p{draw.randrange(40)}"
        dummy.ask(f"r{number}", words(draw.randrange(60), draw.randint(1, 300)), draw.randint(1, 12), program=program)
        if draw.random() < 0.7:
            dummy.run(draw.randrange(3))
        if draw.random() < 0.8:
            dummy.engine.abort_request([f"r{draw.randrange(number + 1)}"])
    dummy.run()
    scheduler = dummy.scheduler
    most = scheduler.num_pinned
    for hold in scheduler.holds.values():
        hold.until = 0
    dummy.ask("end", words(0, 5), 1)
    dummy.run()
    left = [len(scheduler.order), scheduler.num_pinned, len(scheduler.holds), len(scheduler._jobs), dummy.blocks_in_use]
    return {"pinned before": most, "left": left, "admitted": len(dummy.admitted)}


def mixed(work: Path, policy: str) -> dict[str, Any]:
    """Workflows of several tenants in a pool that is too small, some given up: the whole schedule, as a hash."""
    dummy, draw = Dummy(work, policy, max_num_seqs=8, num_gpu_blocks_override=16, max_model_len=1792), random.Random(0)
    for number in range(90):
        said = {"program": f"p{draw.randrange(9)}", "tenant": f"t{draw.randrange(3)}", "tool": "t"}
        context = words(int(said["program"][1:]), draw.randint(200, 600))
        dummy.ask(f"r{number}", context, draw.randint(1, 40), **said)
        dummy.run(draw.randrange(6))
        if draw.random() < 0.1:
            dummy.engine.abort_request([f"r{draw.randrange(number + 1)}"])
    dummy.run()
    return {"schedule": dummy.schedule.hexdigest(), "steps": dummy.steps, "lost": dummy.lost}


def leaves(work: Path, policy: str) -> dict[str, Any]:
    """A policy that is left in the middle: contexts that it held, and those who waited."""
    dummy = Dummy(work, policy, max_num_seqs=2)
    dummy.ask("first", words(1, 300), 2, program="agent", tool="t")
    dummy.run()
    held = dummy.scheduler.num_pinned
    for number in range(14):
        dummy.ask(f"{'A' if number < 10 else 'B'}{number}", words(number, 20), 8, tenant="A" if number < 10 else "B")
    dummy.run(12)
    before = len(dummy.admitted)
    dummy.scheduler.fall_back("a test")
    dummy.run()
    left = [dummy.scheduler.num_pinned, len(dummy.scheduler.waiting), dummy.blocks_in_use]
    order = "".join(name[0] for name in dummy.admitted)
    return {"held": held, "before": order[:before], "after": order[before:], "left": left}


def cost(work: Path, policy: str) -> dict[str, Any]:
    """Median seconds of schedule() with 256 requests running, and what charging them takes."""
    dummy = Dummy(work, policy, max_num_seqs=256, num_gpu_blocks_override=600)
    for number in range(256):
        dummy.ask(f"r{number}", words(number, 8), 60, tenant=f"org{number % 3}/team{number % 7}/t{number % 40}")
    dummy.run(50)
    scheduler = dummy.scheduler
    found = {"running": len(scheduler.running), "schedule": sorted(dummy.seconds[-20:])[10]}
    if policy != "none":
        jobs = [scheduler.job(request) for request in scheduler.running]
        taken = []
        for _ in range(21):
            before = time.process_time()
            for job in jobs:
                scheduler.order.on_scheduled(job, 0, 1)
            taken.append(time.process_time() - before)
        found["charge"] = sorted(taken)[10]
    return found


def pressure(work: Path, policy: str) -> dict[str, Any]:
    """All that is free is held when somebody comes whose prompt needs more than is left."""
    dummy = Dummy(work, policy, max_num_seqs=4, num_gpu_blocks_override=16, max_model_len=1792)
    for number in range(3):
        dummy.ask(f"agent{number}", words(number, 300), 4, program=f"agent{number}")
        dummy.run()
    held = dummy.scheduler.num_pinned
    dummy.ask("large", words(9, 1700), 4)
    dummy.run(60)
    return {"held": held, "finished": not dummy.engine.has_unfinished_requests(), "left": dummy.scheduler.num_pinned}


if __name__ == "__main__":
    scenario = {
        one.__name__: one for one in (tenants, elsewhere, light, returns, aborts, mixed, leaves, cost, pressure)
    }[sys.argv[2]]
    Dummy.plugin = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    print("FOUND " + json.dumps(scenario(Path(sys.argv[1]), sys.argv[3])))
