"""On a GPU: which share of a training step is NorMuon's, how much of the device is used, and by which attention?

    python benchmarks/train_gpu.py --work DIR [--minutes 9]
    torchrun --nproc-per-node 2 benchmarks/train_gpu.py --work DIR --long 16384 32768

One run of ten minutes on one GPU, in pieces that are kept as they are made. A Llama of 0.4 B parameters from random
weights, bfloat16 products, float32 weights and state, rows of one document each and rows of many.

* step: NorMuon, Muon and AdamW at 16 rows of 2,048 tokens, in micro-batches of 4; time of the optimizer's step and of
  the whole step, their quotient, tokens a second and MFU. The time of an optimizer does not depend on the batch; its
  share at another number of tokens follows, and is given for half a million of them.
* attention: sdpa, flex and flash where each can run, at 8,192 tokens a row, one document and packed ones.
* long, under torchrun with several GPUs: rows of 16,384 and 32,768 tokens that all processes share.

Seconds are those of the device's clock between two synchronisations, medians of `ROUNDS` steps after `WARM` that do not
count. With --smoke the same runs on a CPU at a tiny size, which claims nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment

VOCABULARY = 32_000 if not experiment.SMOKE else 300
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 1024 if not experiment.SMOKE else 32,
    "num_hidden_layers": 24 if not experiment.SMOKE else 2,
    "num_attention_heads": 16 if not experiment.SMOKE else 2,
    "num_key_value_heads": 8 if not experiment.SMOKE else 1,
    "intermediate_size": 4096 if not experiment.SMOKE else 64,
    "max_position_embeddings": 65_536,
    "tie_word_embeddings": True,
}
ROWS, MICRO, CONTEXT, AT_ATTENTION = (16, 4, 2048, 8192) if not experiment.SMOKE else (4, 2, 32, 64)
WARM, ROUNDS = (3, 10) if not experiment.SMOKE else (1, 2)
TOKENS_OF_A_LARGE_STEP = 1 << 19
OPTIMIZERS = ("normuon", "muon", "adamw")
ATTENTION = ("sdpa", "flex", "flash")


def rows_of(count: int, length: int, documents: int) -> Any:
    """Rows of random tokens, each cut into so many documents."""
    import numpy as np

    from burnish.data.packing import Document, pack

    random = np.random.default_rng(0)
    size = length // documents
    ids = random.integers(1, VOCABULARY, (count * documents, size + 1))
    return pack([Document(one, np.ones(size + 1, dtype=bool)) for one in ids], length)


class Timed:
    """Seconds of calls by the device's clock."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []

    def wait(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def __call__(self, function: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            self.wait()
            started = time.perf_counter()
            found = function(*args, **options)
            self.wait()
            self.seconds.append(time.perf_counter() - started)
            return found

        return timed


def train(
    algorithm: str, attention: str, rows: int, micro: int, length: int, documents: int, shared: int = 1
) -> dict[str, Any]:
    """Some steps: seconds of each and of its optimizer, memory, tokens a second and MFU of one device."""
    import torch
    import transformers

    from burnish.arch import head_of
    from burnish.arch.attention import use
    from burnish.core.checkpoint import pick_device
    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.optim import optimizer_class
    from burnish.train import Loop, fit
    from burnish.train.attention import chosen
    from burnish.train.distributed import world
    from burnish.train.losses import HeadLoss
    from burnish.train.speed import speed_of

    device = pick_device("auto")
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    name = chosen(attention, device, precision)  # pyright: ignore[reportArgumentType]
    with world(device, shared) as processes, TemporaryDirectory() as work:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**CONFIG)
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
        use(model, name)
        head = head_of(model)
        assert head is not None, "a Llama's head is known"
        if processes.sequence is not None:
            processes.sequence.attend(model, name)
        if length > CONTEXT:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        speed = speed_of(model, length // documents, device=device, precision=precision)
        trained = processes.shard(model, precision)
        optimizer: Any = optimizer_class(algorithm).for_model(model, lr=1e-3)
        timed, whole = Timed(device), Timed(device)
        optimizer.step = timed(optimizer.step)
        zero, ends = optimizer.zero_grad, []

        def marked(*args: Any, **options: Any) -> None:  # the loop begins every step with it
            whole.wait()
            ends.append(time.perf_counter())
            zero(*args, **options)

        optimizer.zero_grad = marked
        ctx = Context({}, Path(work), device, seeded_generator(0), Progress(enabled=False), Ledger(None))
        loop = Loop(WARM + ROUNDS + 1, rows, micro, precision=precision, save_every=0)
        made = fit(trained, rows_of(rows * 2, length, documents), HeadLoss(head), optimizer, ctx, loop, world=processes)
        steps = [after - before for before, after in zip(ends[WARM:], ends[WARM + 1 :], strict=False)]
        tokens = rows * length / statistics.median(steps) / processes.size
        memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    return {
        "step_seconds": steps,
        "optimizer_seconds": timed.seconds[WARM : WARM + len(steps)],
        "tokens_per_step": rows * length,
        "tokens_per_second_and_device": tokens,
        **speed.row(tokens),
        "peak_bytes": memory,
        "processes": processes.size,
        "loss": made.rows[-1]["loss"],
    }


# -- the experiment ----------------------------------------------------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    from burnish.core.errors import SettingsError

    part, first, second, *_ = name.split(", ")
    if part == "step":
        return train(first, "auto", ROWS, MICRO, CONTEXT, 1)
    if part == "long":
        return train("normuon", "auto", 1, 1, int(first), int(second), int(os.environ["WORLD_SIZE"]))
    try:
        return train("normuon", first, 2, 1, AT_ATTENTION, int(second))
    except SettingsError as error:  # flash without flash-attn, flex on a CPU
        return {"refused": str(error)}


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.keeps()
    parser.add_argument("--long", nargs="*", type=int, default=[], help="tokens of rows that all processes share")
    arguments = parser.read()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    main_process = os.environ.get("RANK", "0") == "0"
    names = [f"step, {algorithm}, 1" for algorithm in OPTIMIZERS]
    names += [f"attention, {attention}, {documents}" for documents in (1, 8) for attention in ATTENTION]
    if size > 1:
        names = [f"long, {length}, {documents}, {size} processes" for length in arguments.long for documents in (1, 16)]
    kept = experiment.Kept(arguments.work if main_process else arguments.work / os.environ["RANK"])
    import torch

    from burnish.core.checkpoint import pick_device
    from burnish.train.distributed import world

    with world(pick_device("auto")):  # one group of processes for all runs
        kept.run(lambda: names, measure, arguments.minutes)
    if not main_process:
        return
    found = {file.stem: kept.read(file.stem) for file in sorted(kept.directory.glob("*.json"))}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    setting = {"config": CONFIG, "rows": ROWS, "micro_batch": MICRO, "context": CONTEXT, "attention": AT_ATTENTION}
    experiment.record(arguments.out, __doc__, {"device": device, "setting": setting, "runs": found}, note=device)


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    lines: dict[str, list[list[str]]] = {"step": [], "attention": [], "long": []}
    for name, run in results["runs"].items():
        part, *rest = name.split("-")
        if "refused" in run:
            lines[part].append([" ".join(rest), run["refused"], *[""] * 5])
            continue
        step, own = (statistics.median(run[key]) for key in ("step_seconds", "optimizer_seconds"))
        large = own / (own + (step - own) * TOKENS_OF_A_LARGE_STEP / run["tokens_per_step"])
        mfu = f"{run['mfu']:.1%}" if "mfu" in run else "unknown"
        memory = f"{run['peak_bytes'] / 1e9:.1f}" if run["peak_bytes"] else ""
        cells = [
            " ".join(rest),
            f"{1e3 * step:.1f}",
            f"{1e3 * own:.1f}",
            f"{own / step:.1%}",
            f"{large:.1%}",
            mfu,
            memory,
        ]
        lines[part].append(cells)
    header = "run | step, ms | optimizer, ms | its share | its share at 524,288 tokens a step | MFU | peak memory, GB"
    return {part: experiment.table(header, found) for part, found in lines.items() if found}


if __name__ == "__main__":
    main()
