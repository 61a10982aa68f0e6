"""What does a token cost to sample, when prompts are shared and finished rows leave, beside `model.generate`?

    python benchmarks/sampling.py --model models/smollm2 [--rounds 4]

Eight samples of each of four questions to SmolLM2-135M-Instruct, of very different length, at temperature 1, at most 96
new tokens; both sides draw until a text ends. They take turns; CPU seconds are divided by the tokens drawn to the end
of each text, since texts differ from round to round. Stock sampling computes every row to the end of the longest text
and gives no log-probabilities of what it drew, which ours does. Nothing is tuned.
"""

from __future__ import annotations

import statistics
from typing import Any

import experiment

QUESTIONS = (
    "Say yes.",
    "What is the capital of France? Answer in one word.",
    "Name three colours.",
    "Explain in a few sentences why the sky is blue, as one would to a child, and then say what happens at sunset.",
)
SAMPLES, NEW = (2, 4) if experiment.SMOKE else (8, 96)


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--rounds", type=int, default=1 if experiment.SMOKE else 4)
    arguments = parser.read()
    import torch

    import burnish
    from burnish.generate import generate

    torch.set_num_threads(1)
    loaded = burnish.load(arguments.model, dtype=torch.float32)
    module: Any = loaded.module
    tokenizer: Any = loaded.tokenizer
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    drawn: dict[str, list[int]] = {"burnish.generate": [], "transformers": []}

    def ours() -> None:
        number = len(drawn["burnish.generate"])
        samples = generate(module, tokenizer, texts, n=SAMPLES, max_new_tokens=NEW, seed=number)
        drawn["burnish.generate"].append(sum(len(sample.tokens) for sample in samples))

    def stock() -> None:
        torch.manual_seed(len(drawn["transformers"]))
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": SAMPLES}
        rows = module.generate(**inputs, **options, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :]
        ends = (rows == tokenizer.eos_token_id).int()
        drawn["transformers"].append(int((ends.cumsum(1) - ends == 0).sum()))

    seconds = experiment.turns({"burnish.generate": ours, "transformers": stock}, arguments.rounds)
    content = {"seconds": seconds, "tokens": {name: counts[1:] for name, counts in drawn.items()}}
    slices = {"tuning": [], "reporting": [experiment.digest(text) for text in texts]}
    settings = {"samples": SAMPLES, "most": NEW, "model": str(arguments.model)}
    experiment.record(
        arguments.out,
        __doc__,
        {"slices": slices, "settings": settings, **content},
        note="one thread, CPU seconds, shared with other work",
    )


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the page."""
    each = {
        name: [second / count for second, count in zip(seconds, results["tokens"][name], strict=True)]
        for name, seconds in results["seconds"].items()
    }
    rows = [
        [
            f"`{name}`",
            f"{statistics.mean(results['tokens'][name]):,.0f}",
            f"{1e3 * statistics.median(cost):.1f}",
            experiment.cell(experiment.ratio(cost, each["transformers"]), ".2f") if name != "transformers" else "1",
        ]
        for name, cost in each.items()
    ]
    return {
        "cost": experiment.table("sampled by | tokens a round: | CPU ms a token: | against transformers (95 %):", rows)
    }


if __name__ == "__main__":
    main()
