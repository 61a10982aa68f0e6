"""Does the training loop cost anything beside a bare PyTorch loop?

    python benchmarks/train_loop.py [--rounds 12] [--steps 10]

A Llama of 0.86 M parameters, AdamW, 16 rows of 128 tokens per step, float32, one thread. The bare loop draws a batch,
runs forward, loss, backward, clips and steps; ours packs, weighs tokens, logs and reports as it always does (no states
are saved). They take turns, the first of a round being the second of the next, and CPU time is counted.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment
from optimizers import CONFIG

BATCH, CONTEXT, ROWS = 16, 128, 400


def loops(steps: int) -> dict[str, Any]:
    """{name: a function that trains for so many steps}."""
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
        config = transformers.AutoConfig.for_model(**CONFIG, vocab_size=1024)
        return transformers.AutoModelForCausalLM.from_config(config).train()

    def bare() -> None:
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

    def ours() -> None:
        module = model()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        with TemporaryDirectory() as work:
            ctx = Context({}, Path(work), "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
            fit(module, rows, causal_lm_loss, optimizer, ctx, Loop(steps=steps, batch_size=BATCH, save_every=0))

    return {"bare loop": bare, "burnish.train.fit": ours}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--rounds", type=int, default=12)
    command.add_argument("--steps", type=int, default=10)
    arguments = command.read()
    steps, rounds = (1, 2) if arguments.smoke else (arguments.steps, arguments.rounds)
    setting = {"config": CONFIG | {"vocab_size": 1024}, "steps": steps, "batch": BATCH, "context": CONTEXT}
    content = {"setting": setting, "seconds": experiment.turns(loops(steps), rounds)}
    note = "one thread, float32; CPU seconds, building the model included on both sides; shared with other work"
    experiment.record(arguments.out, __doc__, content, note=note)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    tokens = results["setting"]["steps"] * results["setting"]["batch"] * results["setting"]["context"]
    bare = results["seconds"]["bare loop"]
    rows = []
    for name, mine in results["seconds"].items():
        against = "1" if mine == bare else experiment.cell(experiment.ratio(bare, mine))
        rows.append([name, f"{tokens / statistics.median(mine):,.0f}", against])
    header = f"loop | tokens per CPU second, median of {len(bare)} rounds | against the bare loop (95 %)"
    return {"throughput": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
