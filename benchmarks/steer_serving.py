"""What does steering cost a server: with vectors that no request asks for, and with 38 % of the heads turned?

    VLLM_PYTHON=$(scripts/vllm-env) python benchmarks/steer_serving.py --work runs/steer-serving
    VLLM_PYTHON=python python benchmarks/steer_serving.py --work runs/steer-gpu --gpu       # five minutes on one GPU

vLLM with SmolLM2 in bfloat16 on one thread, eight requests side by side that decode. Two processes take single steps in
turns. One holds an engine without the plug-in; the other an engine without it, which is made first, and one with it on
the same weights, in blocks of 40 steps: in every other block all requests ask for steering, else none. The two engines
without show what two processes of one program differ in by themselves. Both are started several times (--starts), eager
once. Vectors are random, and half of the gates open; a line end ends a step, as in what the model writes at temperature
1. Compiled, and eager, which is what Python hooks would need.

ratios: processor time of a step, to the engine without in the same process, with an interval over the steps of all
    starts, and to that of the other process, with one over starts, of each the mean over its steps; of a single start
    over its steps.
own: what the plug-in does in a step in which nobody asks, its op in every layer and its look at the batch, by 3,000
    calls of each in the same process, over the time of a step.

With --gpu a Llama of a billion random weights (`load_format=dummy`) with CUDA graphs and eager, by the wall clock: a
step ends when its tokens are on the host. Every 25th token of the vocabulary ends a step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import experiment

BARE, LOADED = PROCESSES = ("without the plug-in", "with the plug-in")
BESIDE = "without the plug-in, beside the one with it"
ENGINES = {BARE: BARE, BESIDE: LOADED, LOADED: LOADED}
"""In which process each is."""
UNUSED, STEERED = "loaded, nobody asks", "38 % of the heads, all requests"
WAYS = COMPILED, EAGER = ("compiled", "eager")
STARTS = 1 if experiment.SMOKE else 5
WARM, BLOCK, BLOCKS = (1, 2, 2) if experiment.SMOKE else (2, 40, 4)
CALLS = 3000
REQUESTS, PROMPT = 8, 64
TOP = 0.38
SEPARATES = 2 if experiment.SMOKE else 25
"""Every so many-th token ends a step where there is no tokenizer."""
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 320}
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128_256}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
MANY_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
ENGINE: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": REQUESTS, "disable_log_stats": True}
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",  # the plug-in is called by hand here
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


class Bench(experiment.Kept):
    """A way of running and a start of all its engines at a time."""

    def __init__(self, work: Path, model: Path | None, *, starts: int, gpu: bool) -> None:
        super().__init__(work)
        self.work, self.starts, self.gpu = work.resolve(), starts, gpu
        self.model = model.resolve() if model else self.made()

    def made(self) -> Path:
        """A Llama with random weights, which vLLM draws itself."""
        place = self.work / "model"
        place.mkdir(parents=True, exist_ok=True)
        shape = LARGE | MANY_HEADS if self.gpu and not experiment.SMOKE else SHAPE | HEADS
        about = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
        about |= {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
        config = about | shape
        (place / "config.json").write_text(json.dumps(config))
        return place

    def names(self) -> Iterable[str]:
        return [f"{way}, {start}" for way in WAYS for start in range(self.starts_of(way))]

    def starts_of(self, way: str) -> int:
        return self.starts if way == COMPILED else 1

    def measure(self, name: str) -> dict[str, Any]:
        way = name.partition(",")[0]
        options: dict[str, Any] = ENGINE | {"model": str(self.model), "enforce_eager": way == EAGER}
        if self.gpu:
            options |= {"gpu_memory_utilization": 0.9 / len(ENGINES)}
        if not (self.model / "tokenizer.json").is_file():
            options |= {"load_format": "dummy", "skip_tokenizer_init": True}
        kinds: dict[str, dict[str, list[Any]]] = {kind: {one: [] for one in ENGINES} for kind in (UNUSED, STEERED)}
        with ExitStack() as stack:
            processes = {one: stack.enter_context(Engine(self.task(one, options), self.work)) for one in PROCESSES}
            for block in range(BLOCKS):
                kind = STEERED if block % 2 else UNUSED
                for one, process in ENGINES.items():
                    processes[process].ask("steered" if kind == STEERED and one == LOADED else "plain", one)
                for step in range(WARM + BLOCK):
                    for one in list(ENGINES)[:: -1 if step % 2 else 1]:
                        taken = processes[ENGINES[one]].ask("step", one)
                        if step >= WARM:
                            kinds[kind][one].append(taken)
            return {"steps": kinds, **processes[LOADED].ask("told", LOADED)}

    def task(self, one: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"sets": self.vectors() if one == LOADED else "", "engine": options, "gpu": self.gpu}

    def vectors(self) -> str:
        """Random ones for all heads; BURNISH_STEER that names them."""
        import torch
        from transformers import AutoConfig, AutoTokenizer

        from burnish.arch import describe
        from burnish.core.checkpoint import Lineage
        from burnish.steer import Marks, ProbedHead, Vectors, marks_of

        place = self.work / "vectors"
        config = AutoConfig.from_pretrained(self.model)
        shape, vocabulary = describe(config), range(config.vocab_size)
        if (self.model / "tokenizer.json").is_file():
            marks = marks_of(AutoTokenizer.from_pretrained(self.model), separator="\n")
        else:
            marks = Marks("", tuple(vocabulary[::SEPARATES]), (), ("wait",), "", ())
        random = torch.Generator().manual_seed(0)
        per_layer, layers = shape.num_attention_heads, config.num_hidden_layers
        order = torch.randperm(layers * per_layer, generator=random).tolist()
        heads = tuple(ProbedHead(one // per_layer, one % per_layer, 0.5) for one in order)
        probes, directions = torch.randn(2, len(heads), config.hidden_size, generator=random)
        unit = torch.nn.functional.normalize(directions, dim=1)
        made = Vectors("", heads, probes, unit, len(heads), marks, config.hidden_size)
        made.save(place, Lineage(stage="steer"), overwrite=True)
        return json.dumps({"careful": {"vectors": str(place), "top": TOP}})


class Engine:
    """A process with an engine or two, which take a step when they are asked."""

    def __init__(self, task: dict[str, Any], work: Path) -> None:
        self.task, self.work = task, work

    def __enter__(self) -> Engine:
        more = QUIET | {"VLLM_CACHE_ROOT": str(self.work / "cache"), "BURNISH_STEER": self.task["sets"]}
        if self.task["engine"]["enforce_eager"]:
            more["TORCHDYNAMO_DISABLE"] = "1"
        command = [os.environ["VLLM_PYTHON"], __file__, "--inside", json.dumps(self.task)]
        with (self.work / "engines.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | more
            )
        self.answer()  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def ask(self, what: str, one: str) -> Any:
        assert self.process.stdin
        print(f"{what}: {one}", file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("FOUND "):
                return json.loads(line[6:])
        sys.exit(f"an engine has ended: {(self.work / 'engines.log').read_text()[-3000:]}")


# -- inside the environment of vLLM ------------------------------------------------------------------------------------


def inside(task: dict[str, Any]) -> Iterable[Any]:
    """Answers to what comes over stdin: `plain` and `steered` begin a block of an engine, `step` takes a step of it."""
    from burnish.steer.vllm import register

    clock = time.perf_counter if task["gpu"] else time.process_time
    from vllm import EngineArgs, LLMEngine, SamplingParams

    def made() -> Any:
        return LLMEngine.from_engine_args(EngineArgs(**task["engine"]))

    if task["sets"]:
        engines, methods = {BESIDE: made()}, unchanged()
        register()
        # The plug-in is in the classes of vLLM from here on, and this engine keeps what was there before.
        runner = runner_of(engines[BESIDE])
        for name, method in methods.items():
            setattr(runner, name, method.__get__(runner))
        on_weights_of(runner.model)
        engines[LOADED] = made()
    else:
        engines = {BARE: made()}
    number = 0
    yield "ready"
    for line in sys.stdin:
        what, _, one = line.strip().partition(": ")
        engine = engines[one]
        match what:
            case "step":
                begun = clock()
                engine.step()
                yield clock() - begun
            case "told":
                (own,) = engine.collective_rpc(called, args=(clock,))
                yield {"counts": told(engine), "own": own}
            case _:
                while engine.has_unfinished_requests():
                    engine.step()
                for row in range(REQUESTS):
                    parameters = SamplingParams(
                        max_tokens=WARM + BLOCK + 1,
                        temperature=1,
                        ignore_eos=True,
                        detokenize=False,
                        extra_args={"steer": "careful:-1"} if what == "steered" else None,
                    )
                    prompt = [5 + (number + row + 3 * place) % 300 for place in range(PROMPT)]
                    engine.add_request(f"{number + row}", {"prompt_token_ids": prompt}, parameters)
                number += REQUESTS
                engine.step()  # all prompts, which fit into one batch
                yield what


def runner_of(engine: Any) -> Any:
    return engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def unchanged() -> dict[str, Any]:
    """What the plug-in changes of the model runner, as it is."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return {name: getattr(GPUModelRunner, name) for name in ("_update_states", "_prepare_inputs", "_dummy_run")}


def on_weights_of(model: Any) -> None:
    """The next engine of this process computes on the weights of a model that is there: two copies differ in time."""
    from vllm.v1.worker.gpu_worker import Worker

    original = Worker.load_model

    def load_model(self: Any, *rest: Any, **more: Any) -> None:
        original(self, *rest, **more)
        for mine, theirs in zip(self.model_runner.model.modules(), model.modules(), strict=True):
            if hasattr(theirs, "cpu_linear"):  # with packed weights
                mine.cpu_linear = theirs.cpu_linear
            for name, parameter in theirs.named_parameters(recurse=False):
                setattr(mine, name, parameter)

    Worker.load_model = load_model


def called(worker: Any, clock: Any) -> dict[str, float]:
    """Seconds of a call of the op and of the look at a batch, where nobody asks for steering; and how many layers."""
    import torch

    from burnish.steer.vllm.v0_32 import _RUNNING

    steering, config = _RUNNING[worker.model_runner].steering, worker.model_runner.vllm_config
    hidden, device = config.model_config.get_hidden_size(), worker.device
    x, ids = torch.zeros(REQUESTS, hidden, device=device), torch.zeros(REQUESTS, dtype=torch.int32, device=device)
    requests = [f"nobody {number}" for number in range(REQUESTS)]
    begun = clock()
    for _ in range(CALLS):
        steering.fill(ids, ids.long(), requests, [1] * REQUESTS)
    filled = clock()
    for _ in range(CALLS):
        torch.ops.burnish.steer(x, steering.layers[0])
    ended = clock()
    return {"op": (ended - filled) / CALLS, "fill": (filled - begun) / CALLS, "layers": len(steering.layers)}


def told(engine: Any) -> dict[str, int]:
    """Sums over requests of what was counted."""
    from burnish.steer.vllm.v0_32 import steering_counts

    (found,) = engine.collective_rpc(steering_counts)
    return {what: sum(one[what] for one in found.values()) for what in next(iter(found.values()), {})}


# -- what is quoted ----------------------------------------------------------------------------------------------------


def summed(bench: Bench) -> dict[str, Any]:
    """Of every way: milliseconds of a step, ratios, the plug-in's own part, and what was counted."""
    return {way: of_way([bench.read(f"{way}, {start}") for start in range(bench.starts_of(way))]) for way in WAYS}


def of_way(parts: list[dict[str, Any]]) -> dict[str, Any]:
    def steps(kind: str, one: str) -> list[list[float]]:
        return [part["steps"][kind][one] for part in parts]

    def mean(seconds: list[list[float]]) -> float:
        return statistics.fmean(value for part in seconds for value in part)

    def ratio(mine: list[list[float]], others: list[list[float]], *, over_starts: bool) -> dict[str, float]:
        sides = (mine, others)
        if over_starts and len(parts) > 1:
            found = experiment.ratio(*([statistics.fmean(part) for part in side] for side in sides))
        else:
            found = experiment.ratio(*([value for part in side for value in part] for side in sides))
        return {"mean": found.value, "low": found.low, "high": found.high}

    def both(one: str) -> list[list[float]]:
        return [unused + steered for unused, steered in zip(steps(UNUSED, one), steps(STEERED, one), strict=True)]

    found: dict[str, Any] = {BARE: {"milliseconds": 1e3 * mean(both(BARE))}}
    found[BESIDE] = {
        "milliseconds": 1e3 * mean(both(BESIDE)),
        "of the other process": ratio(both(BESIDE), both(BARE), over_starts=True),
    }
    for kind in (UNUSED, STEERED):
        mine = steps(kind, LOADED)
        found[kind] = {
            "milliseconds": 1e3 * mean(mine),
            "of the other process": ratio(mine, steps(kind, BARE), over_starts=True),
            "of the same process": ratio(mine, steps(kind, BESIDE), over_starts=False),
        }
    own = [part["own"]["op"] * part["own"]["layers"] + part["own"]["fill"] for part in parts]
    found[UNUSED]["own"] = statistics.fmean(own) / mean(steps(UNUSED, LOADED))
    counts = [part["counts"] for part in parts]
    found[STEERED]["counts"] = {what: sum(one[what] for one in counts) for what in counts[0]}
    return found | {"starts": len(parts), "steps": sum(map(len, steps(STEERED, LOADED)))}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    header = (
        "one step, 8 requests | ms: | of the same process without (95 %): | of the other process without (95 %): | "
        "the plug-in's own: | tokens that end a step:"
    )
    return {place: experiment.table(header, lines(results.get(place))) for place in ("cpu", "gpu")}


RATIOS = ("of the same process", "of the other process")


def lines(found: dict[str, Any] | None) -> list[list[str]]:
    rows = []
    for way in WAYS:
        arms = (found or {}).get(way)
        if arms is None:
            rows += [[f"{way}, {kind}", "not run", "", "", "", ""] for kind in (BARE, UNUSED, STEERED)]
            continue
        for arm in (BARE, BESIDE, UNUSED, STEERED):
            one = arms[arm]
            share = [f"{one['counts']['flagged'] / one['counts']['seen']:.1%}"] if "counts" in one else [""]
            ratios = [experiment.cell(one[name]) if name in one else "" for name in RATIOS]
            own = f"{one['own']:.2%}" if "own" in one else ""
            rows.append([f"{way}, {arm}", f"{one['milliseconds']:.2f}", *ratios, own, *share])
    return rows


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("where vectors, compiled graphs and what has been measured are kept")
    command.add_argument("--model", type=Path, default=Path("models/smollm2"), help="not used with --gpu")
    command.add_argument("--starts", type=int, help=f"of compiled engines; {STARTS}, and 1 with --gpu")
    command.add_argument("--gpu", action="store_true", help="a model of a billion random weights on a GPU")
    options = command.read()
    own = options.gpu or options.smoke
    starts = options.starts or (1 if options.gpu else STARTS)  # there most of the time goes into compiling
    bench = Bench(options.work, None if own else options.model, starts=starts, gpu=options.gpu)
    note = "wall time on a GPU" if options.gpu else "processor time, one thread, shared with other work"
    place = "gpu" if options.gpu else "cpu"

    def content() -> dict[str, Any]:
        return {place: summed(bench), f"{place} machine": experiment.machine(note)}

    experiment.answer(bench, options, __doc__, content, tables, note=note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        for found in inside(json.loads(sys.argv[2])):
            print("FOUND " + json.dumps(found), flush=True)
    else:
        main()
