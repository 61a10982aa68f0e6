"""What does a pair loss add to a training step of TRL's DPOTrainer?

    python benchmarks/align_step.py

Stock DPO, Ada-DPO and R3M-DPO take turns on the same batch and weights: forward, reference, loss, backward. The
model is a Llama of 5 M parameters, so the forward pass weighs less than in use and the ratio is an upper estimate.
Measure: CPU time of a step, median of 60 turns, and the paired ratio of the sums to stock DPO.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import experiment

TURNS, PAIRS, TOKENS = 60, 4, 64
STOCK = "DPO (TRL)"


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=4096, **sizes, **heads, **ids))


def steps(checkpoint: Path) -> dict[str, Any]:
    """{loss: a function that does one step}."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from burnish.align.trainers import AdaptiveDPOConfig, AdaptiveDPOTrainer, RobustDPOConfig, RobustDPOTrainer

    kinds: dict[str, Any] = {
        STOCK: (DPOTrainer, DPOConfig, {}),
        "Ada-DPO": (AdaptiveDPOTrainer, AdaptiveDPOConfig, {}),
        "Ada-DPO, quadratic": (AdaptiveDPOTrainer, AdaptiveDPOConfig, {"pair_loss": "aps_quadratic"}),
        "R3M-DPO": (RobustDPOTrainer, RobustDPOConfig, {}),
    }
    settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    row = {"prompt": "p" * 20, "chosen": "c" * (TOKENS - 21), "rejected": "r" * (TOKENS - 21)}
    tokenizer = byte_tokenizer()

    def step_of(trainer: Any) -> Any:
        def step() -> None:
            batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(PAIRS)]))
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, batch).backward()

        return step

    made = {}
    for kind, (trainer, config, extra) in kinds.items():
        arguments = config(str(checkpoint / "out"), **settings, **extra)
        rows = Dataset.from_list([row] * PAIRS)
        made[kind] = step_of(trainer(str(checkpoint), args=arguments, train_dataset=rows, processing_class=tokenizer))
    return made


def main() -> None:
    import torch

    arguments = experiment.Command(__file__, __doc__).read()
    torch.set_num_threads(1)
    turns = 2 if arguments.smoke else TURNS
    with tempfile.TemporaryDirectory() as scratch:
        network = model()
        network.save_pretrained(scratch)
        seconds = experiment.turns(steps(Path(scratch)), turns)
    settings = {"turns": turns, "pairs": PAIRS, "tokens": TOKENS, "parameters": network.num_parameters()}
    content = {"settings": settings, "rows": {kind: {"cpu_seconds": values} for kind, values in seconds.items()}}
    note = "one thread, shared with other work (CPU time)"
    experiment.record(arguments.out, __doc__, content, note=note, libraries=["trl"])


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for kind, row in results["rows"].items():
        mine, stock = row["cpu_seconds"], results["rows"][STOCK]["cpu_seconds"]
        rows.append([kind, f"{statistics.median(mine):.3f}", experiment.cell(experiment.ratio(mine, stock))])
    return {"step": experiment.table("loss | CPU seconds a step | ratio to DPO (95 %)", rows)}


if __name__ == "__main__":
    main()
