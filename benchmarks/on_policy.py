"""What does a student learn from a teacher on its own samples that it does not learn on given texts?

    python benchmarks/on_policy.py --work runs/slim-benchmark --minutes 8      # again, until all is done

At equal student tokens (60 steps of 8 rows of 128), does distillation on what the student writes beat distillation on
texts, on texts and on what the student then writes? The teachers are those of `slim.py`, byte-level mixtures, one per
seed; the student is a teacher whose experts were cut to a quarter of their width by energy and refitted. On its own
samples the first 16 tokens of a row are given and the student writes the rest. Every way gets the same search over
learning rates on the first seed. One more row takes texts for as many steps as cost what sampling costs.

Measured on windows of the WikiText-2 test text, of which every fourth chooses and the rest is reported: the loss on the
text ("text"), and the teacher's mean negative log-likelihood of what the student writes after 16 given tokens, less
that of the student itself ("own"): an unbiased estimate of the reverse KL from the teacher per token, which is what
sampling from the student meets. The learning rate is chosen by the sum of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_windows
import experiment
import numpy as np

import slim

STEPS, SEARCH, GIVEN = 60, (1e-3, 3e-3), 16
TEXT = {"prompt_tokens": GIVEN, "alpha": 1.0}
WAYS: dict[str, dict[str, Any]] = {
    "texts, forward KL": TEXT | {"divergence": "forward"},
    "texts, reverse KL": TEXT | {"divergence": "reverse"},
    "own samples, forward KL": TEXT | {"divergence": "forward", "on_policy": 1.0},
    "own samples, reverse KL": TEXT | {"divergence": "reverse", "on_policy": 1.0},
    "own samples, Jensen-Shannon": TEXT | {"divergence": "jsd", "on_policy": 1.0},
}
BASELINE, LONGER, TIMES = "texts, forward KL", "texts, forward KL, longer", 4


class Bench(slim.Bench):
    """What is measured, by name: "seed; way", and with a learning rate in the search."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work, smoke=smoke)
        self._students: dict[int, Any] = {}

    def names(self) -> list[str]:
        ends = [f"{seed}; {what}" for seed in self.seeds for what in ("teacher", "student")]
        tried = [searched(way, lr) for way in WAYS for lr in SEARCH]
        return [*ends, *tried, *(f"{seed}; {way}" for seed in self.seeds for way in (*WAYS, LONGER))]

    def measure(self, name: str) -> dict[str, Any]:
        number, way, *rate = name.split("; ")
        seed = int(number)
        if way in ("teacher", "student"):
            return self.both(seed, self.teacher(seed) if way == "teacher" else self.student(seed))
        plain, times = (BASELINE, TIMES) if way == LONGER else (way, 1)
        lr = float(rate[0].removeprefix("lr ")) if rate else self.best(plain)
        return self.both(seed, self.taught(seed, WAYS[plain], times * STEPS, lr)) | {"lr": lr}

    def student(self, seed: int) -> Any:
        if seed not in self._students:
            self._students[seed] = self.slim(seed, width=slim.WIDTHS["a quarter"], score="energy", refit="alone")
        return self._students[seed]

    def taught(self, seed: int, way: dict[str, Any], steps: int, lr: float) -> Any:
        import burnish

        settings = self.training(seed, 2 if self.smoke else steps, lr) | way
        return burnish.Distill(**settings)(self.student(seed), data=[self.train_text], teacher=self.teacher(seed))

    def both(self, seed: int, model: Any) -> dict[str, Any]:
        """Losses on the text, and how far what the model writes is from the teacher, of every window."""
        return self.losses(model) | {"own": [round(value, 5) for value in self.own(seed, model)]}

    def own(self, seed: int, model: Any) -> list[float]:
        import torch

        from burnish.generate import generate

        prompts = byte_windows.windows(model.tokenizer, self.test_text, self.num_windows)[:, :GIVEN].tolist()
        room = byte_windows.LENGTH - GIVEN
        module, teacher = model.module.eval(), self.teacher(seed).module.eval()
        found = []
        for sample, prompt in zip(
            generate(module, model.tokenizer, prompts, max_new_tokens=room, seed=seed, batch_size=self.num_windows),
            prompts,
            strict=True,
        ):
            ids = torch.tensor([[*prompt, *sample.tokens]])
            with torch.no_grad():
                said = teacher(input_ids=ids, use_cache=False).logits[0, GIVEN - 1 : -1].log_softmax(-1)
            theirs = said.gather(-1, ids[0, GIVEN:, None])[:, 0]
            found.append(float((torch.tensor(sample.logprobs) - theirs).mean()))
        return found

    def best(self, way: str) -> float:
        return min(SEARCH, key=lambda lr: self.score(searched(way, lr)))

    def score(self, name: str) -> float:
        run, chosen = self.read(name), byte_windows.TUNING[: self.num_windows]
        return float(np.array(run["losses"])[chosen].mean() + np.array(run["own"])[chosen].mean())

    def part(self, names: list[str], what: str) -> np.ndarray:
        return np.array([run[what] for run in self.runs(names)])[:, ~byte_windows.TUNING[: self.num_windows]]


def searched(way: str, lr: float) -> str:
    return f"{byte_windows.SEEDS[0]}; {way}; lr {lr:g}"


def summary(bench: Bench) -> dict[str, Any]:
    def names(what: str) -> list[str]:
        return [f"{seed}; {what}" for seed in bench.seeds]

    base, rows = {what: bench.part(names(BASELINE), what) for what in ("losses", "own")}, {}
    for what in ("teacher", "student", *WAYS, LONGER):
        these, row = names(what), dict[str, Any]()
        runs = bench.runs(these)
        for measured in ("losses", "own"):
            values = bench.part(these, measured)
            row[measured] = {"mean": float(values.mean()), "by_seed": values.mean(1).tolist()}
            row[measured] |= {"against": {"name": BASELINE} | byte_windows.against(values, base[measured])}
        row["cpu_seconds"] = [run["cpu_seconds"] for run in runs]
        rows[what] = row | {"lr": runs[0].get("lr")}
    return {
        "settings": {"steps": STEPS, "batch": byte_windows.BATCH, "length": byte_windows.LENGTH, "given": GIVEN},
        "slices": byte_windows.slices(bench.teacher(bench.seeds[0]).tokenizer, bench.test_text),
        "seeds": list(bench.seeds),
        "search": {name: bench.score(name) for name in (searched(way, lr) for way in WAYS for lr in SEARCH)},
        "summary": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    rows = results["summary"]
    rule = experiment.rule(rows["student"]["losses"]["against"])
    lines = []
    for what, row in rows.items():
        cells = []
        for measured in ("losses", "own"):
            against = "" if what in ("teacher", "student", BASELINE) else row[measured]["against"]
            cells += [f"{row[measured]['mean']:.3f}", against and experiment.cell(against, "+.3f")]
        seconds = sum(row["cpu_seconds"]) / len(row["cpu_seconds"])
        lines.append([what, *cells, "" if row["lr"] is None else f"{row['lr']:g}", f"{seconds:.0f}"])
    columns = f"{len(results['seeds'])} seeds, nats per byte | text: | against forward KL on texts ({rule}): "
    columns += "| own samples: | against: | lr: | CPU seconds:"
    return {"ways": experiment.table(columns, lines)}


if __name__ == "__main__":
    byte_windows.main(__file__, __doc__ or "", Bench, summary)
