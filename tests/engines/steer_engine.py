"""Steered requests in a vLLM engine: `python steer_engine.py JOB.json RESULT.json`, in the environment of vLLM.

A job is {model, sets, compile, hooks, buffers, engine, rounds}: `sets` is BURNISH_STEER (empty: the plug-in stays out),
with `hooks` Python hooks stand in place of its op, with `buffers` it reads the buffers of a GPU, `engine` has further
arguments of vLLM's, and each round is a list of {prompt, num_tokens, steer} that are answered side by side. The result
has `preempted`, how often a request lost its place, `graphs` that were compiled, and `rounds`: for every round and
request its tokens, their log-probabilities, how many tokens of its prompt were found computed, and its counts where it
was steered.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

JOB = json.loads(Path(sys.argv[1]).read_text())
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",  # the plug-in is called by hand here, whatever this environment has installed
    "HF_HUB_OFFLINE": "1",
    "BURNISH_STEER": JOB["sets"],
}
if not JOB["compile"]:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"


def hook(worker: Any) -> None:
    """Does with hooks what the op does."""
    from burnish.steer.vllm import v0_32

    steering = v0_32._RUNNING[worker.model_runner].steering
    for layer, (_, projection) in v0_32._projections(worker.model_runner.model).items():

        def behind(_: Any, __: Any, output: Any, layer: int = layer) -> None:
            steering.apply(layer, output[0] if isinstance(output, tuple) else output)

        projection.register_forward_hook(behind)


def main() -> None:
    from burnish.steer.vllm import register

    register()
    if JOB["hooks"]:
        from burnish.steer.vllm import v0_32

        v0_32._behind = lambda kind: kind  # without the op
    if JOB["buffers"]:
        from burnish.steer.vllm import v0_32
        from burnish.steer.vllm.buffers import SteeringBuffers

        def on_device(runner: Any, sets: Any) -> SteeringBuffers:
            vocabulary = runner.vllm_config.model_config.get_vocab_size()
            num_tokens = len(runner.positions)
            return SteeringBuffers(
                sets, num_requests=64, num_tokens=num_tokens, vocab_size=vocabulary, device=runner.device
            )

        v0_32._steering = on_device
    from vllm import LLM, SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, preempt = [], Scheduler._preempt_request

    def counted(self: Any, request: Any, *rest: Any, **more: Any) -> None:
        preempted.append(request.request_id)
        preempt(self, request, *rest, **more)

    Scheduler._preempt_request = counted
    options: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 16, "dtype": "float32"} | JOB["engine"]
    engine = LLM(model=JOB["model"], enforce_eager=not JOB["compile"], **options)
    if JOB["hooks"]:
        engine.collective_rpc(hook)
    rounds = []
    for requests in JOB["rounds"]:
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=one["num_tokens"],
                ignore_eos=True,
                logprobs=0,
                extra_args={"steer": one["steer"]} if one.get("steer") else None,
            )
            for one in requests
        ]
        prompts = [{"prompt_token_ids": one["prompt"]} for one in requests]
        answers = engine.generate(prompts, params, use_tqdm=False)
        counts: dict[str, Any] = {}
        if JOB["sets"]:
            from burnish.steer.vllm.v0_32 import steering_counts

            (counts,) = engine.collective_rpc(steering_counts)
        ids = [next((name for name in counts if name.split("-")[0] == answer.request_id), None) for answer in answers]
        rounds.append(
            [
                {
                    "tokens": list(answer.outputs[0].token_ids),
                    "logprobs": [next(iter(one.values())).logprob for one in answer.outputs[0].logprobs],
                    "cached": answer.num_cached_tokens,
                    "counts": counts.get(own) if own else None,
                }
                for answer, own in zip(answers, ids, strict=True)
            ]
        )
    from torch._dynamo.utils import counters

    found = {"preempted": len(preempted), "graphs": counters["stats"]["unique_graphs"], "rounds": rounds}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
