"""Train with a bounded pull per pair inside one's own TRL script, and list the pairs to look at again.

python examples/robust_dpo.py MODEL examples/data/qa_feedback_120.jsonl
"""

import sys

from transformers import AutoTokenizer

from burnish.align.trainers import RobustDPOConfig, RobustDPOTrainer
from burnish.data.preferences import read_pairs


def main(model: str, data: str, out: str = "aligned", steps: int = 4) -> list[int]:
    pairs = read_pairs(data).dataset()
    args = RobustDPOConfig(
        out,
        lam=0.75,
        max_steps=steps,
        per_device_train_batch_size=4,
        max_length=256,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = RobustDPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    report = trainer.pair_report(pairs)
    for row, margin, delta in list(zip(report["row"], report["margin"], report["delta"], strict=True))[:5]:
        print(f"row {row}: margin {margin:+.3f}, delta {delta:.3f}")
    return report["row"][:]


if __name__ == "__main__":
    main(*sys.argv[1:4])
