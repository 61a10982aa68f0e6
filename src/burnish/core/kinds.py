"""What a node makes, before anybody asks how it is read or changed: its kind, its weights, its plan.

Below checkpoints and stages alike, so that neither needs the other to say what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import prod
from typing import Any


class Kind(StrEnum):
    """What a checkpoint is, or that it is none but data; every kind names the stock class or function that loads it."""

    CAUSAL_LM = "causal-lm"
    CUSTOM_CAUSAL_LM = "custom-causal-lm"
    SEQUENCE_CLASSIFIER = "sequence-classifier"
    ADAPTER = "adapter"
    SPECULATOR = "speculator"
    STEERING = "steering"
    DICTIONARY = "dictionary"
    DATA = "data"


STOCK_LOADER = {
    Kind.CAUSAL_LM: "transformers.AutoModelForCausalLM",
    Kind.CUSTOM_CAUSAL_LM: "transformers.AutoModelForCausalLM",
    Kind.SEQUENCE_CLASSIFIER: "transformers.AutoModelForSequenceClassification",
    Kind.ADAPTER: "peft.PeftModel",
    Kind.SPECULATOR: "vllm (speculative_config)",
    Kind.STEERING: "safetensors.torch.load_file",
    Kind.DICTIONARY: "safetensors.torch.load_file",
    Kind.DATA: "datasets.load_dataset",
}

PREDICTS_TEXT = frozenset({Kind.CAUSAL_LM, Kind.CUSTOM_CAUSAL_LM})
"""The second of a class of ours, which comes with the checkpoint: layers of it cannot be run, cut or left out alone."""


class Weights(StrEnum):
    """How the weights lie on disk: as floating-point matrices, or packed by a quantizer."""

    DENSE = "dense"
    PACKED = "packed"


STREAMED = ("fp8", "mxfp4")
"""Values of `quant_method` whose weights are unpacked a tensor at a time."""
UNPACK = "burnish convert unpack"
"""What does that."""


def packing(config: Any) -> dict[str, Any]:
    """The `quantization_config` of a transformers configuration; empty where it has none."""
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()


@dataclass(frozen=True)
class Plan:
    """What is known of a checkpoint before it exists.

    Attributes:
        config: the transformers configuration (None for kinds that have none).
        kind, weights: as in the lineage file.
        shapes: of its parameters by name; which of them one token uses, `burnish.arch` knows.
        num_bytes: bytes of the weights on disk.
        peak_memory_bytes: the estimate for the stage that makes it.
        seconds: the estimated time of that stage on this machine, None where nothing is known.
        notes: sentences for the plan table.
        carried: tensors that stock loading passes over and that are kept as they are.
        adapter: whether a LoRA adapter lies beside the weights; its bytes are among `num_bytes`.
    """

    config: Any
    kind: Kind
    weights: Weights
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    num_bytes: int
    peak_memory_bytes: int = 0
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    adapter: bool = False

    @property
    def num_parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def with_(self, **changes: Any) -> Plan:
        return replace(self, **changes)

    def of_data(self) -> Plan:
        """The plan of a stage that reads this checkpoint and makes data."""
        return self.with_(config=None, kind=Kind.DATA, weights=Weights.DENSE, shapes={}, num_bytes=0, adapter=False)
