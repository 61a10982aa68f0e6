"""The TRL trainers: equal to the stock ones where they must be, and to the pure losses everywhere."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, TrlParser

from burnish.align.losses import LOSSES, smoothed_pair_loss
from burnish.align.trainers import (
    AdaptiveDPOConfig,
    AdaptiveDPOTrainer,
    AdaptiveRewardConfig,
    AdaptiveRewardTrainer,
    PairDPOConfig,
    PairDPOTrainer,
    PairRewardConfig,
    PairRewardTrainer,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustRewardTrainer,
    StockDPOConfig,
    StockDPOTrainer,
)
from burnish.core.errors import CheckpointError, DataError, NumericalError, SettingsError
from burnish.data.preferences import RIGHT
from burnish.optim import COSMOS, NorMuon
from exact import rounding

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
HIDDEN = 64
"""Products in a sum of the small model."""


@pytest.fixture
def small(tmp_path):
    """Arguments of a short CPU run."""
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 5,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": 96,
    }


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def paths_to_a_reference(checkpoint, reference_checkpoint):
    """name -> (model, keyword arguments of the trainer, arguments of the configuration), the same at every call"""
    torch.manual_seed(3)  # PEFT draws the first matrix of an adapter from the global generator
    adapter = get_peft_model(load(checkpoint), LoraConfig(**LORA))
    with torch.no_grad():  # an adapter that already does something, so that its frozen copy is the reference
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(5))
    return {
        "reloaded": (str(checkpoint), {}, {}),
        "separate": (load(checkpoint), {"ref_model": load(reference_checkpoint)}, {}),
        "precomputed": (load(checkpoint), {}, {"precompute_ref_log_probs": True}),
        "precomputed-separate": (
            load(checkpoint),
            {"ref_model": load(reference_checkpoint)},
            {"precompute_ref_log_probs": True},
        ),
        "adapter-off": (load(checkpoint), {"peft_config": LoraConfig(**LORA)}, {}),
        "adapter-copy": (adapter, {}, {}),
    }


ROUNDING = 0.5 * 4 * 200 * torch.finfo(torch.float32).eps
"""Of a margin: beta, at most 0.5 here, times a sum of four log-probabilities near -200, right to float32's epsilon."""

PATHS = ["reloaded", "separate", "precomputed", "precomputed-separate", "adapter-off", "adapter-copy"]


def disturb(trainer):
    """Moves the policy away from its reference, so that margins are not all zero."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(11)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and ".ref." not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def first_batch(trainer, size=6):
    examples = [trainer.train_dataset[index] for index in range(size)]
    return trainer._prepare_inputs(trainer.data_collator(examples))


def loss_and_gradient(trainer, batch):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradient


@pytest.mark.parametrize("path", PATHS)
def test_sigmoid_path_equals_the_stock_dpo_trainer(path, checkpoint, reference_checkpoint, dataset, tokenizer, small):
    results = []
    for trainer_class, config in ((DPOTrainer, DPOConfig), (PairDPOTrainer, PairDPOConfig)):
        model, given, settings = paths_to_a_reference(checkpoint, reference_checkpoint)[path]
        trainer = trainer_class(
            model, args=config(**small | settings), train_dataset=dataset, processing_class=tokenizer, **given
        )
        disturb(trainer)
        batch = first_batch(trainer)
        results.append((*loss_and_gradient(trainer, batch), dict(trainer._metrics["train"])))
    (stock_loss, stock_gradient, stock_metrics), (loss, gradient, metrics) = results
    torch.testing.assert_close(loss, stock_loss, rtol=0, atol=ROUNDING)
    assert gradient.keys() == stock_gradient.keys()
    for name, value in stock_gradient.items():
        # the same float32 sums in another order, over the tokens of the batch
        allowed = rounding(batch["input_ids"].numel()) * value.abs().max().item()
        torch.testing.assert_close(gradient[name], value, rtol=0, atol=allowed)
    assert stock_metrics.keys() <= metrics.keys()
    for name, values in stock_metrics.items():
        assert metrics[name] == pytest.approx(values, rel=1e-5, abs=ROUNDING), name


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_sigmoid_path_equals_stock_dpo_under_other_divergences(kind, checkpoint, dataset, tokenizer, small):
    losses = []
    extra = {"f_divergence_type": kind, "f_alpha_divergence_coef": 0.5}
    for trainer_class, config in ((DPOTrainer, DPOConfig), (PairDPOTrainer, PairDPOConfig)):
        trainer = trainer_class(
            str(checkpoint), args=config(**small | extra), train_dataset=dataset, processing_class=tokenizer
        )
        disturb(trainer)
        losses.append(loss_and_gradient(trainer, first_batch(trainer))[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=ROUNDING)


@pytest.mark.parametrize("extra", [{"ld_alpha": 0.3}, {"use_weighting": True}], ids=["ld_alpha", "wpo"])
def test_sigmoid_path_equals_stock_dpo_with_its_weights(extra, checkpoint, dataset, tokenizer, small):
    losses = []
    for trainer_class, config in ((DPOTrainer, DPOConfig), (PairDPOTrainer, PairDPOConfig)):
        trainer = trainer_class(
            str(checkpoint), args=config(**small | extra), train_dataset=dataset, processing_class=tokenizer
        )
        disturb(trainer)
        losses.append(loss_and_gradient(trainer, first_batch(trainer))[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=ROUNDING)


def independent_margins(trainer, batch, beta):
    """Margins from the logits of stock forward passes, without any of the trainer's own arithmetic."""

    def log_probs(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (chosen * batch["completion_mask"][:, 1:]).sum(1)

    with torch.no_grad():
        policy = log_probs(trainer.model)
        if "ref_chosen_logps" in batch:
            reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
        elif trainer.ref_model is not None:
            reference = log_probs(trainer.ref_model)
        elif "ref" in trainer.model.peft_config:
            trainer.model.set_adapter("ref")
            reference = log_probs(trainer.model)
            trainer.model.set_adapter("default")
        else:
            with trainer.model.disable_adapter():
                reference = log_probs(trainer.model)
    chosen, rejected = (policy - reference).chunk(2)
    return beta * (chosen - rejected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["aps", "r3m"])
def test_trainer_loss_equals_the_pure_function_of_independent_margins(
    path, name, checkpoint, reference_checkpoint, dataset, tokenizer, small
):
    model, given, settings = paths_to_a_reference(checkpoint, reference_checkpoint)[path]
    args = PairDPOConfig(
        **small | settings, pair_loss=name, rho0=0.05, tau_max=3.0, lam=0.4, label_smoothing=0.1, beta=0.5
    )
    trainer = PairDPOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, **given)
    disturb(trainer)
    batch = first_batch(trainer)
    loss, _ = loss_and_gradient(trainer, batch)
    margin = independent_margins(trainer, batch, beta=0.5)
    expected = smoothed_pair_loss(name, margin, 0.1, rho0=0.05, tau0=0.1, tau_max=3.0, lam=0.4)[0].mean()
    assert margin.abs().max() > 1e-3
    torch.testing.assert_close(loss, expected, rtol=0, atol=ROUNDING)


def held_out(trainer_class, config, checkpoint, dataset, tokenizer, small):
    """What a trainer says about six pairs, of which its batches hold five and one, and the pairs one by one."""
    six = dataset.select(range(6))
    trainer = trainer_class(
        str(checkpoint), args=config(**small), train_dataset=dataset, eval_dataset=six, processing_class=tokenizer
    )
    disturb(trainer)
    return trainer.evaluate(), {name: torch.tensor(values) for name, values in trainer.pair_report(six)[:].items()}


def test_held_out_figures_are_means_over_pairs_not_over_batches(checkpoint, dataset, tokenizer, small):
    found, pairs = held_out(AdaptiveDPOTrainer, AdaptiveDPOConfig, checkpoint, dataset, tokenizer, small)
    right = (pairs["margin"] > 0).float()
    assert 0 < right.mean() < 1  # or every mean would do
    assert found["eval_rewards/accuracies"] == pytest.approx(right.mean().item(), rel=1e-5)
    for name in ("margin", "loss", "tau", "weight"):
        key = {"margin": "rewards/margins", "loss": "loss"}.get(name, f"pairs/{name}")
        assert found[f"eval_{key}"] == pytest.approx(pairs[name].mean().item(), rel=1e-4), name


def test_a_reward_models_held_out_figures_are_means_over_pairs(checkpoint, dataset, tokenizer, small):
    found, pairs = held_out(AdaptiveRewardTrainer, AdaptiveRewardConfig, checkpoint, dataset, tokenizer, small)
    assert found["eval_accuracy"] == pytest.approx((pairs["margin"] > 0).float().mean().item(), rel=1e-5)
    assert found["eval_margin"] == pytest.approx(pairs["margin"].mean().item(), rel=1e-4)


def test_accumulated_steps_equal_one_step_on_the_whole_batch(checkpoint, dataset, tokenizer, small):
    weights, start = [], AutoModelForCausalLM.from_pretrained(checkpoint)
    for batch_size, accumulate in ((4, 1), (2, 2)):
        args = RobustDPOConfig(
            **small | {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulate}, lam=0.4
        )
        trainer = RobustDPOTrainer(
            str(checkpoint),
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        sgd = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.optimizer = sgd
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    moved = weights[0] - torch.cat([p.detach().flatten() for p in start.parameters()])
    # the weights are rounded at each of two steps, and what they move by is a sum over the tokens of a batch
    allowed = rounding(2) * weights[0].abs().max() + rounding(4 * small["max_length"]) * moved.abs().max()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=allowed.item())


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_few_steps_lower_every_loss(name, checkpoint, dataset, tokenizer, small):
    args = PairDPOConfig(**small | {"max_steps": 6, "per_device_train_batch_size": 12}, pair_loss=name, beta=1.0)
    trainer = PairDPOTrainer(str(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["rewards/margins"] > 0.1


@pytest.mark.parametrize("optimizer", [NorMuon, COSMOS])
def test_our_optimizers_drive_the_trainers(optimizer, checkpoint, dataset, tokenizer, small):
    model = load(checkpoint)
    made = optimizer.for_model(model, lr=3e-3)
    args = RobustDPOConfig(**small | {"max_steps": 6, "per_device_train_batch_size": 12}, beta=1.0)
    trainer = RobustDPOTrainer(
        model, load(checkpoint), args, train_dataset=dataset, processing_class=tokenizer, optimizers=(made, None)
    )
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0] - 0.01


def test_diagnostics_are_logged_beside_the_stock_metrics(checkpoint, dataset, tokenizer, small):
    trainer = AdaptiveDPOTrainer(
        str(checkpoint), args=AdaptiveDPOConfig(**small), train_dataset=dataset, processing_class=tokenizer
    )
    trainer.train()
    stock = {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen", "logits/chosen", "entropy"}
    assert stock | {"pairs/tau", "pairs/weight", "pairs/loss_without_reg"} <= trainer.state.log_history[0].keys()


def test_conversations_are_accepted(checkpoint, chat_rows, tokenizer, small):
    trainer = RobustDPOTrainer(
        str(checkpoint),
        args=RobustDPOConfig(**small | {"max_length": 200}),
        train_dataset=Dataset.from_list(chat_rows),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_pair_report_ranks_the_pairs_that_the_model_contradicts_first(checkpoint, rows, tokenizer, small):
    wrong = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i in (2, 7) else row
        for i, row in enumerate(rows)
    ]
    args = RobustDPOConfig(**small | {"max_steps": 12, "per_device_train_batch_size": 12}, beta=1.0, lam=0.3)
    trainer = RobustDPOTrainer(
        str(checkpoint), args=args, train_dataset=Dataset.from_list(wrong), processing_class=tokenizer
    )
    trainer.train()
    report = trainer.pair_report(Dataset.from_list(wrong))
    assert set(report["row"][:2]) == {2, 7}
    assert {"margin", "loss", "delta", "weight"} <= set(report.column_names)
    assert report["delta"][0] > 0 and sorted(report["margin"]) == report["margin"][:]


def test_pair_report_equals_the_margins_of_independent_forward_passes(checkpoint, dataset, tokenizer, small):
    args = AdaptiveDPOConfig(**small, beta=0.5)
    trainer = AdaptiveDPOTrainer(str(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
    disturb(trainer)
    report = trainer.pair_report(dataset)
    margin = independent_margins(trainer, first_batch(trainer, size=12), beta=0.5)
    by_row = dict(zip(report["row"], report["margin"], strict=True))
    torch.testing.assert_close(torch.tensor([by_row[i] for i in range(12)]), margin, rtol=0, atol=ROUNDING)


def test_pair_report_without_its_precomputed_reference_says_so(checkpoint, dataset, tokenizer, small):
    args = AdaptiveDPOConfig(**small, precompute_ref_log_probs=True)
    trainer = AdaptiveDPOTrainer(load(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    with pytest.raises(SettingsError, match="precomputed and is no longer in memory"):
        trainer.pair_report(dataset)


# -- reward models ---------------------------------------------------------------------------------------------------


def reward_model(checkpoint):
    torch.manual_seed(7)
    return AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)


@pytest.mark.parametrize("column", [None, "margin"])
def test_reward_trainer_with_bradley_terry_equals_the_stock_one(column, checkpoint, dataset, tokenizer, small):
    if column:
        dataset = dataset.add_column("margin", [0.1 * i for i in range(len(dataset))])
    results = []
    for trainer_class, config in ((RewardTrainer, RewardConfig), (PairRewardTrainer, PairRewardConfig)):
        args = config(**small, center_rewards_coefficient=0.01)
        trainer = trainer_class(reward_model(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
        batch = first_batch(trainer)
        results.append(loss_and_gradient(trainer, batch))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=rounding(HIDDEN), atol=rounding(HIDDEN))
    for name, value in results[0][1].items():
        allowed = rounding(batch["input_ids"].numel()) * value.abs().max().item()
        torch.testing.assert_close(results[1][1][name], value, rtol=0, atol=allowed)


@pytest.mark.parametrize("trainer_class", [AdaptiveRewardTrainer, RobustRewardTrainer])
def test_reward_trainers_learn_and_save_an_ordinary_classifier(
    trainer_class, checkpoint, dataset, rows, tokenizer, small, tmp_path
):
    args = trainer_class.default_config(**small | {"max_steps": 8, "per_device_train_batch_size": 12})
    trainer = trainer_class(str(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "reward")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    report = trainer.pair_report(dataset)
    assert min(report["margin"]) > 0
    texts = [rows[0]["prompt"] + rows[0][side] + tokenizer.eos_token for side in ("chosen", "rejected")]
    scores = [loaded(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    by_row = dict(zip(report["row"], report["margin"], strict=True))
    assert scores[0] - scores[1] == pytest.approx(by_row[0], abs=1e-5)


def test_robust_reward_loss_is_the_pure_function_of_the_rewards(checkpoint, dataset, tokenizer, small):
    args = RobustRewardTrainer.default_config(**small, lam=0.3, label_smoothing=0.2)
    trainer = RobustRewardTrainer(
        reward_model(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer
    )
    batch = first_batch(trainer)
    loss, _ = loss_and_gradient(trainer, batch)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen, rejected = logits.squeeze(-1).chunk(2)
    expected = smoothed_pair_loss("r3m", chosen - rejected, 0.2, lam=0.3)[0].mean()
    torch.testing.assert_close(loss, expected, rtol=rounding(HIDDEN), atol=rounding(HIDDEN))


@pytest.mark.parametrize("loss_type", [["ipo"], ["robust"], ["hinge"], ["sigmoid_norm"], ["sigmoid", "sft"]])
def test_stock_losses_are_trls(loss_type, checkpoint, dataset, tokenizer, small):
    results = []
    for trainer_class, config in ((DPOTrainer, DPOConfig), (StockDPOTrainer, StockDPOConfig)):
        args = config(**small, loss_type=loss_type, label_smoothing=0.1)
        trainer = trainer_class(str(checkpoint), args=args, train_dataset=dataset, processing_class=tokenizer)
        disturb(trainer)
        results.append(loss_and_gradient(trainer, first_batch(trainer)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


# -- configuration and bad input ---------------------------------------------------------------------------------------


def test_trl_parser_reads_the_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lam: 0.65\nbeta: 0.2\nbf16: false\nuse_cpu: true\noutput_dir: out\n")
    (args,) = TrlParser(RobustDPOConfig).parse_args_and_config(["--config", str(file), "--label_smoothing", "0.1"])
    assert (args.pair_loss, args.lam, args.beta, args.label_smoothing) == ("r3m", 0.65, 0.2, 0.1)
    (reward,) = TrlParser(AdaptiveRewardConfig).parse_args_and_config(
        ["--output_dir", "out", "--rho0", "0.3", "--bf16", "false", "--use_cpu", "true"]
    )
    assert (reward.pair_loss, reward.rho0) == ("aps", 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pair_loss": "r3m", "lam": 1.5}, "lam is 1.5"),
        ({"pair_loss": "aps", "rho0": 0}, "rho0 is 0"),
        ({"pair_loss": "aps", "tau0": 2.0, "tau_max": 1.0}, "tau0 is 2"),
        ({"pair_loss": "aps", "tau_max": float("nan")}, "tau_max is nan"),
        ({"pair_loss": "r3m", "lam": "0.5"}, "lam is '0.5'"),
        ({"pair_loss": "aps", "aps_solver": "secant"}, "'secant'"),
        ({"label_smoothing": 0.7}, "label_smoothing is 0.7, which trains towards the rejected answer"),
        ({"beta": 0.0}, "beta is 0"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"newton_steps": 0}, "at least one is needed"),
        ({"pair_loss": "aps", "tau0": float("inf"), "tau_max": float("inf")}, "tau0 is inf"),
        ({"loss_type": ["ipo"]}, "loss_type is"),
    ],
)
def test_impossible_configurations_are_refused(settings, message, small):
    with pytest.raises(SettingsError, match=message):
        PairDPOConfig(**small | settings)


def test_the_name_of_the_loss_may_be_a_string(small):
    assert list(PairDPOConfig(**small | {"loss_type": "sigmoid"}).loss_type) == ["sigmoid"]


def test_a_model_in_memory_without_reference_is_refused(checkpoint, dataset, tokenizer, small):
    model = load(checkpoint)
    model.config._name_or_path = ""
    with pytest.raises(CheckpointError, match="exists in memory only and there is no reference"):
        PairDPOTrainer(model, args=PairDPOConfig(**small), train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("policy", [load, str], ids=["of a model", "of a path"])
def test_a_reference_with_another_vocabulary_is_refused(policy, checkpoint, dataset, tokenizer, small):
    other = load(checkpoint)
    other.resize_token_embeddings(300)
    with pytest.raises(CheckpointError, match="a vocabulary of 300 tokens"):
        PairDPOTrainer(
            policy(checkpoint), other, PairDPOConfig(**small), train_dataset=dataset, processing_class=tokenizer
        )


def test_bad_pairs_of_a_stream_are_dropped_or_refused(checkpoint, rows, tokenizer, small):
    bad = {"prompt": "p", "chosen": "a", "rejected": "a"}

    def trainer(on_bad_pair):
        stream = Dataset.from_list([rows[0], bad, *rows[1:4]]).to_iterable_dataset()
        args = PairRewardConfig(**small, on_bad_pair=on_bad_pair)
        return PairRewardTrainer(str(checkpoint), args, train_dataset=stream, processing_class=tokenizer)

    assert len(list(trainer("drop").train_dataset)) == 4
    with pytest.raises(DataError, match="train data, row 1: the chosen and the rejected answer are identical"):
        list(trainer("refuse").train_dataset)


def with_bos(tokenizer):
    """The tokenizer with a token that it puts before every text."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.bos_token = "<|user|>"
    core = changed.backend_tokenizer
    core.post_processor = TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", changed.bos_token_id)])
    return changed


@pytest.mark.parametrize("inside", [False, True])
def test_a_text_that_begins_with_the_tokenizers_mark_does_not_get_it_twice(inside, checkpoint, rows, tokenizer, small):
    marked = [row | {"prompt": "<|user|>" + row["prompt"]} for row in rows]
    if inside:
        marked = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in marked]
    trainer = PairDPOTrainer(
        str(checkpoint),
        args=PairDPOConfig(**small),
        train_dataset=Dataset.from_list(marked),
        processing_class=with_bos(tokenizer),
    )
    ids = trainer.train_dataset[0]["prompt_ids"] + trainer.train_dataset[0]["chosen_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1


def test_a_policy_that_is_its_reference_is_right_as_often_as_chance(checkpoint, dataset, tokenizer, small):
    args = PairDPOConfig(**small)
    trainer = PairDPOTrainer(
        str(checkpoint), args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )
    found = trainer.evaluate()
    assert (found["eval_rewards/accuracies"], found["eval_pairs/accuracy"]) == (0.0, 0.5)


def test_pairs_that_truncation_makes_equal_are_refused_by_row(checkpoint, rows, tokenizer, small):
    row = {
        "prompt": "Say it. ",
        "chosen": "the same rather long beginning, then good",
        "rejected": "the same rather long beginning, then bad",
    }
    data = Dataset.from_list([*rows[:3], row])
    args = PairDPOConfig(**small | {"max_length": 40})
    with pytest.raises(
        DataError,
        match="train data, row 3: the chosen and the rejected answer are identical after truncation to 40 tokens",
    ):
        PairDPOTrainer(str(checkpoint), args=args, train_dataset=data, processing_class=tokenizer)


def test_dropped_and_shortened_pairs_are_counted(checkpoint, rows, tokenizer, small):
    same = {
        "prompt": "Say it. ",
        "chosen": "the same rather long beginning, then good",
        "rejected": "the same rather long beginning, then bad",
    }
    data = Dataset.from_list(
        [
            *rows[:3],
            same,
            {"prompt": "p", "chosen": "a", "rejected": "a"},
            {"prompt": "x" * 50, "chosen": "a", "rejected": "b"},
        ]
    )
    args = PairDPOConfig(**small | {"max_length": 40}, on_bad_pair="drop")
    trainer = PairDPOTrainer(str(checkpoint), args=args, train_dataset=data, processing_class=tokenizer)
    report = trainer.data_reports["train"]
    assert (report.rows, report.kept, report.shortened) == (6, 3, 4)
    assert report.dropped == {
        "the chosen and the rejected answer are identical": 1,
        "longer than max_length": 1,
        "the chosen and the rejected answer are identical after truncation": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "row 1: the chosen and the rejected answer are identical"),
        ({"prompt": "p", "chosen": " ", "rejected": "a"}, "row 1: the chosen answer is empty"),
        (
            {"prompt": None, "chosen": "a", "rejected": "b"},
            "row 1: the prompt is null in data with a column of prompts",
        ),
    ],
)
def test_bad_rows_are_refused_by_number(row, message, checkpoint, rows, tokenizer, small):
    with pytest.raises(DataError, match=message):
        PairDPOTrainer(
            str(checkpoint),
            args=PairDPOConfig(**small),
            train_dataset=Dataset.from_list([rows[0], row]),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize("with_mark", [False, True])
def test_a_column_of_null_prompts_is_as_none(with_mark, checkpoint, tokenizer, small):
    pairs = [{"chosen": f"question {i}? yes", "rejected": f"question {i}? no"} for i in range(3)]
    tokenizer = with_bos(tokenizer) if with_mark else tokenizer

    def prepared(pairs):
        args = PairRewardConfig(**small)
        data = Dataset.from_list(pairs)
        return PairRewardTrainer(str(checkpoint), args, train_dataset=data, processing_class=tokenizer).train_dataset

    null, plain = prepared([pair | {"prompt": None} for pair in pairs]), prepared(pairs)
    assert null["chosen_ids"] == plain["chosen_ids"]
    assert null["rejected_ids"] == plain["rejected_ids"]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_margin_that_is_not_finite_is_refused_by_its_row_in_the_data(batch_size, checkpoint, rows, tokenizer, small):
    """Batches are shuffled, and drawn ahead of the step that meets them."""
    config = AdaptiveDPOConfig(**small | {"per_device_train_batch_size": batch_size, "max_steps": 12})
    config.precompute_ref_log_probs = True
    data = Dataset.from_list(rows)
    trainer = AdaptiveDPOTrainer(load(checkpoint), args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train_dataset = trainer.train_dataset.map(
        lambda pair: {"ref_chosen_logps": math.inf if pair["pair_row"] == 4 else pair["ref_chosen_logps"]}
    )
    with pytest.raises(NumericalError, match=r"training data, row 4: the margin is -?inf"):
        trainer.train()


def test_a_missing_column_is_refused(checkpoint, tokenizer, small):
    data = Dataset.from_list([{"prompt": "p", "chosen": "a", "worse": "b"}])
    with pytest.raises(DataError, match="has no column 'rejected'"):
        PairDPOTrainer(str(checkpoint), args=PairDPOConfig(**small), train_dataset=data, processing_class=tokenizer)


def test_log_sigmoid_of_the_stock_loss_is_what_bradley_terry_computes():
    margin = torch.linspace(-30, 30, 101)
    torch.testing.assert_close(LOSSES["bt"](margin)[0], -F.logsigmoid(margin), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_soft_labels_reach_the_loss_through_trl(kind, checkpoint, dataset, tokenizer, small):
    right = [round(0.5 + 0.05 * (index % 10), 2) for index in range(len(dataset))]
    soft = dataset.add_column(RIGHT, right)
    trainer_class, config = {
        "dpo": (PairDPOTrainer, PairDPOConfig),
        "reward": (PairRewardTrainer, PairRewardConfig),
    }[kind]
    args = config(**small, pair_loss="r3m", lam=0.4, label_smoothing=0.1)
    trainer = trainer_class(str(checkpoint), args=args, train_dataset=soft, processing_class=tokenizer)
    disturb(trainer)
    loss, _ = loss_and_gradient(trainer, first_batch(trainer))
    report = trainer.pair_report(soft.select(range(6)))
    margin = torch.tensor([value for _, value in sorted(zip(report["row"], report["margin"], strict=True))])
    expected = smoothed_pair_loss("r3m", margin, 0.1, right=torch.tensor(right[:6]), lam=0.4)[0]
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=ROUNDING)
    by_row = [value for _, value in sorted(zip(report["row"], report["loss"], strict=True))]
    torch.testing.assert_close(torch.tensor(by_row), expected, rtol=1e-4, atol=ROUNDING)


def test_losses_that_do_not_read_soft_labels_refuse_them(checkpoint, dataset, tokenizer, small):
    soft = dataset.add_column(RIGHT, [0.9] * len(dataset))
    with pytest.raises(SettingsError, match="does not read label_probability"):
        StockDPOTrainer(
            str(checkpoint),
            args=StockDPOConfig(**small, loss_type=["ipo"]),
            train_dataset=soft,
            processing_class=tokenizer,
        )
    holes = dataset.add_column(RIGHT, [None, *[0.9] * (len(dataset) - 1)])
    with pytest.raises(DataError, match="label_probability is null"):
        PairDPOTrainer(str(checkpoint), args=PairDPOConfig(**small), train_dataset=holes, processing_class=tokenizer)
