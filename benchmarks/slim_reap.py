"""REAP scores of experts against llm-compressor's, on the same model and the same tokens.

    python benchmarks/slim_reap.py --model MIXTURE --peer PYTHON_WITH_LLMCOMPRESSOR

Question: do the scores agree, and are the same experts kept? Both sides see the same windows of the WikiText-2
validation text, in float32, and drop half of the experts. llm-compressor prunes a layer before it scores the next:
scores are compared with that turned off, kept experts both ways. There is nothing to tune.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "slim_reap.json"
TOKENS, LENGTH = 4096, 128


def main() -> None:
    import torch

    import burnish
    from burnish.core.progress import Progress
    from burnish.core.stage import seeded_generator
    from burnish.data import calibration, data_hash
    from burnish.slim.collect import collect
    from burnish.slim.maths.experts import reap
    from burnish.slim.maths.keep import keep_highest
    from burnish.slim.maths.scores import SCORES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint of a mixture of experts, small")
    parser.add_argument("--peer", required=True, help="the Python of an environment with llm-compressor")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = burnish.load(args.model, dtype=torch.float32)
    windows = calibration(
        model.tokenizer, "wikitext2-valid", length=LENGTH, max_tokens=TOKENS, generator=seeded_generator(0)
    )
    started = time.process_time()
    sums = collect(
        model.module, windows, SCORES["energy"], generator=seeded_generator(0), progress=Progress(enabled=False)
    )
    ours = torch.stack([reap(sums.reap[layer], sums.counts[layer]) for layer in sorted(sums.reap)])
    seconds = time.process_time() - started
    kept = keep_highest(ours, ours.shape[1] // 2)
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "windows.json", Path(scratch) / "reap.json"
        file.write_text(json.dumps(windows.tolist()))
        script = HERE / "peers" / "llmcompressor_reap.py"
        subprocess.run([args.peer, str(script), args.model, str(file), str(out), "0.5"], check=True, cwd=scratch)
        peer = json.loads(out.read_text())
    theirs = torch.tensor(peer["without pruning"]["saliency"], dtype=torch.float64)
    difference = ((ours - theirs).abs() / theirs).max().item()
    import datetime
    import platform

    import transformers

    content = {
        "machine": f"{platform.machine()}, one thread, shared with other work; CPU times only",
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "llmcompressor": "0.14.0.1"},
        "slices": {"tuning": [], "reporting": [data_hash("wikitext2-valid")]},
        "model": {
            "model_type": model.config.model_type,
            "layers": len(ours),
            "experts": ours.shape[1],
            "parameters": model.plan().num_parameters,
        },
        "tokens": windows.numel(),
        "largest_relative_difference": difference,
        "same_experts_kept": {
            run: [sorted(a) == sorted(b) for a, b in zip(kept.tolist(), peer[run]["kept"], strict=True)]
            for run in ("without pruning", "as it is")
        },
        "scores": {
            "burnish": ours.tolist(),
            "llm-compressor, without pruning": theirs.tolist(),
            "llm-compressor, as it is": peer["as it is"]["saliency"],
        },
        "cpu_seconds": {"burnish": round(seconds, 1), "llm-compressor": peer["cpu_seconds"]},
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(tables(content)["reap"])


def tables(results: dict) -> dict[str, str]:
    """Markdown tables for the documentation."""
    model, seconds = results["model"], results["cpu_seconds"]
    same = {run: sum(layers) for run, layers in results["same_experts_kept"].items()}
    name = (
        f"{model['model_type']}, {model['layers']} layers of {model['experts']} experts, {results['tokens']:,} tokens"
    )
    lines = [
        f"| {name} | |",
        "| --- | ---: |",
        f"| largest relative difference of a score | {results['largest_relative_difference']:.1e} |",
        f"| layers in which the same half of the experts is kept | {same['without pruning']} of {model['layers']} |",
        f"| the same, where it prunes a layer before it scores the next | {same['as it is']} of {model['layers']} |",
        f"| CPU seconds, burnish | {seconds['burnish']:.1f} |",
        f"| CPU seconds, llm-compressor | {seconds['llm-compressor']:.1f} |",
    ]
    return {"reap": "\n".join(lines)}


if __name__ == "__main__":
    main()
