"""Do the problems that rounding has lost teach a quantized model more than others do?

    python benchmarks/repair.py --work WORK --minutes 20      # again, until all is done

A reasoner of 0.64 million parameters learns chains of 1 to 6 steps (one per seed), and is rounded to 2 bits in groups
of 32: by GPTQ, which it survives with some loss, and to nearest, which breaks it. `burnish diagnose` asks 1,000 fresh
chains of both and makes pairs of what was lost. `burnish tune` then trains scales and norms against the original for as
many steps on: the original's right answers to lost problems; as many of the original's right answers to problems that
were not lost (the control); and as many lines of the original's training text. Accuracy is that of the likeliest answer
to 1,000 chains that nothing was made of; the divergence from the original is measured on 100 other chains with their
solutions. Nothing is chosen on either; the learning rate is the default of the command.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

from burnish.core.statistics import mcnemar, paired_interval
from burnish.data.chain import Chains, chain_rows
from burnish.generate import generate
from burnish.generate.problems import is_right, prompt_of
from burnish.verify import verifier

ROOT = Path(__file__).resolve().parent.parent
SIMPLE = Chains(modulus=10, steps=(1, 1), operations="+-", repeat=0, direct=0)
KIND, MODEL = (
    (SIMPLE, "reasoner_small") if experiment.SMOKE else (Chains(steps=(1, 6), repeat=0, direct=0), "chain_reasoner")
)
SEEDS = (0,) if experiment.SMOKE else (0, 1, 2)
STARTS: dict[str, dict[str, Any]] = {"GPTQ": {"method": "gptq"}, "nearest": {"method": "rtn"}}
ARMS = ("lost problems", "other problems", "training text")
BEFORE = "not repaired"
TRAINED, ASKED, MEASURED, TEXTS = (2_400, 50, 20, 8) if experiment.SMOKE else (24_000, 1_000, 1_000, 100)
STEPS = 2 if experiment.SMOKE else 120
TRAINING = {"context": 64, "batch": 16, "steps": 240} if experiment.SMOKE else {"context": 96, "batch": 32}
GROUP = 16 if experiment.SMOKE else 32
ROW = {"context": 96, "batch": 8}


class Bench:
    """Every cell: a seed, a start, what its scales are trained on."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.kept = experiment.Kept(work)

    def names(self) -> list[str]:
        return [f"{seed}; {start}; {arm}" for seed in SEEDS for start in STARTS for arm in (BEFORE, *ARMS)]

    def measure(self, name: str) -> dict[str, Any]:
        import burnish

        seed, start, arm = name.split("; ")
        original, packed = self.original(int(seed)), self.packed(int(seed), start)
        pairs = self.pairs(int(seed), start)
        model, about = packed, pairs["about"]
        if arm != BEFORE:
            rows = self.rows(arm, int(seed), pairs)
            stage = burnish.Tune(**ROW, steps=STEPS, seed=int(seed), save_every=0)
            model = stage(packed, data=rows, teacher=original)
        return {
            "right": right(model, measured(int(seed))),
            "original": right(original, measured(int(seed))) if arm == BEFORE else [],
            "kl": divergence(model, original, texts(int(seed))),
            "about": about if arm == BEFORE else {},
        }

    def rows(self, arm: str, seed: int, pairs: dict[str, Any]) -> list[Any]:
        """What scales are trained on: as many rows for every arm."""
        number = len(pairs["rows"])
        if arm == "lost problems":
            return [{"prompt": row["prompt"], "completion": row["completion"]} for row in pairs["rows"]]
        if arm == "other problems":
            others = [one for one in pairs["others"] if one["right"]]
            chosen = random.Random(f"control {seed}").sample(others, min(number, len(others)))
            return [{"prompt": one["prompt"], "completion": one["completion"]} for one in chosen]
        return [{"messages": row["messages"]} for row in chain_rows(KIND, number, seed=100 + seed)]

    # -- what is made once and kept ------------------------------------------------------------------------------------

    def original(self, seed: int) -> Any:
        import burnish
        from burnish.train.scratch import initialise

        path = self.work / f"original-{seed}"
        if not path.is_dir():
            start = initialise(
                ROOT / "examples" / f"{MODEL}.json",
                tokenizer="bpe:257",
                texts=["none is needed for single bytes"],
                chat_template=(ROOT / "examples" / "reasoner.jinja").read_text(),
                seed=seed,
            )
            data = [row["messages"] for row in chain_rows(KIND, TRAINED, seed=100 + seed)]
            burnish.Train(context=96, batch=16 if experiment.SMOKE else 32, lr=0.01, seed=seed, save_every=0)(
                start, data=data
            ).save(path)
        return burnish.load(path, dtype=torch.float32)

    def packed(self, seed: int, start: str) -> Any:
        import burnish

        path = self.work / f"packed-{seed}-{start}"
        if not path.is_dir():
            made = burnish.Quantize(
                bits=2, group_size=32, length=64, tokens=1024 if experiment.SMOKE else 32768, **STARTS[start]
            )
            text = [row["messages"] for row in chain_rows(KIND, min(TRAINED, 4000), seed=100 + seed)]
            beside = {} if start == "nearest" else {"calibration": text}
            made(self.original(seed), **beside).save(path)
        return burnish.load(path)

    def pairs(self, seed: int, start: str) -> dict[str, Any]:
        """The pairs of `burnish diagnose`, and the original's answers to problems that were not lost."""
        import burnish

        name = f"pairs; {seed}; {start}"
        if not self.kept.has(name):
            fresh = list(chain_rows(KIND, ASKED, seed=200 + seed, distinct=True))
            stage = burnish.Diagnose(verifier="chain", max_new_tokens=80, most=ASKED, seed=seed)
            made = stage(self.packed(seed, start), original=self.original(seed), data=fresh)
            rows = list(made.rows)
            lost = {row["id"] for row in rows}
            kept = [row for row in fresh if row["id"] not in lost]
            answers = written(self.original(seed), kept)
            others = [
                {"prompt": row["messages"][:1], "completion": [{"role": "assistant", "content": text}], "right": is_so}
                for row, (text, is_so) in zip(kept, answers, strict=True)
            ]
            self.kept.keep(name, {"rows": rows, "others": others, "about": made.about})
        return self.kept.read(name)


def measured(seed: int) -> list[dict[str, Any]]:
    """Chains that accuracy is measured on, none of which anything was made of."""
    if experiment.SMOKE:  # the simple ones have 180 questions
        return list(chain_rows(KIND, MEASURED, seed=300, distinct=True))
    taken = {row["question"] for row in chain_rows(KIND, TRAINED, seed=100 + seed)}
    taken |= {row["question"] for row in chain_rows(KIND, ASKED, seed=200 + seed, distinct=True)}
    return list(chain_rows(KIND, MEASURED, seed=300, apart_from=taken, distinct=True))


def texts(seed: int) -> list[dict[str, Any]]:
    """Chains with solutions that the divergence is measured on."""
    return list(chain_rows(KIND, TEXTS, seed=400 + seed))


def written(model: Any, problems: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The likeliest answers, and whether they are right."""
    grader = verifier("chain")
    prompts = [prompt_of(model.tokenizer, grader, problem) for problem in problems]
    ids = [model.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    samples = generate(model.module, model.tokenizer, ids, max_new_tokens=80, temperature=0.0)
    return [(one.text, is_right(one, grader, problem)) for one, problem in zip(samples, problems, strict=True)]


def right(model: Any, problems: list[dict[str, Any]]) -> list[bool]:
    return [is_so for _, is_so in written(model, problems)]


@torch.inference_mode()
def divergence(model: Any, original: Any, rows: list[dict[str, Any]]) -> list[float]:
    """KL(original || model), nats a token, of every text."""
    from burnish.train.maths.divergence import forward_kl

    found = []
    student, teacher = (copy.deepcopy(each.module).float().eval() for each in (model, original))
    for row in rows:
        text = original.tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = original.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        found.append(float(forward_kl(student(ids).logits[0], teacher(ids).logits[0]).mean()))
    return found


def over(now: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """How many more problems are answered rightly, over all problems of all seeds."""
    found = paired_interval(now, other)
    return {"mean": found.value, "low": found.low, "high": found.high}


def summary(bench: Bench) -> dict[str, Any]:
    rows = {}
    for start in STARTS:
        cells = {arm: [bench.kept.read(f"{seed}; {start}; {arm}") for seed in SEEDS] for arm in (BEFORE, *ARMS)}
        before = np.concatenate([cell["right"] for cell in cells[BEFORE]]).astype(float)
        first = np.concatenate([cell["original"] for cell in cells[BEFORE]]).astype(float)
        for arm, found in cells.items():
            now = np.concatenate([cell["right"] for cell in found]).astype(float)
            control = np.concatenate([cell["right"] for cell in cells["other problems"]]).astype(float)
            gained, lost = int((now > before).sum()), int((before > now).sum())
            kl = [float(np.mean(cell["kl"])) for cell in found]
            rows[f"{start}; {arm}"] = {
                "original": float(first.mean()),
                "accuracy": float(now.mean()),
                "by_seed": [float(np.mean(cell["right"])) for cell in found],
                "against_before": over(now, before),
                "against_control": over(now, control),
                "mcnemar_p": mcnemar(gained, lost),
                "recovered": float((now.mean() - before.mean()) / max(1e-9, first.mean() - before.mean())),
                "kl": kl,
                "kl_ratio": [a / float(np.mean(b["kl"])) for a, b in zip(kl, cells[BEFORE], strict=True)],
                "about": [cell["about"] for cell in found] if arm == BEFORE else [],
                "cpu_seconds": [cell["cpu_seconds"] for cell in found],
            }
    held = experiment.digest(str([row["question"] for row in measured(0)]))
    return {
        "settings": {"steps": STEPS, "bits": 2, "group_size": GROUP, "asked": ASKED, "measured": MEASURED} | ROW,
        "slices": {"tuning": [], "reporting": [held]},
        "seeds": list(SEEDS),
        "summary": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    lines, faults = [], []
    for name, row in results["summary"].items():
        start, arm = name.split("; ")
        changed = arm != BEFORE
        lines.append(
            [
                f"{start}, {row['original']:.1%} before" if not changed else "",
                arm,
                f"{row['accuracy']:.1%} ({', '.join(f'{one:.1%}' for one in row['by_seed'])})",
                experiment.cell(row["against_before"], "+.3f") if changed else "",
                experiment.cell(row["against_control"], "+.3f") if arm in ("lost problems", "training text") else "",
                f"{row['recovered']:.0%}" if changed else "",
                f"{row['mcnemar_p']:.1g}" if changed else "",
                ", ".join(f"{one:.2f}" for one in row["kl_ratio"]) if changed else "",
            ]
        )
        for seed, about in zip(results["seeds"], row["about"], strict=False):
            funnel, kinds = about["pairs"], {one["fault"]: one for one in about["faults"]}
            found = [kinds.get(kind) for kind in FAULTS]
            told = [f"{one['lost']} at {one['place']:.2f}" if one else "0" for one in found]
            faults.append([start, str(seed), f"{funnel['lost']}", *told, f"{funnel['pairs']}"])
    columns = "rounded by | scales trained on | accuracy (by seed): | against unrepaired (95 %): "
    columns += "| against other problems (95 %): | of the loss: | McNemar p: | KL, times that unrepaired:"
    kinds = " | ".join(f"{kind}, at place:" for kind in FAULTS)
    return {
        "repair": experiment.table(columns, lines),
        "faults": experiment.table(f"rounded by | seed: | lost: | {kinds} | pairs:", faults),
    }


FAULTS = ("execution", "method", "unread")


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    options = command.read()
    torch.set_num_threads(1)
    bench = Bench(options.work)
    if bench.kept.run(bench.names, bench.measure, options.minutes):
        found = summary(bench)
        experiment.record(options.out, __doc__, found)
        for table in tables(found).values():
            print(table)


if __name__ == "__main__":
    main()
