"""Masks and outputs of the public hub's mechanisms on fixed tensors.

    python sparse_attention.py CLONE > sparse_attention.json

CLONE is github.com/xAlg-ai/sparse-attention-hub (Apache-2.0) at 1a048c9. Its package's `__init__` imports plots and
benchmarks, and its configurations name spaces of ray's search; neither is needed for a mask, so both are left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

HEADS, KV_HEADS, KEYS, WIDTH, TABLES, BITS = 4, 2, 40, 8, 6, 3
CHANNELS = ((5, 0, 3, 1, 2, 4, 6, 7), (2, 7, 4, 0, 1, 3, 5, 6))


def import_hub(clone: Path) -> None:
    package = types.ModuleType("sparse_attention_hub")
    package.__path__ = [str(clone / "sparse_attention_hub")]
    ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
    tune.grid_search = list  # type: ignore[attr-defined]
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules |= {"sparse_attention_hub": package, "ray": ray, "ray.tune": tune}


def main(clone: Path) -> None:
    import_hub(clone)
    from sparse_attention_hub.sparse_attention.research_attention.maskers import fixed, sampling
    from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import quest_top_k
    from sparse_attention_hub.sparse_attention.utils.mask import Mask
    from sparse_attention_hub.sparse_attention.utils.mask_attention_utils import get_masked_attention_output

    torch.manual_seed(0)
    query, key, value = torch.randn(1, HEADS, 1, WIDTH), *torch.randn(2, 1, KV_HEADS, KEYS, WIDTH)
    shape = (1, HEADS, 1, KEYS)
    each = [CHANNELS[head // (HEADS // KV_HEADS)] for head in range(HEADS)]
    channels = Path(tempfile.mkdtemp()) / "channels.json"
    channels.write_text(json.dumps({"model.layers.0.self_attn.qk_proj": each}))
    kept: dict[Any, Any] = {}
    ends = [
        fixed.SinkMasker(fixed.SinkMaskerConfig(sink_size=2)),
        fixed.LocalMasker(fixed.LocalMaskerConfig(window_size=4)),
    ]
    alone = {
        "topk": fixed.OracleTopK(fixed.OracleTopKConfig(heavy_size=7)),
        "topp": fixed.OracleTopPMasker(fixed.OracleTopPMaskerConfig(top_p=0.6)),
        "quest": quest_top_k.QuestTopKMasker(quest_top_k.QuestTopKMaskerConfig(heavy_size=16, page_size=4)),
        "doublesparsity": fixed.DoubleSparsityTopKMasker(
            fixed.DoubleSparsityTopKMaskerConfig(
                heavy_size=7, sorted_channel_file=str(channels), group_factor=2, label_bits=3
            )
        ),
        "magicpig": sampling.MagicPig(sampling.MagicPigConfig(lsh_l=TABLES, lsh_k=BITS, center=False)),
    }
    chains = {name: [one] for name, one in alone.items()}
    chains |= {f"ends+{name}": [*ends, alone[name]] for name in ("topk", "topp", "doublesparsity", "magicpig")}
    found = {}
    for name, chain in chains.items():
        mask = Mask.create_empty_mask(shape, dtype=torch.float32, device="cpu")
        given = {"keys": key, "queries": query, "values": value, "attention_mask": None, "scaling": WIDTH**-0.5}
        for one in chain:
            mask = one.add_mask(**given, dropout=0.0, sparse_meta_data=kept, previous_mask=mask, layer_idx=0)
        output = get_masked_attention_output(
            torch.nn.Identity().eval(), query, key, value, None, WIDTH**-0.5, 0.0, mask
        )
        output = output.reshape(HEADS, WIDTH) if output.shape[1] != HEADS else output[0, :, 0]
        found[name] = {"inclusion": mask.get_dense_mask()[0, :, 0].tolist(), "output": output.tolist()}
    tensors = {"query": query[0], "key": key[0], "value": value[0], "directions": kept["projections"][0]}
    print(json.dumps({name: one.tolist() for name, one in tensors.items()} | {"channels": CHANNELS, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
