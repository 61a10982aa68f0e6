"""Does the training loop cost anything beside a bare PyTorch loop?

    python benchmarks/train_loop.py [--rounds 12] [--steps 10]

A Llama of 0.86 M parameters, AdamW, 16 rows of 128 tokens per step, float32, one thread. The bare loop draws a batch,
runs forward, loss, backward, clips and steps; ours packs, weighs tokens, logs and reports as it always does (no states
are saved). They take turns, the first of a round being the second of the next, and CPU time is counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "train_loop.json"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 344,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "vocab_size": 1024,
}
BATCH, CONTEXT, ROWS = 16, 128, 400


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    import numpy as np
    import torch
    import transformers

    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.data.packing import Document, pack
    from burnish.train import Loop, causal_lm_loss, fit

    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(0, 1024, ROWS * CONTEXT + 1)
    rows = pack([Document(ids, np.ones(len(ids), dtype=bool))], CONTEXT)

    def model() -> Any:
        torch.manual_seed(0)
        content = dict(CONFIG)
        config = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
        return transformers.AutoModelForCausalLM.from_config(config).train()

    def bare(steps: int) -> None:
        module = model()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (rows.input_ids, rows.targets))
        for _ in range(steps):
            chosen = torch.randint(0, len(rows), (BATCH,))
            logits = module(input_ids=inputs[chosen], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[chosen].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    def ours(steps: int) -> None:
        module = model()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        with TemporaryDirectory() as work:
            ctx = Context({}, Path(work), "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
            fit(module, rows, causal_lm_loss, optimizer, ctx, Loop(steps=steps, batch_size=BATCH, save_every=0))

    loops = {"bare loop": bare, "burnish.train.fit": ours}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for run in loops.values():
        run(2)
    for number in range(arguments.rounds):
        for name, run in list(loops.items())[:: -1 if number % 2 else 1]:
            started = time.process_time()
            run(arguments.steps)
            seconds[name].append(time.process_time() - started)
    results = {
        "question": (__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other work, one thread, float32",
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
        | {"transformers": transformers.__version__},
        "slices": {"tuning": [], "reporting": []},
        "note": "CPU seconds, building the model included on both sides",
        "setting": {"config": CONFIG, "steps": arguments.steps, "batch": BATCH, "context": CONTEXT},
        "seconds": seconds,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    tokens = results["setting"]["steps"] * results["setting"]["batch"] * results["setting"]["context"]
    seconds = results["seconds"]
    rounds = len(seconds["bare loop"])
    lines = [
        f"| loop | tokens per CPU second, median of {rounds} rounds | against the bare loop (95 % interval) |",
        "| --- | --- | --- |",
    ]
    for name, mine in seconds.items():
        ratios = [b / a for a, b in zip(mine, seconds["bare loop"], strict=True)]
        half = 1.96 * statistics.stdev(ratios) / rounds**0.5
        ratio = statistics.mean(ratios)
        against = f"{ratio:.3f} ({ratio - half:.3f} to {ratio + half:.3f})" if half else "1"
        lines.append(f"| {name} | {tokens / statistics.median(mine):,.0f} | {against} |")
    return {"throughput": "\n".join(lines)}


if __name__ == "__main__":
    main()
