"""llm-compressor's own GPTQ, run in its own environment by `quantize_baselines.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_gptq.py MODEL WINDOWS.json OUT BITS GROUP

Its defaults are kept (damping 0.01, blocks of 128, `actorder` static, layers calibrated on the outputs of those already
quantized). Windows are token ids, used as they are. Everything is computed and saved in float32, so that its scales are
read as it chose them.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bits", type=int)
    parser.add_argument("group", type=int)
    parser.add_argument("--actorder", choices=["static", "weight", "group", "none"], default="static")
    parser.add_argument("--damping", type=float, default=0.01)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = json.loads(arguments.windows.read_text())
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    weights = QuantizationArgs(
        num_bits=arguments.bits, type="int", symmetric=True, strategy="group", group_size=arguments.group
    )
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["lm_head"],
        dampening_frac=arguments.damping,
        actorder=None if arguments.actorder == "none" else arguments.actorder,
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
    model.save_pretrained(arguments.out, save_compressed=True)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "cpu_seconds.txt").write_text(f"{seconds:.1f}\n")


if __name__ == "__main__":
    main()
