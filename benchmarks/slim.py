"""Slimming against dropping experts on a small mixture trained on real text: before and after distillation.

    python benchmarks/slim.py --seeds 0 1 2

Question: at equal parameters, what does each way of cutting a mixture cost in held-out loss, and does it survive an
equal budget of distillation? Teacher: byte-level OLMoE (8 experts of width 128, top-2, 3 layers, hidden 96), trained
with the training loop and the load-balancing loss on the shipped WikiText-2 validation text. Scores are calibrated on
that text too; every loss is measured on windows of the WikiText-2 test text. Nothing was tuned. Intervals are over
windows, paired, each the mean over seeds (bootstrap over windows). Seeds that the results hold already are kept, so
that they can be run one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "slim.json"
SIZES = {"half": (64, 4), "a quarter": (32, 2)}
"""Expert width, or number of experts, of the same number of expert parameters."""
NARROW = ("fisher", "taylor", "energy", "magnitude", "random")
DROP = ("reap", "random")
ENDS = (", half", ", a quarter", ", a quarter, distilled")
LENGTH, BATCH, CALIBRATION = 128, 12, 8192


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of the teacher's training")
    parser.add_argument("--recovery", type=int, default=60, help="distillation steps in all, however many stages")
    parser.add_argument("--windows", type=int, default=128, help="held-out windows of 128 bytes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = earlier_runs(args)
    for seed in args.seeds:
        started = time.process_time()
        run = one_seed(seed, args)
        runs = [other for other in runs if other["seed"] != seed]
        runs.append(run | {"seed": seed, "cpu_seconds": round(time.process_time() - started)})
        write(runs, args)


def one_seed(seed: int, args: argparse.Namespace) -> dict:
    import torch

    from burnish.core.checkpoint import Model
    from burnish.data import read_texts
    from burnish.slim.stage import Slim

    train_text, test_text = (read_texts(f"wikitext2-{part}")[0] for part in ("valid", "test"))
    rows = Bytes(train_text)
    held_out = Bytes(test_text).spread(args.windows)
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    teacher = new_model(width=128, num_experts=8)
    train(teacher, rows, args.steps, seed, teacher=None, lr=3e-3)
    losses: dict[str, list[float]] = {"teacher": window_losses(teacher, held_out)}
    model = Model(module=teacher, tokenizer=tokenizer)
    common = {"seed": seed, "tokens": CALIBRATION, "length": LENGTH, "allow_unseen": True}

    def slim(model: Model, **settings) -> object:
        inputs = {"teacher": settings.pop("given")} if "given" in settings else {}
        return Slim(**settings, **common)(model, calibration=[train_text[: 4 * CALIBRATION]], **inputs).module

    report(seed, "teacher", losses)
    cut = {}
    for size, (width, num_experts) in SIZES.items():
        for score in NARROW:
            cut[f"narrow, {score}, {size}"] = slim(model, width=width, score=score)
        cut[f"narrow, fisher, refit, {size}"] = slim(model, width=width, score="fisher", refit=True)
        for score in DROP:
            cut[f"drop, {score}, {size}"] = slim(model, method="drop", num_experts=num_experts, score=score)
    for name, module in cut.items():
        losses[name] = window_losses(module, held_out)
        report(seed, name, losses)
    # Recovery at a quarter, the same number of distillation steps for all.
    for name in ("narrow, fisher", "narrow, random", "drop, reap"):
        student = cut[f"{name}, a quarter"]
        train(student, rows, args.recovery, seed, teacher=teacher, lr=1e-3)
        losses[f"{name}, a quarter, distilled"] = window_losses(student, held_out)
        report(seed, f"{name}, a quarter, distilled", losses)
    first = cut["narrow, fisher, half"]
    train(first, rows, args.recovery // 2, seed, teacher=teacher, lr=1e-3)
    half = Model(module=first, tokenizer=tokenizer)
    second = slim(half, width=32, score="fisher", labels="teacher", teacher="teacher", given=model)
    train(second, rows, args.recovery - args.recovery // 2, seed + 1, teacher=teacher, lr=1e-3)
    losses["narrow, fisher, a quarter, distilled in two stages"] = window_losses(second, held_out)
    torch.manual_seed(seed)
    scratch = new_model(width=32, num_experts=8)
    train(scratch, rows, args.recovery, seed, teacher=teacher, lr=3e-3)
    losses["from scratch, a quarter, distilled"] = window_losses(scratch, held_out)
    report(seed, "narrow, fisher, a quarter, distilled in two stages", losses)
    report(seed, "from scratch, a quarter, distilled", losses)
    sizes = {
        "teacher": count(teacher),
        "half": count(cut["narrow, fisher, half"]),
        "a quarter": count(cut["narrow, fisher, a quarter"]),
        "half, dropped": count(cut["drop, reap, half"]),
        "a quarter, dropped": count(cut["drop, reap, a quarter"]),
    }
    rounded = {name: [round(value, 5) for value in values] for name, values in losses.items()}
    return {"losses": rounded, "parameters": sizes}


def settings_of(args: argparse.Namespace) -> dict:
    given = {"steps": args.steps, "recovery": args.recovery, "windows": args.windows}
    return given | {"length": LENGTH, "batch": BATCH, "calibration_tokens": CALIBRATION, "lr": [3e-3, 1e-3]}


def earlier_runs(args: argparse.Namespace) -> list[dict]:
    """Those of the same settings."""
    if not RESULTS.is_file():
        return []
    results = json.loads(RESULTS.read_text())
    return results["runs"] if results["settings"] == settings_of(args) else []


def report(seed: int, name: str, losses: dict[str, list[float]]) -> None:
    print(f"seed {seed}: {name}: {sum(losses[name]) / len(losses[name]):.4f}", file=sys.stderr, flush=True)


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def new_model(width: int, num_experts: int):
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=256,
            hidden_size=96,
            intermediate_size=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_experts=num_experts,
            num_experts_per_tok=2,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            router_aux_loss_coef=0.01,
        )
    )


def byte_tokenizer():
    """A stock tokenizer that gives every byte its own id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Bytes:
    """Rows of `LENGTH` bytes for the training loop."""

    def __init__(self, text: str = "") -> None:
        import torch

        ids = torch.tensor(byte_tokenizer()(text, verbose=False)["input_ids"] if text else [], dtype=torch.long)
        self.rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        import hashlib

        return hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()

    def take(self, rows: list[int]) -> dict:
        import torch

        ids = self.rows[rows]
        return {"input_ids": ids, "targets": torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)}

    def spread(self, count: int) -> Bytes:
        """`count` rows at equal distances."""
        part = Bytes()
        part.rows = self.rows[:: len(self.rows) // count][:count]
        return part


def train(module, rows: Bytes, steps: int, seed: int, *, teacher, lr: float) -> None:
    import tempfile

    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.distill.losses import Distillation
    from burnish.optim import OPTIMIZERS
    from burnish.train.loop import Loop, fit
    from burnish.train.losses import balanced_loss
    from burnish.train.maths.schedule import Schedule

    loss = balanced_loss(0.01) if teacher is None else Distillation(teacher.eval(), alpha=0.9, balance=0.01)
    optimizer = OPTIMIZERS["adamw"].for_model(module, lr, weight_decay=0.1, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        ctx = Context({}, Path(scratch), "cpu", seeded_generator(seed), Progress(enabled=False), Ledger(None))
        loop = Loop(steps, BATCH, schedule=Schedule("cosine", 0.05, 0.1, 0.2), save_every=0, seed=seed)
        fit(module, rows, loss, optimizer, ctx, loop)
    module.eval()


def window_losses(module, held_out: Bytes) -> list[float]:
    """Nats per byte of every held-out window."""
    import torch

    module.eval()
    values = []
    with torch.no_grad():
        for ids in held_out.rows.split(64):
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            values += loss.view(len(ids), -1).mean(1).tolist()
    return values


def write(runs: list[dict], args: argparse.Namespace) -> None:
    import datetime
    import platform

    import numpy as np
    import torch
    import transformers

    from burnish.data import data_hash

    runs.sort(key=lambda run: run["seed"])
    generator = np.random.default_rng(0)
    teacher = np.array([run["losses"]["teacher"] for run in runs])
    picks = generator.integers(0, teacher.shape[1], (2000, teacher.shape[1]))
    summary = {}
    for name in runs[0]["losses"]:
        values = np.array([run["losses"][name] for run in runs])
        # of the same size, distilled if this one is
        fisher = next(
            (f"narrow, fisher{end}" for end in ENDS if name.removesuffix(" in two stages").endswith(end)), name
        )
        row = {"loss": values.mean(), "by_seed": values.mean(1).tolist()}
        for label, other in (("above_teacher", "teacher"), ("above_fisher", fisher)):
            if name != other:
                difference = (values - np.array([run["losses"][other] for run in runs])).mean(0)
                low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
                row[label] = {"mean": difference.mean(), "low": low, "high": high}
        summary[name] = row
    content = {
        "machine": f"{platform.machine()}, one thread, shared with other work; CPU times only",
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": settings_of(args),
        "slices": {
            "tuning": [],
            "reporting": [data_hash("wikitext2-test")],
            "training": [data_hash("wikitext2-valid")],
        },
        "parameters": runs[0]["parameters"],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
        "seeds": [run["seed"] for run in runs],
        "summary": summary,
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content) + "\n")


def tables(results: dict) -> dict[str, str]:
    """Markdown tables for the documentation."""
    summary, parameters = results["summary"], results["parameters"]
    note = f"{len(results['seeds'])} seeds, nats per byte; teacher {summary['teacher']['loss']:.3f}"

    def cell(name: str, key: str = "") -> str:
        row = summary[name]
        if not key:
            return f"{row['loss']:.3f}"
        part = row.get(key)
        return f"{part['mean']:+.3f} [{part['low']:+.3f}, {part['high']:+.3f}]" if part else ""

    lines = [
        f"| {note} | half of the expert parameters | against fisher | a quarter | against fisher |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    kinds = [name.removesuffix(", half") for name in summary if name.endswith(", half")]
    for kind in sorted(kinds, key=lambda kind: summary[f"{kind}, a quarter"]["loss"]):
        cells = [cell(f"{kind}, {size}", key) for size in ("half", "a quarter") for key in ("", "above_fisher")]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    recovery = [
        f"| a quarter, {results['settings']['recovery']} steps of distillation | loss | against one-stage fisher |",
        "| --- | ---: | ---: |",
    ]
    distilled = [name for name in summary if "distilled" in name]
    for name in sorted(distilled, key=lambda name: summary[name]["loss"]):
        short = name.replace(", a quarter", "").replace(", distilled", "", 1)
        recovery.append(f"| {short} | {cell(name)} | {cell(name, 'above_fisher')} |")
    sizes = ["| model | parameters |", "| --- | ---: |"]
    sizes += [f"| {name} | {value:,} |" for name, value in parameters.items()]
    return {"before": "\n".join(lines), "after": "\n".join(recovery), "sizes": "\n".join(sizes)}


if __name__ == "__main__":
    main()
