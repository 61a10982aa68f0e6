"""llm-compressor's own GPTQ and AWQ, run in its own environment for `quantize_baselines.py` and `low_bits.py`.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_quantize.py MODEL WINDOWS.json OUT BITS GROUP
    PYTHON_OF_THAT_ENVIRONMENT benchmarks/peers/llmcompressor_quantize.py MODEL WINDOWS.json OUT BITS GROUP \\
        --method awq --asymmetric

Its defaults are kept (GPTQ: damping 0.01, blocks of 128, `actorder` static, layers calibrated on the outputs of those
already quantized; AWQ: 20 exponents for every smoothed layer). Windows are token ids, used as they are. Everything is
computed and saved in float32, so that its scales are read as it chose them.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bits", type=int)
    parser.add_argument("group", type=int)
    parser.add_argument("--method", choices=["gptq", "awq"], default="gptq")
    parser.add_argument("--asymmetric", action="store_true", help="with zero points")
    parser.add_argument("--actorder", choices=["static", "weight", "group", "none"], default="static")
    parser.add_argument("--damping", type=float, default=0.01)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not torch.accelerator.is_available():  # its AWQ pins memory for copies to one, and 0.14.0.1 stops without
        IntermediatesCache.pin_memory = lambda *_, **__: None
    ids = json.loads(arguments.windows.read_text())
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    weights = QuantizationArgs(
        num_bits=arguments.bits,
        type="int",
        symmetric=not arguments.asymmetric,
        strategy="group",
        group_size=arguments.group,
    )
    rounded = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        "ignore": ["lm_head"],
    }
    actorder = None if arguments.actorder == "none" else arguments.actorder
    recipes = {
        "gptq": lambda: GPTQModifier(**rounded, dampening_frac=arguments.damping, actorder=actorder),
        "awq": lambda: [AWQModifier(), QuantizationModifier(**rounded)],
    }
    started = time.process_time()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=recipes[arguments.method](),
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
