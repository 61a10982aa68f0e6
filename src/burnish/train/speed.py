"""How much of a device a training uses: tokens and floating-point operations per second, and their share of the peak.

A token costs 6 operations for every weight that it is multiplied with (2 forward, 4 backward; 4 in all where the weight
is frozen and only adapters learn), and 12 L d T for attention over T tokens in L layers of width d
(PaLM, 2022, arXiv:2204.02311, appendix B). What activation checkpointing computes twice is not counted, so the share
is that of useful work (MFU). Peaks are those of dense bfloat16 products in the makers' data sheets; of a device that is
not listed, and of float32 products, the peak is unknown and no share is made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from burnish import arch

PEAK_BFLOAT16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A40": 150e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Operations per second by a part of the name that CUDA gives; the first that fits counts."""


@dataclass(frozen=True)
class Throughput:
    """What a token costs, and what the device of this process can do.

    Attributes:
        flops_per_token: floating-point operations of forward and backward pass.
        peak: operations per second; None where it is not known.
    """

    flops_per_token: float
    peak: float | None = None

    def row(self, tokens_per_second: float) -> dict[str, float]:
        """For the loss table, of one device."""
        flops = tokens_per_second * self.flops_per_token
        return {"flops_per_second": flops} | ({"mfu": flops / self.peak} if self.peak else {})

    def words(self, tokens_per_second: float) -> str:
        """For the log."""
        row = self.row(tokens_per_second)
        share = f"{row['mfu']:.1%} of the device" if self.peak else "share of the device unknown"
        return f"{tokens_per_second:,.0f} tokens/s per device, {row['flops_per_second'] / 1e9:,.1f} GFLOP/s, {share}"


def speed_of(model: Any, context: int, *, device: str, precision: str) -> Throughput:
    """The speed of a causal language model in training.

    Args:
        model: as it is trained, with its adapters; frozen matrices have no gradient.
        context: tokens of a row.
        device, precision: as in the loop.
    """
    config = model.config.get_text_config()
    used = arch.share_used(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    operations = 0.0
    for name, parameter in model.named_parameters():
        looked_up = parameter is embedding and (head is None or head.weight is not embedding)
        if parameter.ndim < 2 or looked_up:
            continue
        share = used if arch.is_routed(name) else 1.0
        operations += (6 if parameter.requires_grad else 4) * share * parameter.numel()
    attention = 12 * config.num_hidden_layers * config.hidden_size * context
    return Throughput(operations + attention, peak_of(device, precision))


def peak_of(device: str, precision: str) -> float | None:
    """Operations per second of a device in this precision, None where that is not known."""
    if not device.startswith("cuda") or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BFLOAT16.items() if part in name), None)
