"""The peer's side of `benchmarks/events.py epoch` and `reach`: models of EasyTPP (package easy-tpp 0.3.0) in training.

Runs in that package's own environment (benchmarks/env/easytpp.txt). Its own data set, tokenizer, collator and model are
used; the optimizer step is the one of its model wrapper (zero_grad, loss / num_events backward, Adam step).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def loader_of(source: Path, batch_size: int, shuffle: bool) -> tuple[Any, int]:
    """Its batches of a parquet file, and the number of marks."""
    import numpy as np
    import pyarrow.parquet as parquet
    from easy_tpp.config_factory import DataSpecConfig
    from easy_tpp.preprocess import EventTokenizer
    from easy_tpp.preprocess.dataset import TPPDataset, get_data_loader

    table = parquet.read_table(source)
    ids, times, marks = (table[name].to_numpy() for name in ("sequence_id", "time", "mark"))
    bounds = np.flatnonzero(np.diff(ids)) + 1
    sequences = list(zip(np.split(times, bounds), np.split(marks, bounds), strict=True))
    num_marks = int(marks.max()) + 1
    dataset = TPPDataset(
        {
            "time_seqs": [t.tolist() for t, _ in sequences],
            "time_delta_seqs": [np.diff(t, prepend=t[0]).tolist() for t, _ in sequences],
            "type_seqs": [k.tolist() for _, k in sequences],
        }
    )
    specs = DataSpecConfig.parse_from_yaml_config(
        {
            "num_event_types": num_marks,
            "pad_token_id": num_marks,
            "padding_side": "right",
            "truncation_side": "right",
        }
    )
    loader = get_data_loader(dataset, "torch", EventTokenizer(specs), batch_size=batch_size, shuffle=shuffle)
    return loader, num_marks


def model_of(num_marks: int, size: dict[str, Any], name: str = "THP") -> Any:
    """Its THP, AttNHP or S2P2."""
    from importlib import import_module

    from easy_tpp.config_factory import ModelConfig
    from easy_tpp.model.basemodel import BaseModel

    kind = getattr(import_module(f"easy_tpp.model.{name.lower()}"), name)  # registers itself

    config = ModelConfig.parse_from_yaml_config(
        {
            "model_id": name,
            "model_specs": {"P": size["hidden_size"]} if name == "S2P2" else {},
            "hidden_size": size["hidden_size"],
            "time_emb_size": size["hidden_size"],
            "num_layers": size["num_layers"],
            "num_heads": size["num_heads"],
            "dropout_rate": 0.0,
            "use_ln": True,
            "loss_integral_num_sample_per_step": 20,
            "num_event_types": num_marks,
            "num_event_types_pad": num_marks + 1,
            "event_pad_index": num_marks,
            "pad_token_id": num_marks,
            "gpu": -1,
        }
    )
    config.num_event_types, config.num_event_types_pad, config.pad_token_id = num_marks, num_marks + 1, num_marks
    model = BaseModel.generate_model_from_config(config)
    assert isinstance(model, kind)
    print("easytpp parameters", sum(parameter.numel() for parameter in model.parameters()))
    return model


def steps(model: Any, loader: Any, optimizer: Any) -> Iterator[float]:
    """CPU seconds of each step of one epoch; what the caller does between two of them does not count."""
    started = time.process_time()
    for batch in loader:
        model.train()
        loss, num_events = model.loglike_loss(**batch)
        optimizer.zero_grad()
        (loss / num_events).backward()
        optimizer.step()
        yield time.process_time() - started
        started = time.process_time()


def epochs(source: Path, repeats: int, size: dict[str, Any]) -> list[float]:
    """CPU seconds of repeats + 1 epochs; the first one is a warm-up."""
    import torch

    torch.set_num_threads(1)
    loader, num_marks = loader_of(source, size["batch_size"], shuffle=True)
    model = model_of(num_marks, size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return [sum(steps(model, loader, optimizer)) for _ in range(repeats + 1)]


def curve(
    source: Path,
    validation: Path,
    size: dict[str, Any],
    lr: float,
    *,
    num_epochs: int,
    seconds: float,
    name: str = "THP",
) -> list[list[float]]:
    """[CPU seconds of training, validation nats of events 2 to N], until the seconds are over.

    After every epoch, and within one whenever a quarter of the seconds has passed since the last point.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader, num_marks = loader_of(source, size["batch_size"], shuffle=True)
    held_out, _ = loader_of(validation, size["batch_size"] // (1 if name == "THP" else 2), shuffle=False)
    model = model_of(num_marks, size, name)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    spent, points = 0.0, []

    def measure() -> None:
        points.append([round(spent, 3), round(nats(model, held_out, fine=name != "THP"), 5)])
        print(name, lr, points[-1], flush=True)

    for _ in range(num_epochs):
        for step in steps(model, loader, optimizer):
            spent += step
            if spent - (points[-1][0] if points else 0.0) > seconds / 4:
                measure()
            if spent > seconds:
                return points
        measure()
    return points


NODES = 300


def nats(model: Any, held_out: Any, *, fine: bool) -> float:
    """Validation log-likelihood of events 2 to N: its own, or of three batches with an integral that is exact enough.

    Its integral is a mean over 20 even nodes. Between them a flexible intensity may be higher than at them: S2P2 comes
    to a value above the true process's so.
    """
    import torch

    before = model.use_mc_samples, model.loss_integral_num_sample_per_step
    if fine:
        model.use_mc_samples, model.loss_integral_num_sample_per_step = False, NODES  # False: the trapezoid rule
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for index, batch in enumerate(held_out):
            if fine and index == 3:
                break
            loss, events = model.loglike_loss(**batch)
            total, count = total - float(loss), count + int(events)
    model.use_mc_samples, model.loss_integral_num_sample_per_step = before
    return total / count
