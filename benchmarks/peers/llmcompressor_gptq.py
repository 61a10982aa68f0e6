"""llm-compressor's own GPTQ, run in its own environment by `quantize_baselines.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_gptq.py MODEL WINDOWS.json OUT BITS GROUP

Its defaults are kept (damping 0.01, blocks of 128, `actorder` static); windows are token ids, used as they are.
"""

import json
import sys
import time
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, windows, out, bits, group = sys.argv[1:]
    torch.set_num_threads(1)
    ids = json.loads(Path(windows).read_text())
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    weights = QuantizationArgs(num_bits=int(bits), type="int", symmetric=True, strategy="group", group_size=int(group))
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"]
    )
    started = time.process_time()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=recipe,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    seconds = time.process_time() - started
    model.to(torch.bfloat16).save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    Path(out, "cpu_seconds.txt").write_text(f"{seconds:.1f}\n")


if __name__ == "__main__":
    main()
