"""A checkpoint read by stock transformers in a process of its own, in which nothing of burnish is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

IDS = torch.arange(3, 23)[None]
PROGRAM = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM

directory, place = sys.argv[1:]
ids, trusted = torch.arange(3, 23)[None], {trusted}
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=trusted)
decoder = AutoModel.from_pretrained(directory, trust_remote_code=trusted)
found = [model(ids).logits, model.lm_head(decoder(ids).last_hidden_state)]
{more}
assert not any(name.startswith("burnish") for name in sys.modules)
torch.save((type(model).__name__, found), place)
"""


def read_afresh(directory: Path, scratch: Path, *, trusted: bool, more: str = "") -> tuple[str, list[torch.Tensor]]:
    """The name of the class, and logits of `IDS` by the model, by its decoder alone, and whatever `more` adds.

    Args:
        directory: of the checkpoint.
        scratch: a directory for what the process leaves.
        trusted: whether it may run the code that lies beside the weights.
        more: lines of the program that may append to `found`.
    """
    place = scratch / "found"
    command = [sys.executable, "-c", PROGRAM.format(trusted=trusted, more=more), str(directory), str(place)]
    environment = {"HF_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(place)
