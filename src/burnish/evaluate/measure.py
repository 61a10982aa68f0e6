"""One measurement from start to end: load, check, measure, put in metrics with intervals and a protocol."""

from __future__ import annotations

import copy
import hashlib
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from burnish.core.checkpoint import Model, cast, common_vocabulary, compute_dtype, move, pick_device
from burnish.core.errors import CheckpointError, DataError
from burnish.core.kinds import PREDICTS_TEXT, Weights
from burnish.core.progress import Progress
from burnish.core.statistics import Interval, interval
from burnish.data.read import Data, data_hash, read_texts
from burnish.data.windows import Slice, cut
from burnish.evaluate.evaluation import Evaluation, Metric
from burnish.evaluate.quality import Sequences, measure_quality
from burnish.evaluate.sizes import measure_sizes
from burnish.evaluate.speed import measure_speed, median_and_spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from burnish.core.ledger import Ledger
    from burnish.evaluate.stage import Evaluate

PROTOCOL_VERSION = 2
"""Raised whenever a change here changes numbers."""

DECOMPRESSED = "not measured: transformers decompresses packed weights, so this would be the dense model's"


def measure(
    settings: Evaluate,
    model: Model,
    reference: Model | None,
    *,
    text: Sequence[str] | None = None,
    ledger: Ledger | None = None,
    progress: bool = False,
) -> Evaluation:
    """`Evaluate.__call__` after the reference was resolved; see there."""
    check_kind(model)
    device = pick_device(settings.device)
    dtype = compute_dtype(device) if settings.dtype == "auto" else getattr(torch, settings.dtype)
    settings.check_context(longest_context(model))
    data = text if text is not None else settings.text
    name = settings.text if text is None else "given texts"
    slice_ = windows_of(settings, model, data, where=name)
    further = {ordinal: windows_of(settings, model, one, where=one) for ordinal, one in settings.further_texts.items()}
    checkpoint = model.identity
    against = reference.identity if reference is not None else checkpoint
    compared = None
    if reference is not None and against != checkpoint:
        compared = common_vocabulary(model, reference, role="reference")
    protocol = describe(
        settings,
        text=name,
        text_hash=data_hash(data),
        tokens=slice_.tokens,
        dtype=dtype,
        device=device,
        reference=against,
    )
    for ordinal, one in settings.further_texts.items():
        protocol |= {f"{ordinal}_text": one, f"{ordinal}_tokens_hash": tokens_hash(further[ordinal].tokens)}
    earlier = ledger.measured(checkpoint, protocol) if ledger is not None else None
    if ledger is not None and earlier is not None:
        sequences = ledger.read_sequences(checkpoint, protocol)
        if sequences is not None:
            return Evaluation(earlier["metrics"], sequences, protocol)
    bars = Progress(enabled=progress)
    module = network(model, dtype=dtype, device=device)
    metrics = size_metrics(model, module)
    metrics |= speed_metrics(settings, model, module, slice_, bars)
    if against == checkpoint:
        other = module
    else:
        assert reference is not None
        other = network(reference, dtype=dtype, device=device)
    sequences = measure_quality(module, slice_, reference=other, vocabulary=compared, progress=bars)
    quality = quality_metrics(sequences, own_reference=other is module)
    for ordinal, windows in further.items():
        of_these = measure_quality(module, windows, reference=other, vocabulary=compared, progress=bars)
        found = quality_metrics(of_these, own_reference=other is module)
        quality |= {f"{name}_{ordinal}": value for name, value in found.items()}
    metrics = quality | metrics
    return Evaluation(metrics, sequences, protocol)


# -- what is measured --------------------------------------------------------------------------------------------------


def check_kind(model: Model) -> None:
    """Refuses what predicts no text."""
    if model.lineage.kind not in PREDICTS_TEXT:
        raise CheckpointError(
            f"is a {model.lineage.kind}, and only a causal-lm predicts text", where=str(model.path or "model")
        )


def longest_context(model: Model) -> int | None:
    """Where the model's positions end, None where its configuration knows no end."""
    config = model.config.get_text_config().to_dict()
    return next((config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), None)


def windows_of(settings: Evaluate, model: Model, data: Data, *, where: str) -> Slice:
    """The windows of a text that quality is measured on."""
    return cut(
        model.tokenizer,
        read_texts(data, tokenizer=model.tokenizer),
        settings.context,
        num_windows=settings.num_windows,
        max_chars=settings.max_chars,
        where=where,
    )


def network(model: Model, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The module in the dtype and on the device to compute with; the model itself stays as it is."""
    if "module" in vars(model):
        module = model.module
        if module.dtype == dtype and module.device == torch.device(device):
            return module.eval()
        return move(cast(copy.deepcopy(module), dtype), device).eval()
    return Model(path=model.path, lineage=model.lineage, dtype=dtype, device=device).module


# -- the protocol ------------------------------------------------------------------------------------------------------


def describe(
    settings: Evaluate,
    *,
    text: str,
    text_hash: str,
    tokens: Tensor,
    dtype: torch.dtype,
    device: str,
    reference: str,
) -> dict[str, Any]:
    """Everything that two measurements must share to be comparable.

    A model that was measured without a reference is its own: its divergence is zero, and its row stands beside those of
    the models that were measured against it.
    """
    from importlib.metadata import version

    protocol = {
        "version": PROTOCOL_VERSION,
        "engine": f"transformers {version('transformers')}",
        "text": text,
        "text_hash": text_hash,
        "tokens_hash": tokens_hash(tokens),
        "num_windows": len(tokens),
        "context": tokens.shape[1],
        "tokens": len(tokens) * (tokens.shape[1] - 1),
        "max_chars": settings.max_chars,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "interval": "95 %, Student's t over windows, divergence on its logarithm, agreement on its logit",
        "reference": reference,
        "speed": settings.speed,
    }
    if settings.speed:
        protocol |= {
            "prompt_tokens": settings.prompt_tokens,
            "decode_tokens": settings.decode_tokens,
            "repeats": settings.repeats,
            "batch": 1,
        }
    return protocol


def tokens_hash(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def device_name(device: str) -> str:
    """What computes, as a person would name it."""
    if device.startswith("cuda"):
        return f"cuda ({torch.cuda.get_device_name(device)})"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"cpu ({model or platform.processor() or platform.machine()})"


# -- metrics -----------------------------------------------------------------------------------------------------------


def quality_metrics(sequences: Sequences, *, own_reference: bool) -> dict[str, Metric]:
    """Perplexity, bits per byte, divergence and agreement with 95 % intervals over windows."""
    columns = {name: np.asarray(values) for name, values in sequences.items()}
    nats = interval(columns["nats"], columns["tokens"])
    bits = interval(columns["nats"] / math.log(2), columns["bytes"])
    kl = interval(columns["kl"], columns["tokens"], scale="log")
    agreement = interval(columns["agreeing"], columns["tokens"], scale="logit")
    note = "it is its own reference" if own_reference else ""
    if own_reference:  # not measured, but so by definition
        kl, agreement = Interval(kl.value, kl.value, kl.value), Interval(1.0, 1.0, 1.0)
    return {
        "perplexity": metric(nats.map(math.exp), ""),
        "bits_per_byte": metric(bits, "bit/byte"),
        "kl_divergence": metric(kl, "nat/token", note=note),
        "top1_agreement": metric(agreement, "", note=note),
    }


def speed_metrics(
    settings: Evaluate, model: Model, module: PreTrainedModel, text: Slice, progress: Progress
) -> dict[str, Metric]:
    """Tokens per second and peak memory; of a packed checkpoint, a note in their place."""
    if not settings.speed:
        return {}
    names = {"prefill_speed": "token/s", "decode_speed": "token/s", "peak_memory": "byte"}
    if model.lineage.weights is Weights.PACKED or model.packed:
        return {name: not_measured(unit, DECOMPRESSED) for name, unit in names.items()}
    prompt = text.tokens.reshape(-1)[: settings.prompt_tokens]
    if len(prompt) < settings.prompt_tokens:
        raise DataError(
            f"the windows hold {len(prompt):,} tokens, but the prompt of the speed measurement has "
            f"{settings.prompt_tokens:,}",
            fix="lower prompt_tokens, or measure without speed",
        )
    speed = measure_speed(
        module, prompt, num_decoded=settings.decode_tokens, repeats=settings.repeats, progress=progress
    )
    note = f"median of {settings.repeats}, slowest and fastest as bounds"
    return {
        "prefill_speed": metric(Interval(*median_and_spread(speed.prefill)), "token/s", note=note),
        "decode_speed": metric(Interval(*median_and_spread(speed.decode)), "token/s", note=note),
        "peak_memory": exact(speed.peak_memory, "byte"),
    }


def size_metrics(model: Model, module: PreTrainedModel) -> dict[str, Metric]:
    sizes = measure_sizes(model, module)
    return {
        "bytes_on_disk": exact(sizes.bytes_on_disk, "byte"),
        "weight_bytes_per_token": exact(sizes.weight_bytes_per_token, "byte"),
        "num_parameters": exact(sizes.num_parameters, ""),
        "num_active_parameters": exact(sizes.num_active_parameters, ""),
    }


def metric(interval: Interval, unit: str, *, note: str = "") -> Metric:
    """A value with its bounds; None for bounds that one sequence cannot give."""
    low, high = (None if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    return {"value": interval.value, "low": low, "high": high, "unit": unit, "note": note}


def exact(value: int, unit: str) -> Metric:
    return {"value": value, "low": None, "high": None, "unit": unit, "note": ""}


def not_measured(unit: str, note: str) -> Metric:
    return {"value": None, "low": None, "high": None, "unit": unit, "note": note}
