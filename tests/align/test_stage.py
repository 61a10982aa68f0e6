"""The stage `align` in memory, from disk and after an interruption."""

import json
import math

import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from burnish.align import run as method
from burnish.align.around_trainer import last_state
from burnish.align.run import hold_out, run
from burnish.align.stage import SMOOTHED, Align
from burnish.core.checkpoint import load
from burnish.core.errors import CheckpointError, DataError, RecipeError, SettingsError
from burnish.core.kinds import Kind
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context
from burnish.data.preferences import Pairs
from burnish.quantize.stage import Quantize

SHORT = {"data": "prefs", "max_steps": 4, "batch": 4, "micro_batch": 2, "lr": 1e-3, "holdout": 0.2, "device": "cpu"}


def test_loss_names_say_what_is_trained_and_with_what():
    named = {
        loss: (Align(loss=loss).pair_loss, Align(loss=loss).makes_reward)
        for loss in ("dpo", "aps-quadratic-dpo", "r3m-reward", "reward", "ipo", "sft-mix")
    }
    assert named == {
        "dpo": ("bt", False),
        "aps-quadratic-dpo": ("aps_quadratic", False),
        "r3m-reward": ("r3m", True),
        "reward": ("bt", True),
        "ipo": ("bt", False),
        "sft-mix": ("bt", False),
    }


@pytest.mark.parametrize("loss", ["aps-dpo", "r3m-dpo"])
def test_aligned_model_prefers_the_chosen_answers_and_loads_by_the_stock_class(loss, checkpoint, rows, tmp_path):
    stage = Align(**SHORT | {"loss": loss, "holdout": 0.0, "max_steps": 8}, beta=1.0, lam=0.5)
    result = stage(load(checkpoint), data=rows)
    result.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reference = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = result.tokenizer
    ids = [
        tokenizer(rows[0]["prompt"] + rows[0][side], return_tensors="pt")["input_ids"]
        for side in ("chosen", "rejected")
    ]

    def log_prob(model, tokens):
        logits = model(tokens).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, tokens[:, 1:, None]).sum().item()

    gains = [log_prob(loaded, tokens) - log_prob(reference, tokens) for tokens in ids]
    assert gains[0] > gains[1]


def test_reward_stage_saves_the_ordinary_sequence_classifier(checkpoint, rows, tmp_path):
    result = Align(**SHORT | {"loss": "r3m-reward"})(load(checkpoint), data=rows)
    result.save(tmp_path / "reward")
    assert load(tmp_path / "reward").lineage.kind is Kind.SEQUENCE_CLASSIFIER
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


def test_a_saved_reward_model_scores_a_batch_of_answers(checkpoint, rows, tmp_path):
    start = load(checkpoint)
    start.tokenizer.pad_token = None
    start.module.config.pad_token_id = None
    Align(**SHORT | {"loss": "reward", "max_steps": 1})(start, data=rows).save(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    texts = [row["prompt"] + row["chosen"] for row in rows[:3]]
    batch = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(batch, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "names"), [("aps-r3m-dpo", ["DPO", "APS", "R3M"]), ("r3m-reward", ["a reward model", "R3M"])]
)
def test_the_model_card_names_the_losses(loss, names, checkpoint, rows, tmp_path):
    Align(**SHORT | {"loss": loss, "max_steps": 1})(load(checkpoint), data=rows).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    said = [line.removeprefix("- ") for line in card.splitlines() if line.startswith("- ")]
    assert [line.split(":")[0].partition(" of")[0] for line in said] == names
    assert "arXiv:2406.15568" in card


@pytest.mark.parametrize("loss", ["cdpo", "robust", "ipo", "hinge", "sigmoid_norm", "sft-mix", "kto"])
def test_the_usual_baselines_train_in_the_same_stage(loss, checkpoint, rows):
    smoothed = {"label_smoothing": 0.1} if loss in SMOOTHED else {}
    start = load(checkpoint)
    result = Align(**SHORT | smoothed | {"loss": loss, "max_steps": 2})(start, data=rows)
    assert result.lineage.kind is Kind.CAUSAL_LM
    assert not torch.equal(result.module.lm_head.weight, start.module.lm_head.weight)
    assert len(result.lineage.methods) == 1 and "20" in result.lineage.methods[0]


def test_what_a_baseline_needs_and_does_not_read_is_said():
    for loss in SMOOTHED:
        with pytest.raises(ValidationError, match="told how likely a label is wrong"):
            Align(loss=loss)
    for loss in ("ipo", "kto", "hinge"):
        with pytest.raises(ValidationError, match="does not read label_smoothing"):
            Align(loss=loss, label_smoothing=0.1)


def test_answers_for_kto_are_mixed_and_keep_their_labels(rows):
    pairs = Pairs(rows, list(range(len(rows))), "prefs")
    answers = method._answers(pairs, torch.Generator().manual_seed(0))
    by_text = {(row["prompt"], row["completion"]): row["label"] for row in answers}
    assert by_text == {(row["prompt"], row[side]): side == "chosen" for row in rows for side in ("chosen", "rejected")}
    labels = list(answers["label"])
    assert 0 < sum(labels[: len(rows)]) < len(rows)


def test_prompts_that_fill_the_length_leave_no_answers_for_kto(checkpoint, rows):
    with pytest.raises(DataError, match="so no answer is left; raise max_length"):
        Align(**SHORT | {"loss": "kto", "max_length": 8})(load(checkpoint), data=rows)


def test_a_prompt_whose_end_merges_with_the_answer_is_said_in_every_run(checkpoint, rows, tmp_path):
    from tokenizers import models

    start = load(checkpoint)
    vocabulary = start.tokenizer.get_vocab()
    vocabulary["\u0120r"] = vocabulary.pop("~")  # " r", in the place of a letter that no text has
    start.tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=[("\u0120", "r")])

    class Heard(Progress):
        def log(self, text):
            said.append(text)

    for number in range(2):
        said = []
        ctx = Context(
            inputs={"data": rows},
            work_dir=tmp_path / str(number),
            device="cpu",
            generator=torch.Generator().manual_seed(0),
            progress=Heard(enabled=False),
            ledger=Ledger(None),
        )
        run(Align(**SHORT | {"max_steps": 1, "holdout": 0.0}), start, ctx)
        assert any("TRL: The tokenized prompt is not a prefix" in text for text in said)


def test_plan_of_a_reward_model_counts_its_head_instead_of_the_language_head(checkpoint, rows):
    stage = Align(**SHORT | {"loss": "reward"})
    before = load(checkpoint).plan()
    made = stage(load(checkpoint), data=rows)
    assert stage.plan(before).num_parameters == sum(p.numel() for p in made.module.parameters())


@pytest.mark.parametrize("optimizer", ["normuon", "cosmos"])
def test_optimizers_of_this_library_can_be_named(optimizer, checkpoint, rows):
    plain = Align(**SHORT)(load(checkpoint), data=rows)
    other = Align(**SHORT, optimizer=optimizer)(load(checkpoint), data=rows)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(plain.module.state_dict()[name], other.module.state_dict()[name])


def test_lora_is_merged_into_ordinary_weights(checkpoint, rows):
    start = load(checkpoint)
    result = Align(**SHORT | {"lora_rank": 4})(start, data=rows)
    assert result.module.state_dict().keys() == start.module.state_dict().keys()
    changed = [n for n, p in result.module.state_dict().items() if not torch.equal(p, start.module.state_dict()[n])]
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed


def test_beside_packed_weights_dpo_begins_at_ln_2_and_changes_no_code(checkpoint, rows, tmp_path):
    pytest.importorskip("peft")
    packed = Quantize(method="rtn", bits=3, group_size=16)(load(checkpoint)).save(tmp_path / "packed")
    ledger = Ledger(None)
    stage = Align(**SHORT | {"loss": "dpo", "lora_rank": 4, "lr": 0.01})
    generator = torch.Generator().manual_seed(0)
    ctx = Context({"data": rows}, tmp_path / "work", "cpu", generator, Progress(enabled=False), ledger)
    made = stage.run(load(packed), ctx)
    (held,) = [row["rows"] for row in ledger.rows if row["name"] == "preference_held_out"]
    loss = next(row for row in held if row["measure"] == "loss")
    assert loss["before"] == pytest.approx(math.log(2), abs=1e-6)
    assert loss["after"] != pytest.approx(math.log(2), abs=1e-3)
    out = made.save(tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()
    assert any(factor.abs().max() > 0 for name, factor in load(out).adapter.tensors.items() if "lora_B" in name)
    assert "DPO" in (out / "README.md").read_text()


def test_a_reward_model_and_all_weights_of_packed_ones_are_refused(checkpoint, tmp_path):
    packed = Quantize(method="rtn", bits=3, group_size=16)(load(checkpoint)).save(tmp_path / "packed")
    for settings in ({"loss": "reward", "lora_rank": 4}, {"loss": "dpo"}):
        with pytest.raises(RecipeError, match="align needs dense weights") as refused:
            Align(**SHORT | settings).check_accepts(load(packed).plan(), where="align")
        assert ("lora_rank" in str(refused.value)) == ("lora_rank" not in settings)


def test_the_input_is_left_as_it_was(checkpoint, rows):
    start = load(checkpoint)
    before = {name: value.clone() for name, value in start.module.state_dict().items()}
    Align(**SHORT)(start, data=rows)
    assert all(torch.equal(value, before[name]) for name, value in start.module.state_dict().items())


@pytest.mark.slow
def test_another_reference_changes_the_result_and_the_model_itself_does_not(checkpoint, reference_checkpoint, rows):
    own = Align(**SHORT)(load(checkpoint), data=rows).module.lm_head.weight
    same, other = (
        Align(**SHORT)(load(checkpoint), data=rows, reference=str(reference)).module.lm_head.weight
        for reference in (checkpoint, reference_checkpoint)
    )
    assert (own - other).norm() > 0
    # four steps of Adam, which makes much of the rounding of small gradients
    assert (own - same).norm() < 1e-2 * (own - other).norm()


class Stop(Exception):
    pass


@pytest.mark.parametrize("loss", ["aps-r3m-dpo", "kto"])
@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(loss, checkpoint, rows, tmp_path, monkeypatch):
    settings = SHORT | {"max_steps": 6, "save_every": 2, "loss": loss}
    whole = Align(**settings)(load(checkpoint), data=rows)

    count = 0

    def stop_at_fifth_step(self, args, state, control, **kwargs):
        nonlocal count
        count += 1
        if count == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(method.Bar, "on_step_end", stop_at_fifth_step)
        with pytest.raises(Stop):
            Align(**settings)(load(checkpoint), data=rows, work_dir=tmp_path)
    assert last_state(tmp_path / "trainer").endswith("checkpoint-4")
    resumed = Align(**settings)(load(checkpoint), data=rows, work_dir=tmp_path)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


@pytest.fixture
def interrupted(checkpoint, rows, tmp_path):
    """A work directory with the state of a training that is then asked to end otherwise."""
    Align(**SHORT | {"save_every": 2})(load(checkpoint), data=rows, work_dir=tmp_path)
    return tmp_path


def test_a_state_of_another_model_is_refused(checkpoint, rows, interrupted):
    model = load(checkpoint)
    model.module.lm_head.weight.data.mul_(1.5)
    with pytest.raises(CheckpointError, match="model: not the same"):
        Align(**SHORT)(model, data=rows, work_dir=interrupted)


def test_a_state_of_other_pairs_is_refused(checkpoint, rows, interrupted):
    changed = [rows[0] | {"chosen": "quite another answer"}, *rows[1:]]
    with pytest.raises(CheckpointError, match="data: not the same"):
        Align(**SHORT)(load(checkpoint), data=changed, work_dir=interrupted)


def test_a_state_of_another_reference_is_refused(checkpoint, reference_checkpoint, rows, interrupted):
    with pytest.raises(CheckpointError, match="reference: not the same"):
        Align(**SHORT)(load(checkpoint), data=rows, reference=str(reference_checkpoint), work_dir=interrupted)


def test_a_state_of_other_settings_is_refused_and_named_and_stays(checkpoint, rows, interrupted):
    with pytest.raises(CheckpointError, match=r"beta was 0.1, now 0.2"):
        Align(**SHORT | {"beta": 0.2})(load(checkpoint), data=rows, work_dir=interrupted)
    assert last_state(interrupted / "trainer") is not None


def test_how_often_states_are_written_may_change(checkpoint, rows, interrupted):
    Align(**SHORT | {"save_every": 3})(load(checkpoint), data=rows, work_dir=interrupted)


def test_held_out_prompts_are_on_one_side_only(rows):
    pairs = Pairs(rows * 3, list(range(36)), "data")
    train, held = hold_out(pairs, 0.3, torch.Generator().manual_seed(0))
    assert len(train) + len(held) == 36
    assert not {row["prompt"] for row in train.rows} & {row["prompt"] for row in held.rows}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 5, "micro_batch": 2}, "batch is 5, which micro_batch 2 does not divide"),
        ({"tau0": 2.0, "tau_max": 1.0}, "tau0 is 2, above tau_max 1"),
        ({"lam": 1.0}, "lam"),
        ({"rho0": 0.0}, "rho0"),
        ({"loss": "reward", "reference": "x"}, "has no reference"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Align(**settings)


def test_no_data_is_refused_when_planned(checkpoint):
    with pytest.raises(SettingsError, match="no preference data is named"):
        Align().plan(load(checkpoint).plan())


def formats(rows):
    """The same pairs in each of TRL's preference formats."""

    def said(role, content):
        return [{"role": role, "content": content}]

    for row in rows:
        prompt = said("user", row["prompt"])
        yield {
            "text": row,
            "text, prompt inside": {side: row["prompt"] + row[side] for side in ("chosen", "rejected")},
            "chat": {"prompt": prompt} | {side: said("assistant", row[side]) for side in ("chosen", "rejected")},
            "chat, prompt inside": {side: prompt + said("assistant", row[side]) for side in ("chosen", "rejected")},
        }


@pytest.mark.parametrize("loss", ["r3m-dpo", "aps-reward"])
@pytest.mark.parametrize("name", ["text", "text, prompt inside", "chat", "chat, prompt inside"])
def test_every_format_of_trl_trains_from_a_parquet_file(name, loss, checkpoint, rows, tmp_path):
    file = tmp_path / "prefs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row[name] for row in formats(rows)]), file)
    settings = SHORT | {"data": str(file), "loss": loss, "max_steps": 2, "max_length": 200}
    start = load(checkpoint)  # of two steps the first is the warm-up's, at a learning rate of 0
    made = Align(**settings)(start)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(made.module.state_dict()[weight], start.module.state_dict()[weight])


def test_a_bad_row_is_refused_when_planned(checkpoint, rows, tmp_path):
    file = tmp_path / "prefs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p", "chosen": "a", "rejected": " "}]))
    before = load(checkpoint).plan()
    with pytest.raises(DataError, match=r"prefs.jsonl:13: the rejected answer is empty"):
        Align(data=str(file)).plan(before)
    assert Align(data=str(file), on_bad_pair="drop").plan(before).num_parameters == before.num_parameters


def test_a_pair_that_truncation_makes_equal_is_named_by_its_line(checkpoint, rows, tmp_path, capfd):
    file = tmp_path / "prefs.jsonl"
    same = {"prompt": "Say it. ", "chosen": "the same long beginning, good", "rejected": "the same long beginning, bad"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, same]))
    settings = SHORT | {"data": str(file), "max_length": 30, "holdout": 0.3}
    with pytest.raises(DataError, match=r"row 13: .* identical after truncation to 30 tokens"):
        Align(**settings)(load(checkpoint))
    assert "examples/s" not in capfd.readouterr().err  # the bars of the preparation stay away


def test_pairs_left_out_and_shortened_are_in_the_ledger(checkpoint, rows, tmp_path):
    long = {"prompt": "p ", "chosen": "yes " * 30, "rejected": "no " * 30}
    same = {"prompt": "p ", "chosen": "a", "rejected": "a"}
    settings = Align(**SHORT | {"max_steps": 1, "holdout": 0.0, "max_length": 64, "on_bad_pair": "drop"})
    ctx = Context(
        inputs={"data": [*rows, long, same]},
        work_dir=tmp_path,
        device="cpu",
        generator=torch.Generator().manual_seed(0),
        progress=Progress(enabled=False),
        ledger=Ledger(None),
    )
    run(settings, load(checkpoint), ctx)
    (table,) = [row for row in ctx.ledger.rows if row.get("name") == "preference_data"]
    by_name = {row["data"]: row for row in table["rows"]}
    assert by_name["as read"]["left out"] == "1 the chosen and the rejected answer are identical"
    assert (by_name["train"]["kept"], by_name["train"]["shortened"]) == (13, 1)


def test_a_reference_of_another_vocabulary_is_refused(checkpoint, other_vocabulary, rows):
    with pytest.raises(CheckpointError, match="another vocabulary"):
        Align(**SHORT)(load(checkpoint), data=rows, reference=str(other_vocabulary))


def test_identical_answers_are_refused_by_row(checkpoint, rows):
    with pytest.raises(DataError, match="data:12: the chosen and the rejected answer are identical"):
        Align(**SHORT)(load(checkpoint), data=[*rows, {"prompt": "p", "chosen": "a", "rejected": "a"}])


def test_soft_labels_train_from_a_file_and_where_nothing_reads_them_they_are_refused(checkpoint, rows, tmp_path):
    file = tmp_path / "soft.jsonl"
    soft = [row | ({"label_probability": 0.5} if index % 2 else {}) for index, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in soft))
    settings = SHORT | {"holdout": 0.0, "beta": 1.0}
    plain, softer = (
        Align(**settings | {"loss": "dpo"})(load(checkpoint), data=data).module.state_dict() for data in (rows, file)
    )
    assert any(not torch.equal(plain[name], softer[name]) for name in plain)
    for loss in ("kto", "hinge"):
        with pytest.raises(SettingsError, match="does not read label_probability"):
            Align(**SHORT | {"loss": loss})(load(checkpoint), data=file)
