"""What does each step of a conversion cost SmolLM2, and how much of that do healing and a short distillation take back?

    python benchmarks/healing.py --model models/smollm2 --work WORK

Runs `recipes/convert_mla.yaml` and `recipes/convert_ladder.yaml`, which calibrate, heal and distil on a mixture of
WikiText-2 valid and Python's standard library, with what was tried beside, and reads from their ledgers
KL(original || node) on windows of WikiText-2 test and of a play, which is like nothing that any step is given; of the
whole conversion also by position in one window of 8,192 tokens. A run
that was stopped goes on; what is finished is not run again.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import experiment
import torch
import yaml
from care import divergence, last_hidden

from burnish.core.checkpoint import load
from burnish.data import read_texts, windows

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("convert_mla", "convert_ladder")
SECOND = "_second"
KINDS = {"": "WikiText-2", SECOND: "a play"}
"""Ends of the names of metrics, and what text they are of."""
BESIDE: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "convert_mla": {
        "shorter": ("distilled", {"from": "healed", "steps": 40, "eval_every": 20, "save_every": 16}),
        "refitted": ("converted", {"refit": True}),
    },
}
"""What else was tried: {recipe: {name: (the node that it is like, settings)}}."""
WHOLE = {"convert_mla": "converted", "convert_ladder": "ladder"}
"""The node with all of the loss, which the others are compared with."""
LONG = 128 if experiment.SMOKE else 8192
"""Tokens of the window in which the conversion's divergence is told by position."""
SMALL: dict[str, dict[str, Any]] = {
    "mla": {"tokens": 2048, "length": 64, "rank": 17, "rope_dim": 16},
    "ladder": {"tokens": 128, "length": 64, "layers": "last:1"},
    "distill": {"context": 64, "steps": 2, "eval_every": 1, "save_every": 1, "only": "*self_attn*"},
    "quantize": {"group_size": 16},
}
"""Of stages, in a smoke run, which any small Llama will do for."""


class Bench(experiment.Kept):
    """Both recipes, run from where their paths begin."""

    def __init__(self, arguments: Any) -> None:
        super().__init__(arguments.work)
        self.work, self.model = arguments.work.resolve(), arguments.model.resolve()

    def names(self) -> tuple[str, ...]:
        return (*RECIPES, "position")

    def by_position(self) -> dict[str, Any]:
        """KL of the whole conversion, in eighths of the window."""
        recipe = RECIPES[0]
        source, made = (
            load(place, dtype=torch.float32) for place in (self.model, self.work / recipe / "nodes" / WHOLE[recipe])
        )
        text = windows(source.tokenizer, read_texts("wikitext2-test"), LONG, max_tokens=LONG)
        hidden, changed = (last_hidden(model.module, text) for model in (source, made))
        eighths = divergence(source.module, hidden, changed)[0]
        return {"eighths": eighths, "slices": {"reporting": [experiment.digest(text)]}}

    def measure(self, name: str) -> dict[str, Any]:
        if name == "position":
            return self.by_position()
        if not (text := ROOT / "runs" / "mixed-text").is_dir():
            runpy.run_path(str(ROOT / "examples" / "mixed_text.py"))["main"](str(text))
        content = with_beside(name, yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()))
        recipe, run = self.work / f"{name}.yaml", self.work / name
        recipe.write_text(yaml.safe_dump(smaller(content) if experiment.SMOKE else content, sort_keys=False))
        command = [sys.executable, "-m", "burnish", "run", recipe, "--start", self.model, "-o", run]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
        return read_run(run)


def with_beside(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A recipe with nodes that differ in some settings from one that it has."""
    nodes = {node["name"]: node for node in content["nodes"]}
    content["nodes"] += [nodes[like] | {"name": new} | changes for new, (like, changes) in BESIDE.get(name, {}).items()]
    return content


def smaller(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe for a smoke run."""
    content["nodes"] = [node for node in content["nodes"] if node["name"] not in ("rope", "rank")]
    for node in content["nodes"]:
        node |= SMALL.get(node["stage"], {})
        node |= {"heal_tokens": 512} if "heal_tokens" in node else {}
    content["evaluate"] |= {"num_windows": 2, "context": 64}
    return content


def read_run(run: Path) -> dict[str, Any]:
    """What the ledger of a run says of its nodes, in the order of the recipe."""
    from burnish.core.ledger import LEDGER_FILE, read_rows

    rows = read_rows(run / LEDGER_FILE)
    measured = {row["checkpoint"]: row for row in rows if row["row"] == "measurement"}
    stages = {row["node"]: row for row in rows if row["row"] == "stage"}
    protocol = next(iter(measured.values()))["protocol"]
    nodes = {}
    for name, row in stages.items():
        metrics = measured[row["checkpoint"]]["metrics"]
        nodes[name] = {
            "stage": row["stage"],
            "trained_on": trained_on(row["settings"]),
            "peak_memory_bytes": row["peak_memory_bytes"],
            "metrics": {
                key: {end: metrics[key][end] for end in ("value", "low", "high")}
                for kind in KINDS
                for key in (f"kl_divergence{kind}", f"perplexity{kind}")
            },
        }
    digests = [protocol["tokens_hash"], protocol["second_tokens_hash"]]
    data = {row["parents"][key] for row in stages.values() for key in ("calibration", "data") if key in row["parents"]}
    settings = {key: protocol[key] for key in ("num_windows", "context")}
    return {"settings": settings, "nodes": nodes, "slices": {"tuning": sorted(data), "reporting": digests}}


def trained_on(settings: dict[str, Any]) -> int:
    """Tokens that a stage trains on, with those that come again."""
    if "steps" in settings:
        return settings["steps"] * settings["batch"] * settings["context"]
    return settings.get("heal_tokens", 0)


def content(bench: Bench) -> dict[str, Any]:
    runs = {name: bench.read(name) for name in RECIPES}
    for run in runs.values():
        del run["cpu_seconds"]  # which were spent in processes of the command
    far = bench.read("position")
    slices = [one.pop("slices") for one in (*runs.values(), far)]
    uses = {use: {digest for one in slices for digest in one.get(use, ())} for use in ("tuning", "reporting")}
    return {
        "settings": runs[RECIPES[0]]["settings"] | {"long": LONG},
        "slices": {use: sorted(digests) for use, digests in uses.items()},
        "runs": runs,
        "by_position": far["eighths"],
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    cells = " | ".join(f"KL, {text} (95 %): | share:" for text in KINDS.values())
    header = f"node | trained on, tokens: | {cells}"
    made = {name: experiment.table(header, rows_of(run["nodes"], WHOLE[name])) for name, run in results["runs"].items()}
    if "by_position" in results:
        titles = ["node", *(f"up to {(number + 1) * results['settings']['long'] // 8:,}:" for number in range(8))]
        row = [f"`{WHOLE[RECIPES[0]]}`", *(f"{value:.3f}" for value in results["by_position"])]
        made["position"] = experiment.table(" | ".join(titles), [row])
    return made


def rows_of(nodes: dict[str, Any], whole: str) -> Iterator[list[Any]]:
    """A row of every node; the shares are of the divergence of the node with all of the loss."""
    for name, node in nodes.items():
        row: list[Any] = [f"`{name}`", f"{node['trained_on']:,}" if node["trained_on"] else ""]
        for kind in KINDS:
            key = f"kl_divergence{kind}"
            found = {"mean" if end == "value" else end: value for end, value in node["metrics"][key].items()}
            row += [experiment.cell(found), f"{found['mean'] / nodes[whole]['metrics'][key]['value']:.2f}"]
        yield row


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("directory of the runs")
    command.add_argument("--model", type=Path, required=True)
    arguments = command.read()
    bench = Bench(arguments)
    experiment.answer(bench, arguments, __doc__, lambda: content(bench), tables)


if __name__ == "__main__":
    main()
