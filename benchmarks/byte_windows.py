"""Losses of byte-level models on windows of a held-out text; every fourth window chooses, the rest is reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

LENGTH, WINDOWS = 128, 320


class Measured:
    """What has been measured, one file for each name, so that a benchmark can be stopped at any time."""

    def __init__(self, work: Path) -> None:
        self.directory = work / "measured"
        self.directory.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        return self.directory / (name.replace(", ", "-").replace(" ", "_") + ".json")

    def read(self, name: str) -> dict[str, Any]:
        return json.loads(self.file(name).read_text())


def window_losses(model: Any, text: str) -> dict[str, Any]:
    """Nats per byte of every window, and the number of parameters."""
    import torch

    module = model.module.eval()
    values = []
    with torch.no_grad():
        for ids in windows(model.tokenizer, text).split(64):
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            values += loss.view(len(ids), -1).mean(1).tolist()
    return {
        "losses": [round(value, 5) for value in values],
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def windows(tokenizer: Any, text: str) -> Any:
    """At equal distances in the text."""
    import torch

    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[:: len(rows) // WINDOWS][:WINDOWS]


def is_tuning(window: int) -> bool:
    return window % 4 == 0


def reported_windows() -> list[int]:
    return [window for window in range(WINDOWS) if not is_tuning(window)]


def mean(losses: list[float], *, tuning: bool) -> float:
    chosen = [value for window, value in enumerate(losses) if is_tuning(window) == tuning]
    return sum(chosen) / len(chosen)


def slices(tokenizer: Any, text: str) -> dict[str, list[str]]:
    """sha256 of the windows that choose and of those that are reported."""
    rows = windows(tokenizer, text)
    parts = {"tuning": [window for window in range(WINDOWS) if is_tuning(window)], "reporting": reported_windows()}
    return {kind: [hashlib.sha256(rows[part].numpy().tobytes()).hexdigest()] for kind, part in parts.items()}
