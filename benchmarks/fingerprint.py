"""Does every stage still compute what it computed?

    python benchmarks/fingerprint.py [--only PATTERN] [--check]

Every stage runs on small random models through public names and commands alone, and the sha256 of what comes out goes
into results/fingerprint.json, a line for each case: weights as a stock loader would find them on disk, measurements
and forecasts as exact numbers. With --only the other cases stay as they stand. With --check nothing is written; what
differs from the file is printed, and the exit status says whether anything does. Sums are done in another order by
other instructions, so equality is promised for one machine, one set of CPU instructions, the same versions and one
thread; elsewhere, write the file at the commit to compare with first.

Intervals stand in cases of their own (`... intervals`), because a better rule for them is no change of a stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import fnmatch
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: one thread here and in the commands.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import experiment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = Path(__file__).resolve().parent / "results" / "fingerprint.json"
PROSE = (ROOT / "LICENSE").read_text(encoding="utf-8")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "phi3": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "gpt2": {},
    "mixtral": {},
    "phimoe": {},
    "qwen3_moe": {"head_dim": 24},
    "deepseek_v3": {"n_routed_experts": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}
"""What the models of the cases have beside what `tests/small_models.py` gives their kind."""
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COLOURS = ["red", "green", "blue", "white", "black", "brown"]
PAIRS = [
    {"prompt": f"Name a colour like {c}. ", "chosen": f"{c} it is", "rejected": f"no idea about number {i}"}
    for i, c in enumerate(COLOURS * 4)
]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {c}."}, {"role": "assistant", "content": f"{c}, as you wish."}]}
    for c in COLOURS * 2
]

Case = tuple[str, Callable[[], Any]]


# -- what is hashed --------------------------------------------------------------------------------------------------


def digest(thing: Any) -> str:
    """The sha256 of numbers, texts, arrays and tensors, however they are nested, independent of insertion order."""
    return hashlib.sha256("\n".join(_lines(thing, "")).encode()).hexdigest()


def _lines(thing: Any, place: str) -> Iterator[str]:
    import numpy as np
    import torch

    if isinstance(thing, torch.Tensor):
        raw = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield f"{place} {thing.dtype} {tuple(thing.shape)} {hashlib.sha256(raw).hexdigest()}"
    elif isinstance(thing, np.ndarray):
        yield f"{place} {thing.dtype} {thing.shape} {hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()}"
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from _lines({f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}, place)
    elif isinstance(thing, dict):
        for key in sorted(thing, key=str):
            yield from _lines(thing[key], f"{place}.{key}")
    elif isinstance(thing, list | tuple):
        for index, part in enumerate(thing):
            yield from _lines(part, f"{place}[{index}]")
    else:
        yield f"{place} {float(thing).hex() if isinstance(thing, float) else thing!r}"


def weights(directory: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint directory, by its name there."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*.safetensors"))
    assert files, f"{directory} holds no weights"
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


# -- what it runs on -------------------------------------------------------------------------------------------------


class Bench:
    """Small models on disk, and what the cases do with them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._count = 0

    def directory(self, kind: str, seed: int = 0) -> Path:
        """A checkpoint with a tokenizer that has a chat template; made when first asked for."""
        import torch
        import transformers

        from small_models import small_config, small_tokenizer

        made = self.place / f"{kind}-{seed}"
        if made.is_dir():
            return made
        torch.manual_seed(seed)
        config = small_config(kind, **MODELS[kind])
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in module.parameters():  # norms and biases as well
                parameter.add_(0.1 * torch.randn(parameter.shape))
        module.save_pretrained(made)
        tokenizer = small_tokenizer(special=("<|endoftext|>", "<|user|>", "<|assistant|>"))
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(made)
        return made

    def load(self, kind: str, seed: int = 0, *, in_memory: bool = False) -> Any:
        """The model as its directory, or as a network that has no directory."""
        import burnish

        loaded = burnish.load(self.directory(kind, seed))
        return burnish.Model(module=loaded.module, tokenizer=loaded.tokenizer) if in_memory else loaded

    def chats(self) -> str:
        """A file of chats."""
        file = self.place / "chats.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
        return str(file)

    def saved(self, model: Any) -> dict[str, Any]:
        self._count += 1
        return weights(Path(model.save(self.place / f"out-{self._count}")))

    def command(self, *arguments: str | Path) -> str:
        """What `burnish ...` printed, which must succeed."""
        command = [sys.executable, "-m", "burnish", *map(str, arguments)]
        done = subprocess.run(command, cwd=self.place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"burnish {' '.join(map(str, arguments))}\n{done.stderr}"
        return done.stdout


# -- the cases -------------------------------------------------------------------------------------------------------


def quantize(bench: Bench) -> Iterator[Case]:
    import burnish

    small = {"group_size": 16, "tokens": 512, "length": 64}

    def case(name: str, kind: str = "llama", *, in_memory: bool = False, **settings: Any) -> Case:
        def run() -> Any:
            model = bench.load(kind, in_memory=in_memory)
            return bench.saved(burnish.Quantize(**small | settings)(model, calibration=[PROSE]))

        return f"quantize {name}, {kind}", run

    for bits in (2, 3, 4, 8):
        yield case(f"rtn {bits} bits", method="rtn", bits=bits, stream=False)
    for kind in MODELS:
        if kind == "gpt2":  # the packed format does not know its matrices
            continue
        yield case("rtn", kind, method="rtn")
        yield case("rtn in memory", kind, method="rtn", in_memory=True)
        if (
            kind == "deepseek_v3"
        ):  # fails where an expert that saw few tokens borrows from a shared one of another width
            continue
        yield case("gptq", kind, method="gptq", bits=3)
        yield case("gptq propagated", kind, method="gptq", bits=3, propagate=True)
        yield case("yaqa a", kind, method="yaqa", sketch="a", bits=3)
        yield case("yaqa b", kind, method="yaqa", sketch="b", bits=3)
    for kind in ("llama", "phi3", "gemma2"):
        yield case("rtn streamed", kind, method="rtn", stream=True)
        yield case("gptq streamed", kind, method="gptq", bits=3, stream=True)
        yield case("gptq streamed, damped", kind, method="gptq", bits=3, stream=True, damping=0.01)
        yield case("gptq propagated, streamed", kind, method="gptq", bits=3, propagate=True, stream=True)
    yield case("yaqa damped, in memory", method="yaqa", bits=2, damping=0.05, in_memory=True)
    for start in ("rtn", "gptq", "yaqa"):
        yield case(f"learned from {start}", method="learned", start=start, iterations=8, damping=0.1, sketch="a")
    yield case("yaqa in passes", method="yaqa", bits=3, memory=60_000)
    yield case("gptq in passes", "mixtral", method="gptq", bits=3, memory=60_000, stream=False)
    yield case("yaqa curve, seed 3", method="yaqa", bits=3, curve=True, seed=3)
    for method in ("rtn", "gptq", "yaqa"):
        yield case(f"{method} asymmetric", method=method, symmetric=False)
        yield case(f"{method} scale search", method=method, scale_search=True, bits=3)
        yield case(f"{method} refitted twice", method=method, refit=2, bits=3)
        yield case(f"{method} a scale per row", method=method, group_size=None)
        yield case(f"{method} fp8-dynamic", method=method, scheme="fp8-dynamic", group_size=None)
        yield case(f"{method} w8a8-int8", method=method, scheme="w8a8-int8", group_size=None)
        mixed = {"re:.*down_proj": {"bits": 8}, "re:.*[qkv]_proj": {"scheme": "fp8-dynamic"}}
        yield case(f"{method} overrides", method=method, bits=3, overrides=mixed, ignore=("re:.*o_proj",))


def slim(bench: Bench) -> Iterator[Case]:
    import burnish

    small = {"tokens": 512, "length": 64, "multiple": 8, "allow_unseen": True}

    def case(name: str, kind: str = "mixtral", *, in_memory: bool = False, **settings: Any) -> Case:
        def run() -> Any:
            inputs = {"teacher": bench.load(kind, 1)} if settings.get("labels") == "teacher" else {}
            model = bench.load(kind, in_memory=in_memory)
            made = burnish.Slim(**small | {"width": 24} | settings)(model, calibration=[PROSE], **inputs)
            return bench.saved(made)

        return f"slim {name}, {kind}", run

    for kind in ("mixtral", "phimoe", "qwen3_moe", "deepseek_v3"):
        yield case("from disk", kind)
        yield case("in memory", kind, in_memory=True)
    for score in ("taylor", "taylor_total", "energy", "act_l2", "wanda", "magnitude", "random"):
        yield case(score, score=score)
    for score in ("reap", "frequency", "magnitude", "random"):
        yield case(f"drop by {score}", method="drop", width=None, num_experts=2, score=score)
    yield case("drop in memory", "deepseek_v3", method="drop", width=None, num_experts=4, in_memory=True)
    yield case("refit", refit="alone")
    yield case("refit behind", refit="behind")
    yield case("split", method="split", width=None, num_experts=4, pieces=2)
    yield case("groups", num_key_value_heads=1)
    yield case("to a target", width=None, target="80%")
    yield case("labels of the text", labels="text")
    yield case("labels of a teacher", labels="teacher", teacher="teacher")


def convert(bench: Bench) -> Iterator[Case]:
    import burnish

    for in_memory in (False, True):
        for noise in (0.0, 0.1):

            def run(in_memory: bool = in_memory, noise: float = noise) -> Any:
                stage = burnish.Upcycle(num_experts=4, noise=noise)
                return bench.saved(stage(bench.load("llama", in_memory=in_memory)))

            yield f"upcycle noise {noise:g}, {'in memory' if in_memory else 'from disk'}", run


def train(bench: Bench) -> Iterator[Case]:
    import burnish

    small = {"context": 32, "batch": 4, "steps": 6, "lr": 0.01}
    texts = PROSE.split("\n\n")[:12]

    def case(name: str, kind: str = "llama", *, data: Any = None, **settings: Any) -> Case:
        def run() -> Any:
            stage = burnish.Train(**small | settings)
            return bench.saved(stage(bench.load(kind), data=data or texts))

        return f"train {name}, {kind}", run

    for optimizer in ("normuon", "muon", "cosmos", "soap", "adamw"):
        options = {"rank": 8} if optimizer == "cosmos" else {}
        yield case(optimizer, optimizer=optimizer, optimizer_options=options)
        yield case(optimizer, "mixtral", optimizer=optimizer, optimizer_options=options, balance=0.1)
    yield case("conv1d matrices", "gpt2")
    yield case("split fused", "phi3", split_fused=True)
    yield case("micro-batches", micro_batch=2, schedule="wsd", warmup=0.3, final_lr=0.1)
    yield case("chats", data=bench.chats(), context=64)
    yield case("long texts cut", overlong="truncate", schedule="linear")
    yield case("bfloat16", precision="bfloat16", optimizer="adamw", schedule="constant")
    yield case("held out, every two steps", holdout=0.2, eval_every=2, seed=5)
    for start in ("default", "gaussian", "pissa", "olora", "corda"):
        yield case(f"LoRA {start}", lora_rank=2, lora_init=start, lora_matrix=start == "gaussian")


def distill(bench: Bench) -> Iterator[Case]:
    import burnish

    small = {"context": 32, "batch": 4, "steps": 5, "lr": 0.01, "optimizer": "adamw", "teacher": "teacher"}
    texts = PROSE.split("\n\n")[:12]

    def case(name: str, kind: str = "llama", *, data: Any = None, **settings: Any) -> Case:
        def run() -> Any:
            stage = burnish.Distill(**small | settings)
            return bench.saved(stage(bench.load(kind), data=data or texts, teacher=bench.load(kind, 1)))

        return f"distill {name}, {kind}", run

    for divergence in ("forward", "reverse", "jsd", "top_k"):
        yield case(divergence, divergence=divergence, temperature=2.0)
    for weighting in ("sequence", "certain", "uncertain", "focus"):
        yield case(f"weighted by {weighting}", weighting=weighting)
    yield case("weighted by turn", weighting="turn", data=bench.chats(), context=64)
    yield case("hidden states", hidden=0.5)
    yield case("routers", "mixtral", router=0.5)
    yield case("offline", divergence="top_k", top_k=4, offline=True)
    yield case("offline, normuon", "mixtral", divergence="top_k", offline=True, optimizer="normuon")


def align(bench: Bench) -> Iterator[Case]:
    import burnish

    small = {"data": "pairs", "max_steps": 4, "batch": 4, "micro_batch": 2, "lr": 1e-3, "holdout": 0.2}

    def case(loss: str, name: str = "", **settings: Any) -> Case:
        def run() -> Any:
            inputs = {"reference": bench.load("llama", 1)} if "reference" in settings else {}
            stage = burnish.Align(**small | {"loss": loss, "lam": 0.5} | settings)
            return bench.saved(stage(bench.load("llama"), data=PAIRS, **inputs))

        return f"align {loss}{name}", run

    for end in ("dpo", "reward"):
        for start in ("", "aps-", "aps-quadratic-", "r3m-", "aps-r3m-"):
            yield case(start + end)
    yield case("aps-dpo", ", LoRA", lora_rank=2)
    yield case("dpo", ", smoothed, normuon", label_smoothing=0.1, optimizer="normuon")
    yield case("r3m-dpo", ", another reference", reference="reference")


def audit(bench: Bench) -> Iterator[Case]:
    for rank_by in ("delta", "tau"):

        def run(rank_by: str = rank_by) -> Any:
            file = bench.place / "pairs.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
            out = bench.place / f"audit-{rank_by}"
            _in_process("audit", file, "--model", bench.directory("llama"), "-o", out, "--rank-by", rank_by)
            return [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]

        yield f"audit by {rank_by}", run


def evaluate(bench: Bench) -> Iterator[Case]:
    import burnish

    kept: dict[str, Any] = {}
    names = ("perplexity", "bits_per_byte", "kl_divergence", "top1_agreement")

    def measured(kind: str) -> Any:
        if kind not in kept:
            stage = burnish.Evaluate(num_windows=6, context=64, speed=False)
            kept[kind] = stage(bench.load(kind), reference=bench.load(kind, 1), text=[PROSE])
        return kept[kind]

    for kind in ("llama", "mixtral", "gpt2"):
        yield (
            f"evaluate values, {kind}",
            lambda kind=kind: {name: measured(kind).metrics[name]["value"] for name in names},
        )
        yield f"evaluate sequences, {kind}", lambda kind=kind: dict(measured(kind).sequences)
        yield (
            f"evaluate intervals, {kind}",
            lambda kind=kind: {name: [measured(kind).metrics[name][end] for end in ("low", "high")] for name in names},
        )


def events(bench: Bench) -> Iterator[Case]:
    from burnish.events import EventDataset, EventForecaster

    sizes = ["--hidden-size", "16", "--num-layers", "1", "--epochs", "2", "--batch-size", "8"]

    def table() -> Path:
        """Events of two types on three vertices and in the plane, with a memory of the last one."""
        file = bench.place / "events.csv"
        if not file.is_file():
            draw, rows = random.Random(0), ["sequence_id,time,mark,lon,lat,node"]
            for sequence in range(24):
                time_, x, y = 0.0, 10.0, -5.0
                for _ in range(16):
                    time_ += draw.expovariate(1.0)
                    x, y = x + draw.gauss(0, 0.3), y + draw.gauss(0, 0.3)
                    rows.append(f"{sequence},{time_!r},{draw.randrange(2)},{x!r},{y!r},{draw.randrange(3)}")
            file.write_text("\n".join(rows) + "\n")
            (bench.place / "edges.csv").write_text("from,to\n0,1\n1,2\n")
        return file

    def case(model: str, *options: str) -> Iterator[Case]:
        name = " ".join([model, *options[1:2]])
        out = bench.place / name.replace(" ", "-")
        places = ["--x", "lon", "--y", "lat"] if model == "smash" else []
        graph = ["--vertex", "node", "--edges", bench.place / "edges.csv"] if model == "structured-thp" else []

        def fit() -> Any:
            _in_process("events", "fit", table(), "-o", out, "--model", model, *options, *sizes, *places, *graph)
            return weights(out)

        def forecast() -> Any:
            _in_process("events", "forecast", out, table(), "-o", f"{out}.csv", "--elapsed", "0.5")
            return Path(f"{out}.csv").read_text()

        def score() -> Any:
            location = ("lon", "lat") if places else None
            dataset = EventDataset.from_csv(table(), location=location, vertex="node" if graph else None)
            scored = EventForecaster.from_pretrained(out).score(dataset, bootstrap=0)
            return [scored.events, scored.scores, scored.baselines]

        yield f"events {name}, fitted", fit
        yield f"events {name}, forecasts", forecast
        yield f"events {name}, scores", score

    yield from case("smurf-thp")
    yield from case("smurf-thp", "--objective", "score")
    yield from case("smurf-thp", "--objective", "score+mass")
    yield from case("thp")
    yield from case("structured-thp")
    yield from case("smash")
    yield from case("lognormal-mixture")
    yield from case("exponential-hawkes")

    def simulated() -> Any:
        _in_process("events", "simulate", "-o", bench.place / "s.csv", "--num-sequences", "5", "--num-events", "20")
        return (bench.place / "s.csv").read_text()

    yield "events simulated", simulated


def recipe(bench: Bench) -> Iterator[Case]:
    """Nodes in processes of their own: cut, distil, cut, distil, then round; and what the ledger says of them."""
    import burnish

    rounds = "rounds" if "rounds" in burnish.Slim.model_fields else "stages"
    run = bench.place / "run"
    text = f"""
name: fingerprint
start: {bench.directory("mixtral")}
nodes:
  - {{name: narrow, stage: slim, width: 48, multiple: 8, tokens: 512, length: 64, {rounds}: 2, data: prose.txt,
     calibration: prose.txt, budgets: [512], allow_unseen: true,
     recovery: {{optimizer: adamw, lr: 0.001, batch: 4, context: 32}}}}
  - {{name: rounded, stage: quantize, method: yaqa, bits: 3, group_size: 16, tokens: 512, length: 64,
     calibration: prose.txt, curve: true}}
"""

    def checkpoints() -> Any:
        (bench.place / "prose.txt").write_text(PROSE)
        (bench.place / "fingerprint.yaml").write_text(text)
        bench.command("run", "fingerprint.yaml", "-o", run)
        places = sorted(file.parent for file in run.rglob("burnish.json"))
        return {place.name: weights(place) for place in places}

    def tables() -> Any:
        rows = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
        return [[row["node"], row["name"], _untimed(row["rows"])] for row in rows if row["row"] == "table"]

    yield "recipe, checkpoints", checkpoints
    yield "recipe, tables", tables


def _untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not any(word in k for word in ("second", "memory"))} for row in rows]


ROOMS = (quantize, slim, convert, train, distill, align, audit, evaluate, events, recipe)


# -- writing and comparing -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What bit-equality is promised for."""
    import torch

    known = experiment.versions()
    return {
        "machine": f"{experiment.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: known[name] for name in ("python", "torch", "transformers", "numpy")},
    }


def measure(pattern: str) -> dict[str, str]:
    """{case: sha256} of the cases that match, each said with its seconds as it is done."""
    import torch

    import burnish

    print(f"burnish of {burnish.__path__[0]}", file=sys.stderr)
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as place:
        bench = Bench(Path(place))
        for room in ROOMS:
            for name, run in room(bench):
                if not fnmatch.fnmatch(name, pattern):
                    continue
                assert name not in found, f"two cases are called {name!r}"
                started = time.perf_counter()
                found[name] = digest(run())
                print(f"{time.perf_counter() - started:6.2f} s  {name}", file=sys.stderr, flush=True)
    return found


def compare(found: dict[str, str], kept: dict[str, str], pattern: str) -> list[str]:
    """A line for each case that differs, is new, or is gone."""
    lines = [f"differs: {name}" for name in found if name in kept and kept[name] != found[name]]
    lines += [f"new: {name}" for name in found if name not in kept]
    return lines + [f"gone: {name}" for name in kept if fnmatch.fnmatch(name, pattern) and name not in found]


def merged(found: dict[str, str], kept: dict[str, str], pattern: str) -> dict[str, str]:
    """The cases just measured among the kept ones that the pattern does not name, in the order that they had."""
    others = {name: value for name, value in kept.items() if name in found or not fnmatch.fnmatch(name, pattern)}
    return others | found


def _in_process(*arguments: str | Path) -> None:
    """A command that starts no process of its own, without the seconds that a new interpreter takes."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from burnish.cli import main

    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code, f"burnish {' '.join(map(str, arguments))}\n{said.getvalue()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", help="a pattern of case names: 'train *'")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--file", type=Path, default=RESULTS, help="to write, or to compare with")
    options = parser.parse_args()
    here = machine()
    kept = json.loads(options.file.read_text(encoding="utf-8")) if options.file.is_file() else {}
    part = options.check or (kept and options.only != "*")
    if part and any(here[key] != kept.get(key) for key in here):
        print(f"{options.file} was written on\n  {kept.get('machine')}, {kept.get('versions')}\nthis is")
        print(f"  {here['machine']}, {here['versions']}\nwrite one here, at the commit to compare with, with --file")
        return 2
    found = measure(options.only)
    if options.check:
        lines = compare(found, kept["cases"], options.only)
        print("\n".join([*lines, f"{len(found)} cases, {len(lines)} differences"]))
        return 1 if lines else 0
    cases = merged(found, kept.get("cases", {}), options.only)
    record = {"question": __doc__.partition("\n")[0], "date": datetime.date.today().isoformat()} | here
    options.file.write_text(json.dumps(record | {"cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} cases measured, {len(cases)} in {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
