"""What do a single answer and a vote of four give on a model that does not reason?

    python benchmarks/reason_null.py --model models/smollm2 --data gsm8k_test.jsonl --work runs/reason-null

SmolLM2-135M-Instruct on the first 24 problems of GSM8K's test split (`question`, `answer`), through `burnish reason
serve --local` and the harness, at temperature 0.7, at most 128 tokens an answer. It is there to show that no strategy
makes an answer that a model cannot write: a null row, and no claim. Nothing is tuned.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import experiment
import numpy as np
import reason_tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

STRATEGIES = ("direct", "self-consistency:2") if experiment.SMOKE else ("direct", "self-consistency:4")
PROBLEMS, TOKENS = (2, 8) if experiment.SMOKE else (24, 128)


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", type=Path, default=Path("models/smollm2"), help="the checkpoint")
    command.add_argument("--data", type=Path, required=True, help="problems as JSON lines")
    command.add_argument("--work", type=Path, required=True, help="the run is kept here")
    options = command.read()
    problems = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()[:PROBLEMS]]
    rows = measured(problems, options.model, options.work)
    slices = {"tuning": [], "reporting": [experiment.digest(json.dumps(problems))]}
    settings = {"problems": PROBLEMS, "max_tokens": TOKENS, "temperature": 0.7, "model": options.model.name}
    experiment.record(options.out, __doc__, {"slices": slices, "settings": settings, "strategies": rows})


def measured(problems: Sequence[dict[str, Any]], model: Path, work: Path) -> list[dict[str, Any]]:
    """Of every strategy its accuracy, and its tokens a problem."""
    from burnish.reason import JournalReader
    from burnish.reason.harness import run
    from burnish.verify import verifier

    sampling = {"temperature": 0.7, "max_tokens": TOKENS}
    with verifier("number") as number, reason_tiny.serving(model, "smollm2", sampling) as endpoint:
        run(problems, number, list(STRATEGIES), [endpoint], work, seed=0)
    reader = JournalReader(work)
    records = list(reader.records().values())
    reader.close()
    rows = []
    for name in dict.fromkeys(record["strategy"] for record in records):
        mine = [record for record in records if record["strategy"] == name]
        tokens = [sum(used["prompt"] + used["completion"] for used in one["used"].values()) for one in mine]
        right = np.array([one["score"] for one in mine])
        answered = float(np.mean([one["answer"] is not None for one in mine]))
        accuracy = reason_tiny.as_dict(right)
        rows.append({"strategy": name, "accuracy": accuracy, "answered": answered, "tokens": float(np.mean(tokens))})
    return rows


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the page."""
    header = "strategy | right (95 %): | gave an answer: | tokens a problem:"
    rows = [
        [
            reason_tiny.short(row["strategy"]),
            experiment.cell(row["accuracy"]),
            f"{row['answered']:.0%}",
            f"{row['tokens']:,.0f}",
        ]
        for row in results["strategies"]
    ]
    return {"null": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
