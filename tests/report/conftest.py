"""Runs to report on: written by the real `Ledger`, with the sizes and spreads of a 135 M parameter model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.core.ledger import Ledger

NUM_WINDOWS, TOKENS, BYTES = 20, 1023, 4600
START_NATS = 3.02
PROTOCOL = {
    "version": 1,
    "engine": "transformers 5.17.0",
    "text": "wikitext2-test",
    "text_hash": hashlib.sha256(b"text").hexdigest(),
    "num_windows": NUM_WINDOWS,
    "context": 1024,
    "tokens": NUM_WINDOWS * TOKENS,
    "dtype": "float32",
    "device": "cpu (Example CPU)",
    "threads": 1,
    "prompt_tokens": 512,
    "repeats": 3,
}
DECOMPRESSED = "not measured: transformers decompresses packed weights, so this would be the dense model's"


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class Made:
    """A node of a made-up run and what a measurement finds.

    Attributes:
        nats: how much worse than the start, per token; `spread` is that of this difference between sequences.
        packed: measured decompressed, so its speed is not.
        content: stands for the weights, where two nodes have the same; by default the name.
    """

    name: str
    parent: str = "start"
    stage: str = "quantize"
    settings: dict[str, Any] = field(default_factory=dict)
    status: str = "finished"
    nats: float = 0.0
    spread: float = 0.03
    kl: float = 0.0
    agree: float = 1.0
    size: float = 269.1e6
    packed: bool = False
    speed: float = 21.0
    seconds: float | None = 60.0
    protocol: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    content: str = ""


NODES = [
    Made(
        "nearest 3 bit",
        settings={"method": "rtn", "bits": 3, "group_size": 64, "seed": 0},
        nats=1.86, spread=0.16, kl=1.81, agree=0.46, size=79.4e6, packed=True, seconds=14.2,
    ),
    Made(
        "yaqa 3 bit",
        settings={"method": "yaqa", "bits": 3, "group_size": 64, "seed": 0},
        nats=0.214, spread=0.05, kl=0.226, agree=0.772, size=79.4e6, packed=True, seconds=431.0,
    ),
    Made(
        "yaqa 4 bit",
        settings={"method": "yaqa", "bits": 4, "group_size": 64, "seed": 0},
        nats=0.041, spread=0.02, kl=0.046, agree=0.893, size=96.2e6, packed=True, seconds=447.0,
    ),
    Made(
        "healed",
        parent="yaqa 3 bit",
        stage="distill",
        settings={"steps": 300, "lr": 2e-4, "teacher": "start", "seed": 0},
        nats=0.108, spread=0.04, kl=0.131, agree=0.823, size=79.9e6, packed=True, seconds=1284.0,
    ),
]  # fmt: skip


def hash_of(node: Made) -> str:
    """Of its weights: nodes of one size and loss hold the same only where their content is named alike."""
    return digest(f"{node.content or node.name} {node.size} {node.nats}")


def sequences(node: Made) -> dict[str, list[float]]:
    """Per-sequence sums: a text's difficulty is common to every checkpoint, a node adds its own difference."""
    hard = np.random.default_rng(0).normal(START_NATS, 0.25, NUM_WINDOWS)
    own = np.random.default_rng(int(digest(node.name)[:8], 16)).normal(0, 1, NUM_WINDOWS)
    own -= own.mean()
    kl = np.maximum(node.kl + 0.15 * node.kl * own, 0.0)
    return {
        "tokens": [float(TOKENS)] * NUM_WINDOWS,
        "bytes": [float(BYTES)] * NUM_WINDOWS,
        "nats": ((hard + node.nats + node.spread * own) * TOKENS).tolist(),
        "kl": (kl * TOKENS).tolist(),
        "agreeing": [round(node.agree * TOKENS)] * NUM_WINDOWS,
    }


def metrics(node: Made, columns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """As an evaluation would summarise these sequences, with normal intervals."""

    def one(value: float | None, half: float | None = None, unit: str = "", note: str = "") -> dict[str, Any]:
        low, high = (value - half, value + half) if value is not None and half is not None else (None, None)
        return {"value": value, "low": low, "high": high, "unit": unit, "note": note}

    tokens = np.array(columns["tokens"])
    nats, kl = np.array(columns["nats"]) / tokens, np.array(columns["kl"]) / tokens
    half, kl_half = (1.96 * x.std(ddof=1) / math.sqrt(NUM_WINDOWS) for x in (nats, kl))
    perplexity = math.exp(nats.mean())
    bits = nats.mean() * TOKENS / BYTES / math.log(2)
    own = "it is its own reference" if node.name == "start" else ""
    timed = "median of 3, slowest and fastest as bounds"
    found = {
        "perplexity": one(perplexity) | {"low": math.exp(nats.mean() - half), "high": math.exp(nats.mean() + half)},
        "bits_per_byte": one(bits, bits * half / nats.mean(), "bit/byte"),
        "kl_divergence": one(kl.mean(), kl_half, "nat/token", own),
        "top1_agreement": one(node.agree, 0.006 if node.agree < 1 else 0.0, "", own),
        "bytes_on_disk": one(node.size, unit="byte"),
        "weight_bytes_per_token": one(node.size, unit="byte"),
        "num_parameters": one(134_515_008),
        "num_active_parameters": one(134_515_008),
    }
    if node.packed:
        speeds = {"prefill_speed": one(None, unit="token/s", note=DECOMPRESSED)}
        speeds["decode_speed"] = one(None, unit="token/s", note=DECOMPRESSED)
        speeds["peak_memory"] = one(None, unit="byte", note=DECOMPRESSED)
    else:
        speeds = {"prefill_speed": one(412.0, 9.0, "token/s", timed)}
        speeds["decode_speed"] = one(node.speed, 0.4, "token/s", timed)
        speeds["peak_memory"] = one(1.31e9, unit="byte")
    return found | speeds


def layer_rows(scale: float, num_layers: int = 30) -> list[dict[str, Any]]:
    roles = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    roles += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    rng = np.random.default_rng(7)
    return [
        {
            "name": f"model.layers.{layer}.{role}",
            "relative_error": float(scale * (1 + 0.6 * index / 7) * rng.uniform(0.7, 1.3) * (2 if layer < 2 else 1)),
            "proxy": float(rng.uniform(1e-4, 3e-2)),
            "shape": [576, 576],
            "bits": 3,
        }
        for layer in range(num_layers)
        for index, role in enumerate(roles)
    ]


def loss_rows(num_steps: int = 300) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [
        {
            "step": step,
            "loss": 0.11 + 0.2 * math.exp(-step / 60) + 0.012 * rng.standard_normal(),
            "lr": 2e-4 * min(step / 20, (num_steps - step) / num_steps),
        }
        for step in range(1, num_steps + 1)
    ]


def calibration_rows() -> list[dict[str, Any]]:
    found = []
    for method, floor, slope in (("gptq", 0.27, 9.0), ("yaqa", 0.22, 14.0)):
        for tokens in (2048, 4096, 8192, 16384, 32768, 65536):
            kl = floor + slope / math.sqrt(tokens)
            found.append({"tokens": tokens, "kl": kl, "low": kl * 0.93, "high": kl * 1.07, "method": method})
    return found


def written(
    directory: Path,
    nodes: list[Made],
    *,
    name: str = "quickstart",
    start: str = "models/SmolLM2-135M",
    state: bool = True,
) -> Path:
    """Writes a run directory as the runner does: the ledger through `Ledger`, `run.json`, the recipe."""
    first = Made("start")
    for node in [first, *nodes]:
        ledger = Ledger(directory, node=node.name)
        checkpoint = hash_of(node)
        if node.name != "start":
            if node.status not in ("finished", "dropped"):
                continue
            for table, rows in node.tables.items():
                ledger.table(table, rows)
            parent = next(one for one in [first, *nodes] if one.name == node.parent)
            ledger.append(
                "stage",
                stage=node.stage,
                settings=node.settings,
                key=digest(f"key {node.name}"),
                parents={"model": hash_of(parent)},
                checkpoint=checkpoint,
                seconds=node.seconds,
                peak_memory_bytes=1.9e9,
            )
        protocol = PROTOCOL | node.protocol
        columns = sequences(node)
        ledger.write_sequences(checkpoint, protocol, columns)
        ledger.measurement(checkpoint=checkpoint, path=start, protocol=protocol, metrics=metrics(node, columns))
    tree = [
        {
            "name": node.name,
            "stage": node.stage,
            "from": node.parent,
            "settings": node.settings,
            "directory": f"nodes/{node.name}",
            "status": node.status,
            "key": digest(f"key {node.name}"),
        }
        | ({"hash": hash_of(node)} if node.status in ("finished", "dropped") else {})
        for node in nodes
    ]
    if state:
        content = {"format": 1, "name": name, "start": start, "nodes": {}, "files": {}, "tree": tree}
        (directory / "run.json").write_text(json.dumps(content))
        (directory / "recipe.yaml").write_text(f"name: {name}\nstart: {start}\nnodes: [{{stage: quantize}}]\n")
    return directory


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(nodes, directory="a", name=...)` writes a run under the test's own directory."""

    def make(nodes: list[Made] | None = None, *, directory: str = "run", **options: Any) -> Path:
        return written(tmp_path / directory, NODES if nodes is None else nodes, **options)

    return make


@pytest.fixture
def nodes() -> list[Made]:
    """Three quantized checkpoints of one start, and one healed from the second."""
    return list(NODES)


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """`write_run(directory, nodes, name=...)`."""
    return written


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that tests only read."""
    return written(tmp_path_factory.mktemp("report") / "run", NODES)


@dataclass(frozen=True)
class Rows:
    layers: list[dict[str, Any]]
    loss: list[dict[str, Any]]
    calibration: list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    """Rows of the tables that have a picture."""
    return Rows(layer_rows(0.012), loss_rows(), calibration_rows())


@pytest.fixture(scope="session")
def nodes_with_pictures() -> list[Made]:
    """Nodes that between them have every table that is drawn."""
    first, second, third, fourth = NODES
    return [
        first,
        replace(second, tables={"layers": layer_rows(0.012), "bit_choice": [{"matrix": "q_proj", "bits": 3}]}),
        replace(third, tables={"calibration": calibration_rows()}),
        replace(fourth, tables={"loss": loss_rows()}),
    ]
