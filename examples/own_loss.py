"""A loss of one's own over the training loop: next-token loss with label smoothing, NorMuon, a model from scratch.

python examples/own_loss.py [TEXT_FILE [STEPS]]
"""

import sys
import tempfile
from pathlib import Path

import torch

from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.data import read_texts
from burnish.data.packing import documents, pack
from burnish.optim import NorMuon
from burnish.train import Loop, Loss, fit, model_inputs
from burnish.train.scratch import initialise


def smoothed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Loss:
    logits = model(**model_inputs(batch)).logits.flatten(0, 1)
    targets = batch["targets"].flatten()
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    return Loss(total, (targets != -100).sum().float())


texts = read_texts(sys.argv[1] if len(sys.argv) > 1 else "wikitext2-valid")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
start = initialise(Path(__file__).parent / "llama_1m.json", tokenizer="bpe:512", texts=texts)
rows = pack(documents(start.tokenizer, texts), length=64)
with tempfile.TemporaryDirectory() as work:
    ctx = Context({}, Path(work), "cpu", seeded_generator(0), Progress(), Ledger(None))
    optimizer = NorMuon.for_model(start.module, lr=0.01)
    result = fit(start.module, rows, smoothed, optimizer, ctx, Loop(steps=steps, batch_size=8))
print(f"loss {result.rows[0]['loss']:.3f} -> {result.rows[-1]['loss']:.3f} in {steps} steps")
