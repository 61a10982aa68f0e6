"""Masked rows with weights of 1 against TRL: the same tokens count, with the same loss, as in its SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.core.progress import Progress
from burnish.data.forms import as_row
from burnish.data.packing import IGNORED, documents, pack
from burnish.data.trajectories.curate import Curation, curate
from burnish.data.trajectories.rows import Masking
from burnish.train.losses import causal_lm_loss
from made_episodes import made, write
from small_models import small_llama, small_tokenizer

BODY = (
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '{' + c.function.name + (c.function.arguments | tojson) }}"
    "{% endfor %}{{ eos_token }}"
)
TEMPLATE = (
    "{% for m in messages %}{{ m.role + eos_token }}"
    "{% if m.role == 'assistant' %}{% generation %}" + BODY + "{% endgeneration %}{% else %}" + BODY + "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant' + eos_token }}{% endif %}"
)
"""With the marks that TRL looks for, and that burnish does not need."""


@pytest.mark.slow  # imports TRL
@pytest.mark.parametrize("turns", [1, 3])
def test_tokens_and_losses_are_those_of_trls_trainer_on_a_template_with_marks(turns: int, tmp_path: Path):
    trl = pytest.importorskip("trl", reason="needs the extra align")
    datasets = pytest.importorskip("datasets")
    tokenizer, model = small_tokenizer(), small_llama().eval()
    tokenizer.chat_template = TEMPLATE
    episodes = [made(f"e{number}", turns=turns) for number in range(3)]
    masking = Masking(tokenizer)
    found = curate(
        [write(tmp_path / "e.jsonl", episodes)], Curation([]), masking, tmp_path / "work", Progress(enabled=False)
    )
    rows = list(found.rows)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        assistant_only_loss=True,
        max_length=None,
        per_device_train_batch_size=1,
        dataloader_num_workers=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    for row in rows:
        chat: Any = {"messages": row["messages"]}
        trainer = trl.SFTTrainer(
            model, args=arguments, train_dataset=datasets.Dataset.from_list([chat]), processing_class=tokenizer
        )
        theirs = next(iter(trainer.get_train_dataloader()))
        assert theirs["input_ids"][0].tolist() == row["input_ids"]
        assert theirs["labels"][0].tolist() == row["labels"]
        batch = pack(documents(tokenizer, [as_row(row, where="row")]), len(row["input_ids"])).take([0])
        assert int((batch["targets"] != IGNORED).sum()) == sum(label != IGNORED for label in row["labels"])
        with torch.no_grad():
            ours = causal_lm_loss(model, batch)
            wanted = trainer.compute_loss(model, dict(theirs))
        torch.testing.assert_close(ours.total / ours.weight, wanted, rtol=1e-5, atol=0)
