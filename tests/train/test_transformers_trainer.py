"""The optimizers inside a stock transformers.Trainer: scheduler, clipping, checkpoints and resuming."""

import pytest
import torch
import transformers

from burnish.optim import COSMOS, NorMuon

transformers_trainer = pytest.importorskip("accelerate", reason="transformers.Trainer needs it")


def rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (32, 16), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def run(make, directory, optimizer_class, *, resume=None, **changes):
    model = make(vocab_size=40)
    optimizer = optimizer_class.for_model(model, lr=0.01)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 2, 8)
    arguments = transformers.TrainingArguments(
        str(directory),
        max_steps=8,
        per_device_train_batch_size=4,
        max_grad_norm=0.5,
        save_steps=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows(), optimizers=(optimizer, scheduler))
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


@pytest.mark.parametrize("optimizer_class", [NorMuon, COSMOS])
def test_trains_schedules_and_resumes_with_the_same_bits(model_of, tmp_path, optimizer_class):
    model, trainer = run(model_of, tmp_path / "straight", optimizer_class)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(rates) == pytest.approx(0.01) and rates[-1] < 0.001
    checkpoint = tmp_path / "straight" / "checkpoint-4"
    resumed, _ = run(model_of, tmp_path / "resumed", optimizer_class, resume=str(checkpoint))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name
