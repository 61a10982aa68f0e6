"""What does a pair loss add to a training step of TRL's DPOTrainer?

    python benchmarks/align_step.py

Stock DPO, Ada-DPO and R3M-DPO take turns on the same batch and weights: forward, reference, loss, backward. The
model is a Llama of 5 M parameters, so the forward pass weighs less than in use and the ratio is an upper estimate.
Measure: CPU time of a step, median of 60 turns, and the paired ratio to stock DPO with a bootstrap interval.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from burnish.align.trainers import AdaptiveDPOConfig, AdaptiveDPOTrainer, RobustDPOConfig, RobustDPOTrainer

RESULT = Path(__file__).parent / "results" / "align_step.json"
TURNS, PAIRS, TOKENS = 60, 4, 64
KINDS = {
    "DPO (TRL)": (DPOTrainer, DPOConfig, {}),
    "Ada-DPO": (AdaptiveDPOTrainer, AdaptiveDPOConfig, {}),
    "Ada-DPO, quadratic": (AdaptiveDPOTrainer, AdaptiveDPOConfig, {"pair_loss": "aps_quadratic"}),
    "R3M-DPO": (RobustDPOTrainer, RobustDPOConfig, {}),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def make_trainer(kind: str, directory: Path, tokenizer: PreTrainedTokenizerFast) -> DPOTrainer:
    trainer_class, config, extra = KINDS[kind]
    settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    row = {"prompt": "p" * 20, "chosen": "c" * (TOKENS - 21), "rejected": "r" * (TOKENS - 21)}
    return trainer_class(
        str(directory),
        args=config(str(directory / "out"), **settings, **extra),
        train_dataset=Dataset.from_list([row] * PAIRS),
        processing_class=tokenizer,
    )


def step(trainer: DPOTrainer) -> float:
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(PAIRS)]))
    trainer.model.zero_grad()
    started = time.process_time()
    trainer.compute_loss(trainer.model, batch).backward()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        model = LlamaForCausalLM(config)
        model.save_pretrained(scratch)
        trainers = {kind: make_trainer(kind, Path(scratch), tokenizer) for kind in KINDS}
        for trainer in trainers.values():
            step(trainer)
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(TURNS):
            order = list(KINDS) if turn % 2 == 0 else list(KINDS)[::-1]
            for kind in order:
                seconds[kind].append(step(trainers[kind]))
    generator = np.random.default_rng(0)
    stock = np.array(seconds["DPO (TRL)"])
    rows = {}
    for kind, values in seconds.items():
        ratios = np.array(values) / stock
        draws = np.median(ratios[generator.integers(TURNS, size=(2000, TURNS))], axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        rows[kind] = {
            "median_cpu_seconds": float(np.median(values)),
            "ratio": {"median": float(np.median(ratios)), "low": float(low), "high": float(high)},
            "cpu_seconds": values,
        }
    content = {
        "question": __doc__,
        "settings": {"turns": TURNS, "pairs": PAIRS, "tokens": TOKENS, "parameters": model.num_parameters()},
        "rows": rows,
        "machine": f"{platform.processor() or platform.machine()}, one thread, shared with other work (CPU time)",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "trl": trl.__version__, "python": platform.python_version()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(results: dict) -> dict[str, str]:
    lines = ["| loss | CPU seconds a step | ratio to DPO (95 % interval) |", "| --- | --- | --- |"]
    for kind, row in results["rows"].items():
        ratio = row["ratio"]
        lines.append(
            f"| {kind} | {row['median_cpu_seconds']:.3f} | "
            f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) |"
        )
    return {"step": "\n".join(lines)}


if __name__ == "__main__":
    main()
