"""The peer's side of `benchmarks/events.py epoch`: training epochs of THP in EasyTPP (package easy-tpp 0.3.0).

Runs in that package's own environment (benchmarks/env/easytpp.txt). Its own data set, tokenizer, collator and model are
used; the optimizer step is the one of its model wrapper (zero_grad, loss / num_events backward, Adam step).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def epochs(source: Path, repeats: int, size: dict[str, Any]) -> list[float]:
    """CPU seconds of repeats + 1 epochs; the first one is a warm-up."""
    import numpy as np
    import pyarrow.parquet as parquet
    import torch
    from easy_tpp.config_factory import DataSpecConfig, ModelConfig
    from easy_tpp.model.basemodel import BaseModel
    from easy_tpp.model.thp import THP  # registers itself
    from easy_tpp.preprocess import EventTokenizer
    from easy_tpp.preprocess.dataset import TPPDataset, get_data_loader

    torch.set_num_threads(1)
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
    loader = get_data_loader(dataset, "torch", EventTokenizer(specs), batch_size=size["batch_size"], shuffle=True)
    config = ModelConfig.parse_from_yaml_config(
        {
            "model_id": "THP",
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
    assert isinstance(model, THP)
    print("easytpp parameters", sum(parameter.numel() for parameter in model.parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds = []
    for _ in range(repeats + 1):
        model.train()
        started = time.process_time()
        for batch in loader:
            loss, num_events = model.loglike_loss(**batch)
            optimizer.zero_grad()
            (loss / num_events).backward()
            optimizer.step()
        seconds.append(time.process_time() - started)
    return seconds
