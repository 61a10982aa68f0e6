"""AutoRound, run in its own environment for `low_bits.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/autoround.py MODEL WINDOWS.json OUT BITS GROUP ITERATIONS

Symmetric integers, AutoRound's own defaults otherwise, with batches of 1,024 tokens. Windows are token ids, used as
they are. What is saved is the dense checkpoint with the values that its codes and scales stand for, in the model's
dtype.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from auto_round import AutoRound
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bits", type=int)
    parser.add_argument("group", type=int)
    parser.add_argument("iterations", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ids = torch.tensor(json.loads(arguments.windows.read_text()))
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    batch = max(1024 // ids.shape[1], 1)
    started = time.process_time()
    job = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=f"W{arguments.bits}A16",
        group_size=arguments.group,
        sym=True,
        iters=arguments.iterations,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=batch,
        dataset=DataLoader(
            [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=batch
        ),
        device_map="cpu",
        seed=42,
        low_cpu_mem_usage=False,
    )
    made, _ = job.quantize()
    seconds = time.process_time() - started
    made.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "cpu_seconds.txt").write_text(f"{seconds:.1f}\n")


if __name__ == "__main__":
    main()
