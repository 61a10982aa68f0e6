"""What does an evaluation cost beside the forward passes that it cannot do without?

    python benchmarks/evaluate_overhead.py --model models/smollm2 --work WORK

How much longer does `burnish.Evaluate` take than a bare loop over the same windows? The bare loop is
`module(input_ids=window)` and nothing else; the loop that most people write adds transformers' own loss. With a
reference, the bare loop is two such passes. All are run on one sample of the text after another, two windows each, in
an order that turns from sample to sample, in float32, and timed as CPU time of the process, because wall time on a
shared machine does not repeat. The quoted overhead is the ratio of the sums, paired over samples. Every sample is kept
in WORK when it is done, and a run that was stopped goes on behind the last one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment

WINDOWS = 2
"""Windows per sample: what an evaluation does once, it does here once per sample and by default once per 20 windows."""
PAIRS = [("evaluate", "bare"), ("evaluate", "with_loss"), ("evaluate_with_reference", "two_bare")]
LABELS = {
    "bare": "forward pass alone",
    "with_loss": "forward pass with transformers' loss",
    "two_bare": "two forward passes",
    "evaluate": "evaluation",
    "evaluate_with_reference": "evaluation against a reference",
}


def arms(model: Any) -> tuple[dict[str, Any], int]:
    """What is timed, as functions of some windows, and the number of parameters."""
    import torch

    from burnish.data import Slice
    from burnish.evaluate.measure import network
    from burnish.evaluate.quality import measure_quality

    module = network(model, dtype=torch.float32, device="cpu")
    # The reference is a second network with the same weights, so that it must run: what it computes costs no less.
    reference = network(model, dtype=torch.float32, device="cpu")

    @torch.inference_mode()
    def bare(part: Slice, *modules: Any, labels: bool = False) -> None:
        for window in part.tokens.split(1):
            for one in modules or (module,):
                one(input_ids=window, use_cache=False, **({"labels": window} if labels else {}))

    made = {
        "bare": bare,
        "with_loss": lambda part: bare(part, labels=True),
        "evaluate": lambda part: measure_quality(module, part),
        "two_bare": lambda part: bare(part, module, reference),
        "evaluate_with_reference": lambda part: measure_quality(module, part, reference=reference),
    }
    return made, sum(p.numel() for p in module.parameters())


def main() -> None:
    import torch

    import burnish
    from burnish.data import Slice, cut, data_hash, read_texts

    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", type=Path, default=Path("models/smollm2"))
    command.add_argument("--work", type=Path, default=Path("runs/evaluate_overhead"))
    command.add_argument("--num-samples", type=int, default=8)
    command.add_argument("--context", type=int, default=512)
    arguments = command.read()
    num, context = (2, 16) if arguments.smoke else (arguments.num_samples, arguments.context)
    model = burnish.load(arguments.model)
    timed, parameters = arms(model)
    text = cut(model.tokenizer, read_texts("wikitext2-valid"), context, num_windows=WINDOWS * num, max_chars=400_000)
    timed["bare"](Slice(text.tokens[:1, :32], text.num_bytes[:1]))  # warms up

    def sample(name: str) -> dict[str, float]:
        index, names, row = int(name.removeprefix("sample ")), list(timed), {}
        rows = slice(WINDOWS * index, WINDOWS * (index + 1))
        part = Slice(text.tokens[rows], text.num_bytes[rows])
        for arm in names[index % len(names) :] + names[: index % len(names)]:
            started = time.process_time()
            timed[arm](part)
            row[arm] = time.process_time() - started
        return row

    kept, samples = experiment.Kept(arguments.work), [f"sample {index}" for index in range(num)]
    kept.run(lambda: samples, sample)
    done = [kept.read(name) for name in samples]
    settings = {"model": model.name, "parameters": parameters, "dtype": "float32", "threads": torch.get_num_threads()}
    settings |= {"context": context, "num_samples": num, "windows_per_sample": WINDOWS}
    content = {"settings": settings, "slices": {"tuning": [], "reporting": [data_hash("wikitext2-valid")]}}
    content["seconds_per_sample"] = {name: [row[name] for row in done] for name in timed}
    experiment.record(arguments.out, __doc__, content, note="nothing else running; CPU time of the process")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The table that docs/methods/evaluation.md shows."""
    settings, rows = results["settings"], []
    for arm, baseline in PAIRS:
        ours, theirs = (results["seconds_per_sample"][name] for name in (arm, baseline))
        found = experiment.ratio(ours, theirs).map(lambda value: value - 1)
        means = [f"{sum(values) / len(values):.2f}" for values in (ours, theirs)]
        bounds = f"{found.low:+.1%} to {found.high:+.1%}"
        rows.append([LABELS[arm], LABELS[baseline], *means, f"{found.value:+.1%}", bounds])
    num, per_sample, context = (settings[key] for key in ("num_samples", "windows_per_sample", "context"))
    title = f"{num} samples of {per_sample} windows of {context:,} tokens"
    header = f"{title} | baseline | CPU s per sample | baseline's | overhead | 95 % interval"
    return {"overhead": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
