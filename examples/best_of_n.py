"""Make a reward model from preference pairs, then keep the best of several answers.

python examples/best_of_n.py MODEL examples/data/qa_feedback_120.jsonl
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification

import burnish
from burnish.align.stage import Align
from burnish.data.preferences import read_pairs


def main(
    model_path: str, data: str, out: str = "reward", num_answers: int = 4, steps: int = 8
) -> list[tuple[float, str]]:
    start = burnish.load(model_path, dtype=torch.float32)
    trained = Align(data=data, loss="r3m-reward", lam=0.75, max_steps=steps, batch=8, holdout=0.1)(start, progress=True)
    trained.save(out, overwrite=True)

    # the saved reward model is an ordinary sequence classifier with one output
    reward = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = start.tokenizer
    prompt = read_pairs(data).rows[0]["prompt"]
    torch.manual_seed(0)
    given = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        drawn = start.module.generate(
            **given,
            do_sample=True,
            num_return_sequences=num_answers,
            max_new_tokens=32,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = [tokenizer.decode(ids[given["input_ids"].shape[1] :], skip_special_tokens=True) for ids in drawn]
        scores = [
            reward(**tokenizer(prompt + answer + tokenizer.eos_token, return_tensors="pt")).logits.item()
            for answer in answers
        ]
    ranked = sorted(zip(scores, answers, strict=True), reverse=True)
    for score, answer in ranked:
        print(f"{score:+.3f}  {answer!r}")
    return ranked


if __name__ == "__main__":
    main(*sys.argv[1:4])
