"""Do the margins of DPO, Ada-DPO, R3M-DPO and TRL's other losses tell flipped preference pairs from clean ones?

    python benchmarks/align_dpo.py --data DIR --model DIR --work DIR [--minutes 10]

SmolLM2-135M-Instruct on HH harmless-base test (Bai et al., 2022): conversations of at most 64 tokens, whole, one for
each opening question; 200 pairs are trained on, one pass, with 20 % of the labels flipped at random, three seeds, and
with none, two seeds (our losses and DPO); the next pairs are held out with their labels as given. Each run is a cell of
its own, kept in --work: an interrupted call continues with the next cell. (Planned were 400 pairs of 256 tokens; this
is what an hour of one core allows.)

Measures. Separation: AUC with which a score of the 200 trained pairs tells the flipped ones, after training; scores
are minus the margin, R3M's delta and APS's tau with the sign of the contradiction (ties count half). Accuracy: share of
held-out pairs with a positive margin, and of trained pairs by their labels before the flips. Intervals: bootstrap over
pairs, seeds averaged, paired against DPO.

What is trained: LoRA on the last four of thirty layers. The layers below are frozen and without dropout, so their
output for a token is always the same; it is computed once and looked up where the embedding would be, under a model of
the upper layers that TRL trains like any other. The script measures that both give the same log-probabilities. The
reference's log-probabilities are computed once and shared by all cells. TRL scores every position on a CPU; here it
scores the answers' only, as it does on a GPU, which is measured to be the same.

The other losses are TRL's own through the product's trainers: cDPO and rDPO, which are told the share of flips, IPO,
SLiC's hinge, DPO per token (sigmoid_norm), DPO with the chosen answer's cross-entropy, and KTO on the answers one by
one. After all of them the margin is DPO's, of sums of log-probabilities.

Nothing is tuned but the learning rate: by separation of plain DPO on a slice of its own, then used for all losses.
rho0, tau0, tau_max and lambda 0.75 are those published for dialogue; lambda 0.3 is shown beside it. R3M is not DPO
only for margins below log(1/lambda - 1), -1.1 at 0.75: where no training step of the DPO run saw one, the R3M run of
that seed is the same run, bit for bit, and its cell is copied and marked so instead of computed again.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig
from ranking import auc, spread
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig
from upper_layers import lower_layers, upper_layers

import burnish
from burnish.align.losses import aps, r3m
from burnish.align.maths.noise import uniform
from burnish.align.maths.robust import threshold
from burnish.align.trainers import PairDPOConfig, PairDPOTrainer, StockDPOConfig, StockDPOTrainer, StockKTOTrainer
from burnish.data.preferences import read_pairs

TOKENS, UPPER = 64, 4
TRAINED, TUNING = (4, 4) if experiment.SMOKE else (200, 60)
SEEDS, CLEAN_SEEDS, TUNING_SEED = range(1 if experiment.SMOKE else 3), range(1 if experiment.SMOKE else 2), 100
RATES = (5e-4, 2e-3)
BETA, LAM = 0.1, 0.75
APS = {"rho0": 0.05, "tau0": 0.1, "tau_max": 5.0}
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"pair_loss": "bt"},
    "Ada-DPO": {"pair_loss": "aps", **APS},
    "R3M-DPO 0.75": {"pair_loss": "r3m", "lam": LAM},
    "R3M-DPO 0.3": {"pair_loss": "r3m", "lam": 0.3},
}
OTHERS: dict[str, dict[str, Any]] = {
    "cDPO": {"pair_loss": "bt", "label_smoothing": 0.2},
    "rDPO": {"loss_type": ["robust"], "label_smoothing": 0.2},
    "IPO": {"loss_type": ["ipo"]},
    "hinge (SLiC)": {"loss_type": ["hinge"]},
    "DPO per token": {"loss_type": ["sigmoid_norm"]},
    "DPO and SFT": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
    "KTO": {},
}
"""Baselines, on flipped labels only."""
SCORES = ("margin", "delta", "tau")
DRAWS = 20 if experiment.SMOKE else 2000


# -- data ----------------------------------------------------------------------------------------------------------


def read_slices(directory: Path, tokenizer: Any) -> dict[str, list[dict[str, str]]]:
    """Tuning, trained and held-out pairs; an opening question is in one slice only."""
    taken: dict[str, dict[str, str]] = {}
    for row in read_pairs(directory / "hh_harmless_test.jsonl.gz", on_bad_pair="drop").rows:
        pair = {key: row[key] for key in ("prompt", "chosen", "rejected")}
        lengths = [len(tokenizer(row["prompt"] + row[side])["input_ids"]) + 1 for side in ("chosen", "rejected")]
        if max(lengths) <= TOKENS:
            taken.setdefault(digest(row["prompt"].split("\n\nAssistant:")[0]), pair)
    pairs = [taken[key] for key in sorted(taken)]
    ends = (0, TUNING, TUNING + TRAINED, len(pairs))
    names = ("tuning", "trained", "held out")
    return {name: pairs[start:end] for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)}


def digest(text: str) -> str:
    return experiment.digest(text.strip())[:16]


# -- what is computed once -------------------------------------------------------------------------------------------


def remember(work: Path, model: Any, upper: Any, tokenizer: Any, pairs: list[dict[str, str]]) -> dict[str, Any]:
    """States of all sequences at the cut, the reference's log-probabilities of all pairs, and what the checks gave."""
    kept = work / "states.pt"
    if kept.is_file():
        return torch.load(kept, weights_only=True)
    embedding = upper.model.embed_tokens
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(DPOTrainer, DPOConfig, upper, tokenizer, pairs, Path(scratch), seed=0, rate=0.0)
        batches = [
            trainer.data_collator([trainer.train_dataset[i] for i in range(start, min(start + 8, len(pairs)))])
            for start in range(0, len(pairs), 8)
        ]
        lower = lower_layers(model, UPPER)
        with torch.no_grad():
            for batch in batches:
                ids, mask = batch["input_ids"], batch["attention_mask"]
                states = lower(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                for tokens, row, length in zip(ids.tolist(), states, mask.sum(dim=1).tolist(), strict=True):
                    if length > len(embedding.states.get(embedding.key(tokens), ())):
                        embedding.states[embedding.key(tokens)] = row[:length].clone()
        reference, errors = [], {"upper layers": 0.0, "answers' positions only": 0.0}
        for number, batch in enumerate(batches):
            chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
            reference += zip(chosen.tolist(), rejected.tolist(), strict=True)
            if number % 16 == 0:
                found = torch.cat([chosen, rejected])
                with every_position():
                    stock = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
                passed = {key: batch[key] for key in ("input_ids", "attention_mask")}
                with torch.no_grad():
                    logits = model(**passed, use_cache=False).logits[:, :-1].log_softmax(-1)
                whole = logits.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * batch["completion_mask"][:, 1:]
                for name, (one, other) in zip(errors, ((stock, whole.sum(dim=1)), (found, stock)), strict=True):
                    errors[name] = max(errors[name], ((one - other).abs() / other.abs()).max().item())
    if max(errors.values()) > 1e-4:
        raise SystemExit(f"the upper layers over remembered states are not the same function: {errors}")
    content = {"states": embedding.states, "reference": reference, "errors": errors}
    torch.save(content, kept.with_suffix(".partial"))
    kept.with_suffix(".partial").replace(kept)
    return content


def reader_of(model: Any) -> Callable[[tuple[int, ...]], Tensor]:
    """States of tokens that stand in no pair: KTO sets an answer under another one's question."""
    lower = lower_layers(model, UPPER)

    def read(tokens: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            return lower(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]

    return read


@contextlib.contextmanager
def every_position() -> Iterator[None]:
    """TRL's way on a CPU: the head scores prompts and padding too."""
    ours, trl.trainer.utils._use_triton = trl.trainer.utils._use_triton, lambda device: False
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = ours


# -- cells -----------------------------------------------------------------------------------------------------------


def make_trainer(
    trainer_class: Any,
    config: Any,
    model: Any,
    tokenizer: Any,
    pairs: list[dict[str, Any]],
    directory: Path,
    *,
    seed: int,
    rate: float,
    **settings: Any,
) -> Any:
    machine = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    silent = {"save_strategy": "no", "disable_tqdm": True, "logging_steps": 10}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4}
    batches |= {key: settings.pop(key) for key in batches if key in settings}
    steps = {"learning_rate": rate, "warmup_steps": 0.1, "num_train_epochs": 1, "seed": seed}
    args = config(str(directory), max_length=TOKENS, beta=BETA, **machine, **silent, **batches, **steps, **settings)
    torch.manual_seed(seed)
    return trainer_class(
        model,
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def flipped(pair: dict[str, Any], wrong: bool) -> dict[str, Any]:
    """The pair with its answers, and their reference log-probabilities, exchanged."""
    if not wrong:
        return pair
    swap = {"chosen": "rejected", "rejected": "chosen", "ref_chosen_logps": "ref_rejected_logps"}
    swap |= {other: one for one, other in swap.items()}
    return {key: pair[swap.get(key, key)] for key in pair}


def run_cell(upper: Any, tokenizer: Any, pairs: dict[str, Any], cell: dict[str, Any], scratch: Path) -> dict[str, Any]:
    slice_name = "tuning" if cell["seed"] == TUNING_SEED else "trained"
    trained = pairs[slice_name]
    flips = uniform(len(trained), cell["flipped"], torch.Generator().manual_seed(cell["seed"])).tolist()
    rows = [flipped(pair, wrong) for pair, wrong in zip(trained, flips, strict=True)]
    loss = (METHODS | OTHERS)[cell["method"]]
    choice = {"seed": cell["seed"], "rate": cell["rate"]}
    network = copy.deepcopy(upper)
    if cell["method"] == "KTO":
        network = after_kto(network, tokenizer, rows, scratch, **choice)
        trainer = make_trainer(PairDPOTrainer, PairDPOConfig, network, tokenizer, rows, scratch, **choice)
        found, losses = {"flips": flips, "margins": margins(trainer, rows)}, []
        return cell | found | {"held out": margins(trainer, pairs["held out"]), "losses": losses}
    kinds = (StockDPOTrainer, StockDPOConfig) if "loss_type" in loss else (PairDPOTrainer, PairDPOConfig)
    trainer = make_trainer(*kinds, network, tokenizer, rows, scratch, **choice, **loss)
    trainer.precompute_ref_logps = True  # the pairs bring the reference's log-probabilities along
    lowest = [math.inf]
    margin = trainer._margin

    def watched(outputs: Any, inputs: dict[str, Any]) -> Tensor:
        found = margin(outputs, inputs)
        lowest.append(found.min().item())
        return found

    trainer._margin = watched
    trainer.train()
    trainer._margin = margin
    found = {"lowest": min(lowest), "flips": flips, "margins": margins(trainer, rows)}
    if slice_name == "trained":
        found["held out"] = margins(trainer, pairs["held out"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return cell | found | {"losses": losses}


def after_kto(network: Any, tokenizer: Any, rows: list[dict[str, Any]], scratch: Path, **choice: Any) -> Any:
    """The network after KTO on the answers of the pairs in a drawn order, as many pairs a step as with the others."""
    answers = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(choice["seed"])).tolist()
    mixed = [answers[place] for place in order]
    pairs = {"per_device_train_batch_size": 4}
    trainer = make_trainer(StockKTOTrainer, KTOConfig, network, tokenizer, mixed, scratch, **choice, **pairs)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.__dict__.pop("forward", None)  # TRL's fused head; the next trainer sets its own
    return merged


def margins(trainer: Any, rows: list[dict[str, Any]]) -> list[float]:
    report = trainer.pair_report(Dataset.from_list(rows))
    by_row = dict(zip(report["row"], report["margin"], strict=True))
    return [round(by_row[row], 6) for row in range(len(rows))]


def cells(rate: float) -> list[dict[str, Any]]:
    """The grid; what matters most first, so that a call cut short leaves whole comparisons."""
    grid = [(method, seed, 0.2) for seed in SEEDS for method in (*METHODS, *OTHERS)]
    grid += [(method, seed, 0.0) for seed in CLEAN_SEEDS for method in METHODS]
    return [{"method": method, "seed": seed, "flipped": share, "rate": rate} for method, seed, share in grid]


TUNING_CELLS = [{"method": "DPO", "seed": TUNING_SEED, "flipped": 0.2, "rate": rate} for rate in RATES]


def name_of(cell: dict[str, Any]) -> str:
    return ", ".join(str(cell[key]) for key in ("method", "seed", "flipped", "rate"))


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with hh_harmless_test.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of SmolLM2-135M-Instruct")
    parser.keeps("where states and finished cells are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="measure these now; more calls do the rest")
    arguments = parser.read()
    torch.set_num_threads(1)
    trl.trainer.utils._use_triton = lambda device: True
    runs = experiment.Kept(arguments.work)
    loaded = burnish.load(arguments.model, dtype=torch.float32)
    model: Any = loaded.module
    slices = read_slices(arguments.data, loaded.tokenizer)
    upper = upper_layers(model, UPPER)
    everything = [pair for part in slices.values() for pair in part]
    before = time.process_time()
    kept = remember(arguments.work, model, copy.deepcopy(upper), loaded.tokenizer, everything)
    print(f"states: {time.process_time() - before:.0f} CPU seconds, {kept['errors']}", flush=True)
    upper.model.embed_tokens.states = kept["states"]
    upper.model.embed_tokens.read = reader_of(model)
    pairs: dict[str, Any] = {}
    log_probs = iter(kept["reference"])
    for name, part in slices.items():
        pairs[name] = []
        for pair in part:
            chosen, rejected = next(log_probs)
            pairs[name].append(pair | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})

    def known(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [runs.read(name_of(cell)) for cell in cells if runs.has(name_of(cell))]

    def wanted() -> list[dict[str, Any]]:
        """The search of the rate, and then the grid at the best."""
        tuned = known(TUNING_CELLS)
        if len(tuned) < len(TUNING_CELLS):
            return TUNING_CELLS
        best = max(tuned, key=lambda found: auc(suspicion("margin", found["margins"]), found["flips"]))
        return [*TUNING_CELLS, *cells(best["rate"])]

    def asked() -> list[str]:
        return [name_of(cell) for cell in wanted() if cell["seed"] in (TUNING_SEED, *arguments.seeds)]

    def measure(name: str) -> dict[str, Any]:
        cell = next(cell for cell in wanted() if name_of(cell) == name)
        plain = name_of(cell | {"method": "DPO"})
        if cell["method"].startswith("R3M") and runs.has(plain):
            found = runs.read(plain)
            if found["lowest"] > threshold(METHODS[cell["method"]]["lam"]):
                return found | {"method": cell["method"], "same run as": "DPO", "cpu_seconds": 0.0}
        with tempfile.TemporaryDirectory() as scratch:
            return run_cell(upper, loaded.tokenizer, pairs, cell, Path(scratch))

    runs.run(asked, measure, arguments.minutes)
    done = known(wanted()[len(TUNING_CELLS) :])
    if done:
        content = content_of(slices, known(TUNING_CELLS), done) | {"model": loaded.name}
        content["largest relative difference of an answer's log-probability"] = kept["errors"]
        note = "one thread, shared with other work"
        experiment.record(arguments.out, __doc__, content, note=note, libraries=["trl", "peft"])


# -- measures --------------------------------------------------------------------------------------------------------


def suspicion(score: str, values: Any, lam: float = LAM) -> np.ndarray:
    """The score by which pairs are ranked, larger is more suspicious."""
    margin = torch.tensor(values, dtype=torch.float64)
    if score == "delta":
        return r3m(margin, lam=lam)[1]["delta"].numpy()
    if score == "tau":
        return (-torch.sign(margin) * aps(margin, **APS)[1]["tau"]).numpy()
    return -margin.numpy()


def measures(cell: dict[str, Any], trained: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """All measures of a cell on the pairs numbered by `trained` and `held`, which may repeat."""
    values, wrong = np.array(cell["margins"])[trained], np.array(cell["flips"])[trained]
    outside = np.array(cell["held out"])[held]
    found = {
        "accuracy, held out": 100 * float(np.mean(outside > 0)),
        "accuracy, trained": 100 * float(np.mean((values > 0) != wrong)),
    }
    if wrong.any():
        lam = METHODS.get(cell["method"], {}).get("lam", LAM)
        found |= {f"AUC, {score}": auc(suspicion(score, values, lam), wrong) for score in SCORES}
    return found


def summary(done: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """{method: {measure: mean, interval, and the same of the difference to DPO}} over the seeds that all have."""
    of = {(cell["method"], cell["seed"]): cell for cell in done if cell["flipped"] == share}
    seeds = [seed for seed in SEEDS if ("DPO", seed) in of]
    methods = [method for method in (*METHODS, *OTHERS) if all((method, seed) in of for seed in seeds)]
    if not seeds:
        return {}
    generator = np.random.default_rng(0)
    some = of["DPO", seeds[0]]
    sizes = len(some["margins"]), len(some["held out"])
    samples = [tuple(np.arange(size) for size in sizes)]
    samples += [tuple(generator.integers(size, size=size) for size in sizes) for _ in range(DRAWS)]
    draws: dict[str, dict[str, np.ndarray]] = {}
    for method in methods:
        rows = [[measures(of[method, seed], *sample) for seed in seeds] for sample in samples]
        draws[method] = {name: np.array([np.mean([seed[name] for seed in row]) for row in rows]) for name in rows[0][0]}
    return {
        "seeds": seeds,
        "methods": {
            method: {
                name: spread_of(values) | {"against DPO": spread_of(values - draws["DPO"][name])}
                for name, values in draws[method].items()
            }
            for method in methods
        },
    }


def spread_of(values: np.ndarray) -> dict[str, Any]:
    return spread(values[0], values[1:])


def content_of(slices: dict[str, Any], tuned: list[Any], done: list[Any]) -> dict[str, Any]:
    hashes = {name: sorted(digest(pair["prompt"]) for pair in part) for name, part in slices.items()}
    facts = ("method", "seed", "flipped", "lowest", "same run as")
    kept = ("method", "seed", "flipped", "margins", "held out")
    settings = {"tokens": TOKENS, "upper_layers": UPPER, "beta": BETA, "batch": 4, "epochs": 1, "lora_rank": 16}
    return {
        "data": "HH harmless-base test (anthropics/hh-rlhf, MIT)",
        "slices": {"tuning": hashes["tuning"], "reporting": sorted(hashes["trained"] + hashes["held out"])},
        "settings": settings
        | {"pairs": {name: len(part) for name, part in slices.items()}, "methods": METHODS | OTHERS},
        "tried": [
            {"rate": cell["rate"], "auc": auc(suspicion("margin", cell["margins"]), cell["flips"])} for cell in tuned
        ],
        "rate": done[0]["rate"],
        "cells": {"done": len(done), "of": len(cells(0.0))},
        "flipped 20 %": summary(done, 0.2),
        "flipped 0 %": summary(done, 0.0),
        "lowest margin in training": [{key: cell.get(key) for key in facts} for cell in done],
        "margins": [{key: cell[key] for key in kept} for cell in done if "same run as" not in cell],
        "cpu_seconds": {"cells": sum(cell["cpu_seconds"] for cell in tuned + done)},
    }


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    rule = "95 %, percentile bootstrap"
    separation, accuracy = [], []
    for method, row in results["flipped 20 %"].get("methods", {}).items():
        by = {score: row[f"AUC, {score}"] for score in SCORES}
        gap = "" if method == "DPO" else experiment.cell(by["margin"]["against DPO"], "+.3f")
        shown = {score: experiment.cell(by[score]) for score in SCORES}
        separation.append([method, shown["margin"], gap, shown["delta"], shown["tau"]])
    for share in ("0 %", "20 %"):
        part = results[f"flipped {share}"]
        for method, row in part.get("methods", {}).items():
            outside, inside = row["accuracy, held out"], row["accuracy, trained"]
            gap = "" if method == "DPO" else experiment.cell(outside["against DPO"], "+.1f")
            figures = [experiment.cell(outside, ".1f"), gap, experiment.cell(inside, ".1f")]
            accuracy.append([share, method, len(part["seeds"]), *figures])
    return {
        "separation": experiment.table(
            f"loss | AUC by margin ({rule}) | by margin, against DPO | AUC by delta | AUC by signed tau", separation
        ),
        "accuracy": experiment.table(
            f"flipped | loss | seeds | held-out pairs ordered right, % ({rule}) | against DPO "
            "| trained pairs, true labels (%)",
            accuracy,
        ),
    }


if __name__ == "__main__":
    main()
