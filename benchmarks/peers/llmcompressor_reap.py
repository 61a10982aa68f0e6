"""llm-compressor's own REAP scores, run in its own environment by `slim_reap.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_reap.py MODEL WINDOWS.json OUT.json SHARE_DROPPED

Windows are token ids, used as they are. Writes the saliency of every expert and which experts were kept, by layer.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning.reap import REAPPruningModifier
from llmcompressor.modifiers.pruning.reap.utils import REAPSaliencyTracker
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, windows, out, share = sys.argv[1:]
    torch.set_num_threads(1)
    ids = json.loads(Path(windows).read_text())
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    saliency, kept = [], []
    choose = REAPSaliencyTracker.compute_retained_experts

    def noted(self, *args):
        saliency.append(self.mean_saliency.tolist())
        result = choose(self, *args)
        kept.append(result.tolist())
        return result

    REAPSaliencyTracker.compute_retained_experts = noted
    started = time.process_time()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(source),
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=REAPPruningModifier(sparsity=float(share)),
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    content = {"saliency": saliency, "kept": kept, "cpu_seconds": round(time.process_time() - started, 1)}
    Path(out).write_text(json.dumps(content))


if __name__ == "__main__":
    main()
