"""What do head and loss add to the memory of a training step, with all logits and with a stretch of them at a time?

    python benchmarks/loss_memory.py --model models/smollm2 --work DIR [--context 4096] [--minutes 9]

One step of SmolLM2-135M (vocabulary 49,152) on one row, forward and backward, float32, one thread: of the body alone
(the sum of its last hidden states), with the plain loss, and with the loss that never holds all logits. Each is a
process of its own, whose largest resident memory and CPU seconds count, in turns. Memory before the step, weights and
libraries, is that of all three; what a loss adds is its peak minus that of the body alone. The same of distillation
(forward KL from a teacher of the same size, here the model itself), beside the bodies of student and teacher.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import experiment

SIDES = {
    "body": "body alone",
    "plain": "all logits",
    "stretches": "a stretch of logits at a time",
    "distill body": "student's and teacher's body alone",
    "distill plain": "distillation, all logits",
    "distill stretches": "distillation, a stretch of logits at a time",
}


def step(side: str, directory: Path, context: int) -> dict[str, float]:
    """Peak bytes, CPU seconds and loss of one step in this process."""
    import torch

    import burnish
    from burnish.arch import AllLogits, head_of
    from burnish.distill.losses import Distillation
    from burnish.train.losses import HeadLoss, causal_lm_loss

    torch.set_num_threads(1)
    module = burnish.load(directory).module.float().train()
    head = head_of(module)
    assert head is not None, "the model's head is one matrix"
    ids = torch.randint(0, 49_000, (1, context + 1), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    teacher: Any = burnish.load(directory).module.float().eval() if "distill" in side else None
    losses = {"plain": causal_lm_loss, "stretches": HeadLoss(head)}
    if teacher is not None:
        losses["distill plain"] = Distillation(teacher)
        losses["distill stretches"] = Distillation(teacher, head=head, teacher_head=head_of(teacher) or AllLogits())
    started = time.process_time()
    if side in losses:
        loss = losses[side](module, batch).total
    else:
        inputs = {"input_ids": batch["input_ids"], "use_cache": False}
        loss = module.base_model(**inputs).last_hidden_state.sum()
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.base_model(**inputs).last_hidden_state.sum()
            loss = loss + taught
    loss.backward()
    seconds = time.process_time() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak, "seconds": seconds, "loss": float(loss.detach()) / context}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", type=Path, default=Path("models/smollm2"))
    command.add_argument("--context", type=int, default=4096)
    command.add_argument("--rounds", type=int, default=2)
    command.add_argument("--side", choices=list(SIDES), help="measure this one in this process and print it")
    command.keeps()
    arguments = command.read()
    context, rounds = (32, 1) if arguments.smoke else (arguments.context, arguments.rounds)
    if arguments.side:
        print(json.dumps(step(arguments.side, arguments.model, context)))
        return
    turns = [(number, side) for number in range(rounds) for side in list(SIDES)[:: -1 if number % 2 else 1]]
    names = [f"{context}, {number}, {side}" for number, side in turns]

    def measure(name: str) -> dict[str, float]:
        options = ["--model", arguments.model, "--context", context, "--side", name.split(", ")[2]]
        command = [sys.executable, __file__, *map(str, options), "--work", str(arguments.work)]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(made.stdout.splitlines()[-1])

    kept = experiment.Kept(arguments.work)
    kept.run(lambda: names, measure, arguments.minutes)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for (_, side), name in zip(turns, names, strict=True):
        if kept.has(name):
            found[side].append({key: kept.read(name)[key] for key in ("peak_bytes", "seconds", "loss")})
    content = {"context": context, "vocabulary": 49_152, "sides": found}
    experiment.record(arguments.out, __doc__, content, note="one thread, float32; CPU seconds, shared with other work")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    sides = results["sides"]

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in sides[side])

    rows = []
    for side, title in ((side, title) for side, title in SIDES.items() if sides.get(side)):
        body = "distill body" if side.startswith("distill") else "body"
        added = "" if side == body else f"{(median(side, 'peak_bytes') - median(body, 'peak_bytes')) / 1e9:.2f}"
        loss = "" if side == body else f"{median(side, 'loss'):.6f}"
        rounds = ", ".join(f"{run['peak_bytes'] / 1e9:.2f}" for run in sides[side])
        rows.append([title, rounds, added, f"{median(side, 'seconds'):.0f}", loss])
    step = f"one step of SmolLM2-135M, {results['context']:,} tokens"
    header = f"{step} | peak GB by round | head and loss add GB, median | CPU s, median | loss"
    return {"peak": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
