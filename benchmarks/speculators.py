"""What does a draft with a part of the vocabulary lose in acceptance, and what does it cost, on SmolLM2?

    python benchmarks/speculators.py --model models/smollm2 --work WORK [--minutes 20]

One draft is trained on the model's own answers to pieces of WikiText-2 valid, with a quarter of the vocabulary; for
other sizes K it gets other rows of the model's head, the K tokens that the same answers say most often. So at K = V it
has rows that it was not trained against. Everything is measured on WikiText-2 test:

law K: answers that the model draws at temperature 1: the coverage of the K tokens, which no acceptance passes, and
acceptance of the first, second and third token in a row.
texts K: greedy answers in float32 with the draft, three tokens at a time, beside those without: whether they are equal,
and tokens a pass.
cost: processor seconds of one thread for a step of the draft at each K, and for a pass of the model over 1 and 4
tokens, in turns.
"""

from __future__ import annotations

import argparse
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from experiment import SMOKE, Kept, cell, table

from burnish.arch import head_of
from burnish.core.checkpoint import load
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.distill.speculator import Drafting, EagleDraft, read_draft
from burnish.distill.speculator.answers import KeptAnswers, TaughtAnswers, answered, prompts_of, taught
from burnish.distill.speculator.network import DraftCache
from burnish.distill.speculator.run import head_rows, vocabulary_of
from burnish.distill.speculator.unrolled import Unrolled
from burnish.distill.stage import Speculator
from burnish.generate import generate
from burnish.train.loop import evaluate

TRAINING, REPORTING = "wikitext2-valid", "wikitext2-test"
SIZES = {"16": "V/16", "4": "V/4", "1": "V"}
"""Of the vocabulary by what it is divided by."""
SETTINGS: dict[str, Any] = {"answers": 128, "prompt_tokens": 32, "answer_tokens": 64, "context": 96, "epochs": 8}
SETTINGS |= {"precision": "bfloat16"}
NUM_LAW, NUM_TEXTS, TEXT_TOKENS, LENGTH, TURNS = 24, 12, 32, 3, 15
if SMOKE:
    SETTINGS |= {"answers": 4, "answer_tokens": 8, "epochs": 1, "batch": 2}
    NUM_LAW, NUM_TEXTS, TEXT_TOKENS, TURNS = 2, 2, 6, 2


class Asked:
    """The model, the draft, and what is measured of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work, self.place = arguments.work, arguments.model
        self.kept = Kept(arguments.work)
        self.settings = Speculator(data=TRAINING, **SETTINGS)

    @cache  # noqa: B019 - one for each process
    def model(self) -> Any:
        found = load(self.place, dtype=torch.float32, device="cpu")
        found.module.eval()
        return found

    def train(self, name: str) -> dict[str, Any]:
        """`train`: the draft, in WORK/draft."""
        made = self.settings(self.model(), data=TRAINING, work_dir=self.work / "training")
        made.save(self.work / "draft", overwrite=True)
        return {"held out": made.measured, "parameters": sum(one.numel() for one in made.network.parameters())}

    @cache  # noqa: B019
    def said(self, data: str, number: int) -> list[Any]:
        """Drawn answers; those of the training are there already."""
        model, settings = self.model(), self.settings.model_copy(update={"answers": number})
        kept = KeptAnswers(
            self.work / "training" / "answers", {"model": model.identity, "dtype": str(model.module.dtype)}
        )
        prompts = prompts_of(settings, model.tokenizer, data)
        return answered(settings, model.module, model.tokenizer, prompts, kept, Progress(enabled=False))

    @cache  # noqa: B019
    def draft(self, size: str) -> EagleDraft:
        """With so many tokens."""
        model, trained = self.model(), read_draft(self.work / "draft")
        number = model.config.vocab_size // int(size)
        settings = self.settings.model_copy(update={"vocabulary": number})
        answers = self.said(TRAINING, SETTINGS["answers"])
        known = answers[: len(answers) - max(1, round(settings.holdout * len(answers)))]
        tokens = vocabulary_of(settings, model.module, model.tokenizer, known)
        head = head_of(model.module)
        assert head is not None
        return trained.with_head(tokens, head_rows(head, tokens))

    @cache  # noqa: B019
    def judged(self) -> TaughtAnswers:
        """Answers that are reported on, with the model's states there."""
        module, layers = self.model().module, self.draft("4").hidden_layers
        head = head_of(module)
        assert head is not None
        return taught(module, head, self.said(REPORTING, NUM_LAW), layers, Progress(enabled=False))

    def law(self, name: str) -> dict[str, Any]:
        """`law 16`: of every answer its coverage and acceptance."""
        model, draft, rows = self.model(), self.draft(name.split()[1]), self.judged()
        loss = Unrolled(model.module.get_input_embeddings(), draft.tokens, LENGTH)
        each = [
            evaluate(
                draft.network, rows.split(len(rows) - at)[1].split(len(rows) - at - 1)[0], loss, micro_batch_size=1
            )
            for at in range(len(rows))
        ]
        return {"tokens": len(draft.tokens), "answers": each}

    def prompts(self) -> list[list[int]]:
        settings = self.settings.model_copy(update={"answers": NUM_TEXTS})
        return prompts_of(settings, self.model().tokenizer, REPORTING)

    def alone(self, name: str) -> dict[str, Any]:
        """`alone`: greedy answers without a draft."""
        model, options = self.model(), {"max_new_tokens": TEXT_TOKENS, "temperature": 0}
        return {"texts": [one.tokens for one in generate(model.module, model.tokenizer, self.prompts(), **options)]}

    def texts(self, name: str) -> dict[str, Any]:
        """`texts 16`: greedy answers with the draft, (tokens, passes) of each, and whether it is the text alone."""
        model, alone, found = self.model(), self.kept.read("alone")["texts"], []
        drafting = Drafting(model, self.draft(name.split()[1]), length=LENGTH)
        for prompt, text in zip(self.prompts(), alone, strict=True):
            before = vars(drafting.counts).copy()
            options: dict[str, Any] = {"max_new_tokens": TEXT_TOKENS, "temperature": 0, "speculate": drafting}
            said = generate(model.module, model.tokenizer, [prompt], **options)[0].tokens
            tokens, passes = (getattr(drafting.counts, one) - before[one] for one in ("tokens", "drafts"))
            found.append({"tokens": tokens, "passes": passes, "equal": said == text})
        drafting.close()
        return {"answers": found}

    @torch.inference_mode()
    def cost(self, name: str) -> dict[str, Any]:
        """`cost`: processor seconds, in turns."""
        from burnish.generate.cache import roomy

        module: Any = self.model().module
        context = torch.arange(1, 129)[None]
        seconds: dict[str, list[float]] = {}
        caches = {size: DraftCache() for size in SIZES}
        full = roomy(module.config)
        module(input_ids=context, past_key_values=full, use_cache=True)
        hidden = torch.randn(1, 128, module.config.hidden_size)
        for size, read in caches.items():
            self.draft(size).network.read(hidden, hidden, read)
        for _ in range(TURNS):
            for size, read in caches.items():
                network = self.draft(size).network
                started = time.process_time()
                network.logits(network.read(hidden[:, :1], hidden[:, :1], read)[:, -1]).argmax(-1)
                seconds.setdefault(f"draft {size}", []).append(time.process_time() - started)
                read.cut(128)
            for number in (1, 1 + LENGTH):
                started = time.process_time()
                module(input_ids=context[:, :number], past_key_values=full, use_cache=True)
                seconds.setdefault(f"pass {number}", []).append(time.process_time() - started)
                for layer in full.layers:
                    layer.keep_columns(128, torch.tensor([], dtype=torch.long))  # pyright: ignore[reportAttributeAccessIssue]
        return {"seconds": seconds}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, required=True)
    arguments = command.read()
    asked = Asked(arguments)
    work = [(["train"], asked.train), ([f"law {size}" for size in SIZES], asked.law), (["alone"], asked.alone)]
    work += [([f"texts {size}" for size in SIZES], asked.texts), (["cost"], asked.cost)]
    for names, measure in work:
        if not asked.kept.run(partial(list, names), measure, arguments.minutes):
            return
    content = {
        "settings": SETTINGS | {"length": LENGTH},
        "slices": {"tuning": [experiment.digest(TRAINING)], "reporting": [experiment.digest(REPORTING)]},
        **{name: asked.kept.read(name) for names, _ in work for name in names if name != "alone"},
    }
    experiment.record(arguments.out, __doc__, content)
    print("\n\n".join(tables(content).values()))


def tables(results: dict[str, Any]) -> dict[str, str]:
    seconds = results["cost"]["seconds"]
    one, four = (float(np.median(seconds[f"pass {number}"])) for number in (1, 1 + results["settings"]["length"]))
    rows, costs = [], []
    for size in SIZES:
        law, texts = results[f"law {size}"], results[f"texts {size}"]["answers"]
        names = ["coverage", *(f"acceptance_{step}" for step in range(1, 1 + results["settings"]["length"]))]
        found = [cell(interval(np.array([answer[name] for answer in law["answers"]])), ".3f") for name in names]
        rates = interval(np.array([text["tokens"] / text["passes"] for text in texts]))
        equal = f"{sum(text['equal'] for text in texts)} of {len(texts)}"
        rows.append([f"{SIZES[size]} = {law['tokens']:,}", *found, cell(rates, ".2f"), equal])
        step = float(np.median(seconds[f"draft {size}"]))
        cycle = results["settings"]["length"] * step + four
        rate = sum(text["tokens"] for text in texts) / sum(text["passes"] for text in texts)
        costs.append(
            [SIZES[size], f"{1e3 * step:.2f} ms", f"{step / one:.1%}", f"{four / one:.2f}", f"{rate * one / cycle:.2f}"]
        )
    head = "K | coverage, which bounds it | first token accepted | second | third | greedy: tokens a pass | text equal"
    costly = (
        "K | a step of the draft | of a pass over one token | a pass over four, of one over one | tokens a second, "
    )
    return {"acceptance": table(head, rows), "cost": table(costly + "of those without, by these times", costs)}


if __name__ == "__main__":
    main()
