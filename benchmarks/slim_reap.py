"""Do REAP scores of experts agree with llm-compressor's, on the same model and the same tokens?

    python benchmarks/slim_reap.py --model MIXTURE --peer PYTHON_WITH_LLMCOMPRESSOR

Do the scores agree, and are the same experts kept? Both sides see the same windows of the WikiText-2 validation text,
in float32, and drop half of the experts. llm-compressor prunes a layer before it scores the next: scores are compared
with that turned off, kept experts both ways. There is nothing to tune.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import experiment

PEER = Path(__file__).parent / "peers" / "llmcompressor_reap.py"
TOKENS, LENGTH = 4096, 128


def ours(model: Any, windows: Any) -> Any:
    """Our score of every expert, [layers, experts]."""
    import torch

    from burnish.core.progress import Progress
    from burnish.core.stage import seeded_generator
    from burnish.slim.collect import collect
    from burnish.slim.maths.experts import reap
    from burnish.slim.maths.scores import SCORES

    quiet = Progress(enabled=False)
    sums = collect(model.module, windows, SCORES["energy"], generator=seeded_generator(0), progress=quiet)
    return torch.stack([reap(sums.reap[layer], sums.counts[layer]) for layer in sorted(sums.reap)])


def theirs(python: str, model: str, windows: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "windows.json", Path(scratch) / "reap.json"
        file.write_text(json.dumps(windows.tolist()))
        source = str(Path(model).resolve())
        subprocess.run([python, str(PEER), source, str(file), str(out), "0.5"], check=True, cwd=scratch)
        return json.loads(out.read_text())


def main() -> None:
    import torch

    import burnish
    from burnish.core.stage import seeded_generator
    from burnish.data import calibration, data_hash
    from burnish.slim.maths.keep import keep_highest

    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", required=True, help="checkpoint of a mixture of experts, small")
    command.add_argument("--peer", required=True, help="the Python of an environment with llm-compressor")
    arguments = command.read()
    torch.set_num_threads(1)
    model = burnish.load(arguments.model, dtype=torch.float32)
    tokens = 2 * LENGTH if arguments.smoke else TOKENS
    generator = seeded_generator(0)
    windows = calibration(model.tokenizer, "wikitext2-valid", length=LENGTH, max_tokens=tokens, generator=generator)
    started = time.process_time()
    scores = ours(model, windows)
    seconds = time.process_time() - started
    kept, peer = keep_highest(scores, scores.shape[1] // 2), theirs(arguments.peer, arguments.model, windows)
    reference = torch.tensor(peer["without pruning"]["saliency"], dtype=torch.float64)
    sizes = {"layers": len(scores), "experts": scores.shape[1], "parameters": model.plan().num_parameters}
    content = {
        "slices": {"tuning": [], "reporting": [data_hash("wikitext2-valid")]},
        "model": {"model_type": model.config.model_type} | sizes,
        "tokens": windows.numel(),
        "largest_relative_difference": ((scores - reference).abs() / reference).max().item(),
        "same_experts_kept": {
            run: [sorted(a) == sorted(b) for a, b in zip(kept.tolist(), peer[run]["kept"], strict=True)]
            for run in ("without pruning", "as it is")
        },
        "scores": {
            "burnish": scores.tolist(),
            "llm-compressor, without pruning": reference.tolist(),
            "llm-compressor, as it is": peer["as it is"]["saliency"],
        },
        "cpu_seconds": {"burnish": round(seconds, 1), "llm-compressor": peer["cpu_seconds"]},
        "peer": (PEER.parent.parent / "env" / "llmcompressor.txt").read_text().split(),
    }
    experiment.record(arguments.out, __doc__, content, note="one thread, shared with other work; CPU times only")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    model, seconds = results["model"], results["cpu_seconds"]
    same = {run: sum(layers) for run, layers in results["same_experts_kept"].items()}
    shape = f"{model['model_type']}, {model['layers']} layers of {model['experts']} experts"
    rows = [
        ["largest relative difference of a score", f"{results['largest_relative_difference']:.1e}"],
        ["layers in which the same half of the experts is kept", f"{same['without pruning']} of {model['layers']}"],
        ["the same, where it prunes a layer before it scores the next", f"{same['as it is']} of {model['layers']}"],
        *([f"CPU seconds, {side}", f"{seconds[side]:.1f}"] for side in ("burnish", "llm-compressor")),
    ]
    return {"reap": experiment.table(f"{shape}, {results['tokens']:,} tokens | :", rows)}


if __name__ == "__main__":
    main()
