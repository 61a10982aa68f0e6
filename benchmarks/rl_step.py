"""What a step of GRPO costs here and in stock TRL: drawing the answers, and loss with gradient on the same batch.

Both sides are methods of one trainer object, ours and those of TRL's class that it replaces, on the same weights: TRL
draws with `transformers`' generate, ours with `burnish.generate`, at the same temperature. An answer is the first turn
of an episode and is rewarded where it asks the calculator for the right sum; loss and gradient are of one batch that
ours has drawn, once with every row forwarded and once as it is used, without rows whose advantage is zero.
Sides take turns; what is counted is processor seconds, on one thread.

    python benchmarks/rl_step.py --start runs/calculator/nodes/taught
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, cell, ratio, record, table, turns

PROMPTS, ROLLOUTS = (2, 2) if SMOKE else (12, 8)
LONGEST = 16 if SMOKE else 128
ROUNDS = 2 if SMOKE else 9
SIDES = {"drawing": "drawing", "loss": "loss and gradient, every row", "loss_moved": "loss and gradient, as used"}


class AsksRight:
    """1 where the sum stands in what was written."""

    __name__ = "asks_right"

    def __call__(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [float(f'"{prompt[0]["content"]}"' in completion[0]["content"]) for prompt, completion in pairs]


def trainer_of(start: Any, scratch: str, **changes: Any) -> Any:
    from datasets import Dataset

    from burnish.align.envs import SumsEnv
    from burnish.align.grpo_config import SampledGRPOConfig
    from burnish.align.grpo_seam import SampledGRPOTrainer

    env = SumsEnv(PROMPTS, 3)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": PROMPTS * ROLLOUTS,
        "num_generations": ROLLOUTS,
        "max_completion_length": LONGEST,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return SampledGRPOTrainer(
        copy.deepcopy(start.module),
        reward_funcs=[AsksRight()],  # type: ignore[list-item]  # a callable, not a function
        args=SampledGRPOConfig(scratch, **settings | changes),
        train_dataset=Dataset.from_list(env.rows),
        processing_class=copy.deepcopy(start.tokenizer),
    )


def measure(start: Any) -> dict[str, Any]:
    """Seconds of both sides in every round."""
    from trl import GRPOTrainer

    with tempfile.TemporaryDirectory() as scratch:
        ours = trainer_of(start, scratch, skip_unmoved=False)
        ours.model.train()
        ours.current_gradient_accumulation_steps = 1
        rows = [row for row in ours.train_dataset for _ in range(ROLLOUTS)]
        prompts = ours._tokenize_prompts([row["prompt"] for row in rows])[0]
        batch = ours._generate_and_score_completions([{"row": row["row"], "prompt": row["prompt"]} for row in rows])
        lengths = batch["completion_mask"].sum(1)

        def draw(kind: Any) -> Any:
            return lambda: kind._generate_single_turn(ours, prompts, None, {}, ROLLOUTS)

        def learn(kind: Any, skip: bool = False) -> Any:
            def one() -> None:
                ours.args.skip_unmoved = skip
                ours.model.zero_grad()
                kind._compute_loss(ours, ours.model, batch).backward()

            return one

        here = type(ours)
        sides = {
            "drawing ours": draw(here),
            "drawing stock": draw(GRPOTrainer),
            "loss ours": learn(here),
            "loss stock": learn(GRPOTrainer),
            "loss_moved ours": learn(here, skip=True),
        }
        seconds = turns(sides, ROUNDS)
    moved = int((batch["advantages"] != 0).sum())
    return {"seconds": seconds, "moved": moved, "rows": len(rows), "tokens": float(lengths.float().mean())}


def main() -> None:
    command = Command(__file__, __doc__)
    command.add_argument("--start", type=Path, required=True, help="a checkpoint that answers sums")
    arguments = command.read()
    import burnish

    found = measure(burnish.load(arguments.start))
    record(arguments.out, __doc__, found | {"longest": LONGEST}, libraries=("trl",))


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    return {"costs": _costs(results["seconds"])}


def _costs(seconds: dict[str, list[float]]) -> str:
    rows = []
    for key, name in SIDES.items():
        ours, stock = seconds[f"{key} ours"], seconds["drawing stock" if key == "drawing" else "loss stock"]
        rows.append([name, f"{np.median(ours):.2f}", f"{np.median(stock):.2f}", cell(ratio(ours, stock), ".2f")])
    ours, stock = (
        np.add(seconds[f"drawing {side}"], seconds[f"{loss} {side}"])
        for side, loss in (("ours", "loss_moved"), ("stock", "loss"))
    )
    rows.append(["a step", f"{np.median(ours):.2f}", f"{np.median(stock):.2f}", cell(ratio(ours, stock), ".2f")])
    return table("part | CPU seconds here: | stock TRL: | here / stock (95 %, rounds):", rows)


if __name__ == "__main__":
    main()
