"""Tokens per second, as one user sees them: one prompt read at once (prefill), then one token after another (decode).

Greedy, batch one, with a key-value cache, in the engine that is named beside the number. Every repeat does the whole
sequence again; the median is quoted, and the slowest and fastest repeat stand for its spread, because other work on the
machine shifts times in one direction.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from burnish.core.memory import peak_resident_bytes
from burnish.core.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLEAR_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Speed:
    """Tokens per second of every repeat, and the peak memory in bytes while they ran."""

    prefill: list[float]
    decode: list[float]
    peak_memory: int


def median_and_spread(rates: list[float]) -> tuple[float, float, float]:
    """Median, slowest and fastest repeat."""
    return statistics.median(rates), min(rates), max(rates)


@torch.inference_mode()
def measure_speed(
    module: PreTrainedModel,
    prompt: Int[Tensor, " length"],
    *,
    num_decoded: int,
    repeats: int,
    progress: Progress | None = None,
) -> Speed:
    """Prefill and greedy decoding of one sequence.

    Args:
        module: a causal language model in evaluation mode.
        prompt: token ids that are read at once.
        num_decoded: tokens generated after the first, one forward pass each.
        repeats: how often, after one run that warms up and is not counted.
    """
    ids = prompt[None].to(module.device)
    prefill, decode = [], []
    reset_peak_memory(module.device)
    total = (repeats + 1) * (len(prompt) + num_decoded)
    with (progress or Progress(enabled=False)).task("measuring speed", total, "tokens") as task:
        for repeat in range(repeats + 1):
            start = _now(module.device)
            output = module(input_ids=ids, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(dim=-1)
            after_prompt = _now(module.device)
            for _ in range(num_decoded):
                output = module(
                    input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1
                )
                token = output.logits[:, -1:].argmax(dim=-1)
            end = _now(module.device)
            if repeat:
                prefill.append(len(prompt) / (after_prompt - start))
                decode.append(num_decoded / (end - after_prompt))
            task.advance(len(prompt) + num_decoded)
    return Speed(prefill, decode, peak_memory(module.device))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak_memory(device: torch.device) -> None:
    """Forgets earlier peaks: of the device, or of this process where the kernel offers that (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        with contextlib.suppress(PermissionError):  # in some containers; the peak then counts from the start
            CLEAR_PEAK.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated by torch on a GPU; resident in this process, interpreter and libraries included, on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
