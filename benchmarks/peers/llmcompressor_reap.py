"""llm-compressor's own REAP scores, run in its own environment by `slim_reap.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_reap.py MODEL WINDOWS.json OUT.json SHARE_DROPPED

Windows are token ids, used as they are. Writes the saliency of every expert and which experts were kept, by
layer: as the modifier runs, and with every layer scored on the intact model.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning.reap import base
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, windows, out, share = sys.argv[1:]
    torch.set_num_threads(1)
    ids = json.loads(Path(windows).read_text())
    started = time.process_time()
    as_it_is = scores(source, ids, float(share))
    seconds = round(time.process_time() - started, 1)
    # A layer is scored on what the pruned layers before it give. Without pruning, all see the model as it was.
    base.prune_moe_layer = lambda *_: None
    intact = scores(source, ids, float(share))
    Path(out).write_text(json.dumps({"as it is": as_it_is, "without pruning": intact, "cpu_seconds": seconds}))


def scores(source: str, ids: list[list[int]], share: float) -> dict[str, list]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    saliency, kept = [], []

    class Noted(base.REAPSaliencyTracker):
        def compute_retained_experts(self, *args):
            saliency.append(self.mean_saliency.tolist())
            kept.append(super().compute_retained_experts(*args).tolist())
            return torch.tensor(kept[-1], dtype=torch.int)

    before, base.REAPSaliencyTracker = base.REAPSaliencyTracker, Noted
    try:
        oneshot(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(source),
            dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
            recipe=base.REAPPruningModifier(sparsity=share),
            max_seq_length=len(ids[0]),
            num_calibration_samples=len(ids),
            shuffle_calibration_samples=False,
        )
    finally:
        base.REAPSaliencyTracker = before
    return {"saliency": saliency, "kept": kept}


if __name__ == "__main__":
    main()
