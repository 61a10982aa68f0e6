"""What does each step from an original to a small, tuned and repaired model buy, on three texts and in right answers?

    python benchmarks/small_and_right.py --run runs/small_and_right
    python benchmarks/small_and_right.py --run runs/small_tables --task tables

Takes what `burnish run recipes/small_and_right.yaml` has left, from the directory that it ran in: sizes of files, and
which of the problems that nothing was made of each model answers rightly. The divergence from the original is measured
anew on the windows of the recipe, which keeps means of two of its three texts alone. Every step stands beside the one
that it started from and, where the recipe has one, beside its control: as many steps on other text. Intervals are over
windows and over problems. The task is what the recipe asked: chains, or tables as its comment says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

import burnish
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.statistics import mcnemar, paired_interval

TEXTS = {"text": "WikiText-2 test", "second_text": "chains", "third_text": "tables"}
"""By their settings in the recipe."""
STEPS = {
    "start": ("original", "", ""),
    "small": ("rounded", "start", ""),
    "text_alone": ("tuned on the next tokens alone", "small", ""),
    "tuned": ("tuned", "small", "text_alone"),
    "by_layer": ("tuned layer by layer", "small", "tuned"),
    "longer": ("tuned again on the same text", "tuned", ""),
    "repaired": ("repaired: scales", "tuned", "longer"),
    "adapted": ("repaired: DPO, adapter", "tuned", "longer"),
}
"""{node: what it is called, the node that it started from, its control}."""


def read_run(run: Path) -> dict[str, Any]:
    """Divergences of windows, sizes and right answers of every node."""
    rows = read_rows(run / LEDGER_FILE)
    measured = {row["node"]: row for row in rows if row["row"] == "measurement"}
    protocol = measured["start"]["protocol"]
    windows = {name: protocol[name] for name in ("num_windows", "context")}
    original = burnish.load(measured["start"]["path"], dtype=torch.float32)
    nodes: dict[str, Any] = {}
    for node in STEPS:
        place = run / "nodes" / node if node != "start" else Path(measured["start"]["path"])
        model = burnish.load(place, dtype=torch.float32)
        kl = {}
        for text in TEXTS:
            found = burnish.Evaluate(text=protocol[text], speed=False, **windows)(model, reference=original)
            columns = found.sequences
            kl[text] = [nats / tokens for nats, tokens in zip(columns["kl"], columns["tokens"], strict=True)]
        answers = run / "nodes" / f"{node}_asked" / "rows.jsonl"
        nodes[node] = {
            "kl": kl,
            "bytes": int(measured[node]["metrics"]["bytes_on_disk"]["value"]),
            "right": rights(answers, "model_right") if answers.is_file() else [],
        }
    nodes["start"]["right"] = rights(run / "nodes" / "small_asked" / "rows.jsonl", "original_right")
    texts = [protocol[name] for name in ("tokens_hash", "second_tokens_hash", "third_tokens_hash")]
    made = [row for row in rows if row["row"] == "stage" and "data" in row["parents"]]
    asked = sorted({row["parents"]["data"] for row in made if row["node"].endswith("_asked")})
    used = sorted({row["parents"]["data"] for row in made} - set(asked))
    return {"nodes": nodes, "slices": {"tuning": used, "reporting": [*texts, *asked]}}


def rights(file: Path, column: str) -> list[bool]:
    return [json.loads(line)[column] for line in file.read_text(encoding="utf-8").splitlines()]


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Every step beside the one before it and beside its control."""
    nodes, rows = found["nodes"], {}
    whole = lost(nodes["start"], nodes["small"])
    for node, (_, before, control) in STEPS.items():
        own = nodes[node]
        row: dict[str, Any] = {"bytes": own["bytes"], "kl": {t: float(np.mean(own["kl"][t])) for t in TEXTS}}
        if own["right"]:
            row["right"] = float(np.mean(own["right"]))
            row["recovered"] = 1 - lost(nodes["start"], own) / whole if before and whole else None
        for role, other in (("before", before), ("control", control)):
            if other:
                row[role] = compared(own, nodes[other])
        rows[node] = row
    return {"slices": found["slices"], "problems": len(nodes["start"]["right"]), "rows": rows}


def content(out: Path, task: str, found: dict[str, Any]) -> dict[str, Any]:
    """What is recorded: this task beside those that the results file has."""
    tasks = json.loads(out.read_text(encoding="utf-8"))["tasks"] if out.is_file() else {}
    tasks[task] = found
    uses = ("tuning", "reporting")
    slices = {use: sorted({digest for one in tasks.values() for digest in one["slices"][use]}) for use in uses}
    return {"slices": slices, "tasks": tasks}


def lost(original: dict[str, Any], model: dict[str, Any]) -> float:
    """Share of the problems that the original answers rightly and the model does not, less the reverse."""
    return float(np.mean(original["right"]) - np.mean(model["right"]))


def compared(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Divergences as ratios, and right answers as differences with McNemar's test."""
    ratios = {}
    for text in TEXTS:
        if np.any(other["kl"][text]):  # that of the original from itself is zero
            ratios[text] = bounds(experiment.ratio(own["kl"][text], other["kl"][text]))
    if not (own["right"] and other["right"]):
        return {"kl": ratios}
    now, then = (np.asarray(one["right"], dtype=float) for one in (own, other))
    gained, gone = int((now > then).sum()), int((then > now).sum())
    return {"kl": ratios, "right": bounds(paired_interval(now, then)), "mcnemar_p": mcnemar(gone, gained)}


def bounds(found: Any) -> dict[str, float]:
    return {"mean": found.value, "low": found.low, "high": found.high}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    texts = " | ".join(f"KL, {text}:" for text in TEXTS.values())
    ratios = " | ".join(f"KL, {text} (95 %):" for text in TEXTS.values())
    made = {}
    for task, found in results["tasks"].items():
        made[f"{task}-steps"] = experiment.table(f"model | bytes: | {texts} | right: | of the loss:", steps(found))
        header = f"model | beside | {ratios} | right (95 %): | McNemar p:"
        made[f"{task}-pairs"] = experiment.table(header, pairs(found))
    return made


def steps(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row of every model."""
    for node, row in found["rows"].items():
        recovered = row.get("recovered")
        yield [
            STEPS[node][0],
            f"{row['bytes']:,}",
            *(f"{row['kl'][text]:.3f}" for text in TEXTS),
            f"{row['right']:.1%}" if "right" in row else "",
            f"{recovered:.0%}" if recovered is not None else "",
        ]


def pairs(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row of every model beside the one before it, and beside its control."""
    for node, row in found["rows"].items():
        name, before, control = STEPS[node]
        for role, other in (("before", before), ("control", control)):
            if row.get(role, {}).get("kl"):
                yield [name, STEPS[other][0], *compared_cells(row[role])]


def compared_cells(found: dict[str, Any]) -> list[str]:
    ratios = [experiment.cell(found["kl"][text], ".2f") for text in TEXTS]
    if "right" not in found:
        return [*ratios, "", ""]
    return [*ratios, experiment.cell(found["right"], "+.3f"), f"{found['mcnemar_p']:.1g}"]


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--run", type=Path, required=True, help="a finished run of the recipe")
    command.add_argument("--task", default="chains", help="what the run asked")
    options = command.read()
    found = content(options.out, options.task, summary(read_run(options.run)))
    experiment.record(options.out, __doc__, found)
    for table in tables(found).values():
        print(table)


if __name__ == "__main__":
    main()
