"""What the benchmarks of byte-level models share: WikiText-2 valid to train on, windows of its test text to measure on.

Every fourth window chooses, the rest is reported. Losses are nats per byte of every window; a difference between two
ways is paired over windows, each window's loss the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import experiment
import numpy as np

from burnish.core.statistics import paired_interval

SEEDS = (0, 1, 2)
LENGTH, WINDOWS, BATCH = 128, 320, 8
TUNING = np.arange(WINDOWS) % 4 == 0


class Bench(experiment.Kept):
    """Models made from one text and measured on another; for a smoke run on eight windows and of one seed."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        from burnish.data import read_texts

        super().__init__(work)
        self.work, self.smoke, self.num_windows = work, smoke, 8 if smoke else WINDOWS
        self.seeds = SEEDS[:1] if smoke else SEEDS
        self.train_text, self.test_text = (read_texts(f"wikitext2-{part}")[0] for part in ("valid", "test"))

    def start(self, config: dict[str, Any], seed: int) -> Any:
        """Random weights; every byte is a token, and so is the end of a text."""
        from burnish.train.scratch import initialise

        return initialise(config, tokenizer="bpe:257", texts=[self.train_text], seed=seed)

    def training(self, seed: int, steps: int, lr: float) -> dict[str, Any]:
        settings: dict[str, Any] = {"optimizer": "adamw", "lr": lr, "steps": steps, "batch": BATCH, "context": LENGTH}
        return settings | {"final_lr": 0.1, "seed": seed, "save_every": 25}

    def train(self, model: Any, seed: int, steps: int, lr: float, place: Path | None = None) -> Any:
        """The model trained on; with a `place` it is kept there, and an interrupted training goes on."""
        import burnish

        stage = burnish.Train(**self.training(seed, steps, lr))
        if place is None:
            return stage(model, data=[self.train_text])
        if not place.is_dir():
            state = place.with_name(f"{place.name}-state")
            stage(model, data=[self.train_text], work_dir=state).save(place)
        return burnish.load(place)

    def losses(self, model: Any) -> dict[str, Any]:
        """Nats per byte of every window, and the number of parameters."""
        import torch

        module, values = model.module.eval(), []
        with torch.no_grad():
            for ids in windows(model.tokenizer, self.test_text, self.num_windows).split(64):
                logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
                values += loss.view(len(ids), -1).mean(1).tolist()
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return {"losses": [round(value, 5) for value in values], "parameters": parameters}

    def tuning_loss(self, name: str) -> float:
        return float(np.array(self.read(name)["losses"])[TUNING[: self.num_windows]].mean())

    def runs(self, names: list[str]) -> list[dict[str, Any]]:
        return [self.read(name) for name in names]

    def reported(self, names: list[str]) -> np.ndarray:
        """Losses of the same way with several seeds on the windows that are reported, [seeds, windows]."""
        return np.array([run["losses"] for run in self.runs(names)])[:, ~TUNING[: self.num_windows]]


Measuring = TypeVar("Measuring", bound=Bench)


def windows(tokenizer: Any, text: str, count: int = WINDOWS) -> Any:
    """At equal distances in the text."""
    import torch

    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[:: len(rows) // count][:count]


def slices(tokenizer: Any, text: str) -> dict[str, list[str]]:
    """sha256 of the windows that choose, of those that are reported, and of the text that is trained on."""
    from burnish.data import data_hash

    rows = windows(tokenizer, text).numpy()
    parts = {"tuning": rows[TUNING], "reporting": rows[~TUNING]}
    return {kind: [experiment.digest(part)] for kind, part in parts.items()} | {
        "training": [data_hash("wikitext2-valid")]
    }


def against(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The difference of two ways' reported losses, [seeds, windows] each."""
    found = paired_interval(ours.mean(0), theirs.mean(0))
    by_seed = (ours - theirs).mean(1).tolist()
    return {"mean": found.value, "low": found.low, "high": found.high, "by_seed": by_seed, "rule": "Student's t"}


def main(script: str, text: str, bench: type[Measuring], summary: Callable[[Measuring], dict[str, Any]]) -> None:
    """The command of a benchmark: what is missing is measured, and at the end all of it recorded.

    Args:
        script, text: its file and docstring.
        bench: what measures; `names` and `measure` are called.
        summary: of what has been measured, for the JSON.
    """
    import torch

    command = experiment.Command(script, text)
    command.keeps("directory of models and of what has been measured")
    arguments = command.read()
    torch.set_num_threads(1)
    measuring = bench(Path(arguments.work), smoke=arguments.smoke)
    if measuring.run(measuring.names, measuring.measure, arguments.minutes):
        note = "one thread, shared with other work; CPU times only"
        experiment.record(arguments.out, text, summary(measuring), note=note)
