"""Reward models and policies on preference pairs."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from burnish.core.checkpoint import load
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.ledger import Ledger, read_rows
from burnish.data.preferences import Pairs, read_pairs
from burnish.evaluate import compare, pair_metrics
from burnish.evaluate.pair_settings import PairMeasurement
from burnish.evaluate.pairs import difference, measure_pairs
from burnish.evaluate.rewardbench import SECTIONS, section_scores
from burnish.report import page
from small_models import small_config

WORDS = ["red", "green", "blue", "white", "black", "brown"]


@pytest.fixture(scope="module")
def rows():
    return [
        {
            "prompt": f"Name a colour like {WORDS[i % 6]}, please. ",
            "chosen": f"{WORDS[i % 6]} it is, {i}",
            "rejected": f"no idea about {'number ' * (i % 3)}{i}",
            "subset": "odd" if i % 2 else "even",
        }
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def pairs(rows):
    return Pairs(rows, list(range(len(rows))), "prefs.jsonl")


def classifier(directory, tiny_llama, seed, num_labels=1):
    config = small_config(num_labels=num_labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def reward(tiny_llama, tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("reward") / "first", tiny_llama, seed=1)


@pytest.fixture(scope="module")
def other_reward(tiny_llama, tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("reward") / "second", tiny_llama, seed=2)


# -- maths -------------------------------------------------------------------------------------------------------------


def test_confidence_of_a_calibrated_reward_is_its_accuracy_and_of_a_scaled_one_is_not():
    draw = np.random.default_rng(0)
    log_odds = draw.normal(0, 2, 4000)
    margin = np.where(draw.random(4000) < expit(log_odds), log_odds, -log_odds)  # labelled by the odds
    place = np.arange(4000)
    excess = pair_metrics.mean_over(pair_metrics.confidence(margin) - pair_metrics.right(margin), place)
    assert excess.low < 0 < excess.high
    assert pair_metrics.calibration_error(pair_metrics.calibration(margin, place)) < 0.03
    sure = pair_metrics.mean_over(pair_metrics.confidence(3 * margin) - pair_metrics.right(margin), place)
    assert sure.low > 0.05


def test_a_tie_is_half_right():
    assert pair_metrics.right(np.array([2.0, 0.0, -0.1])).tolist() == [1.0, 0.5, 0.0]
    assert pair_metrics.log_loss(np.array([0.0])).item() == pytest.approx(math.log(2))


def test_pairs_of_one_question_are_one_observation():
    values, place = np.array([1.0, 1, 1, 0, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1, 1, 2, 3])
    alone, together = pair_metrics.mean_over(values, np.arange(8)), pair_metrics.mean_over(values, place)
    assert together.value == alone.value == 0.5
    assert together.high - together.low > alone.high - alone.low


def test_the_histogram_counts_every_pair_and_has_an_edge_at_zero():
    margin = np.random.default_rng(1).normal(0.3, 1, 500)
    bars = pair_metrics.histogram(margin)
    assert sum(bar["pairs"] for bar in bars) == 500
    assert sum(bar["pairs"] for bar in bars if bar["margin"] < 0) == (margin < 0).sum()


def test_length_bias_compares_what_reward_and_labels_prefer():
    margin, longer = np.array([1.0, 1, -1, -1, 5]), np.array([1, 1, 1, -1, 0])
    found = pair_metrics.length_bias(margin, longer, np.arange(5))
    assert found["reward_prefers_longer"].value == 0.75  # of the four of unlike length, all but the third
    assert found["labels_prefer_longer"].value == 0.75
    assert found["accuracy_longer_chosen"].value == pytest.approx(2 / 3)
    assert found["accuracy_shorter_chosen"].value == 0.0


def test_rewardbench_weighs_subsets_by_size_and_mathematics_as_all_code():
    found = {subset: (1.0, 10) for subsets in SECTIONS.values() for subset in subsets}
    assert section_scores(found)["RewardBench"] == 1.0
    found["math-prm"] = (0.0, 447)
    assert section_scores(found)["Reasoning"] == 0.5
    found["mt-bench-hard"] = (0.0, 50)
    assert section_scores(found)["Chat Hard"] == 0.5
    del found["donotanswer"]
    assert section_scores(found).keys() == {"Chat", "Chat Hard", "Reasoning"}


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
def test_rewards_are_those_of_the_stock_classifier(batch, reward, pairs):
    found = measure_pairs(PairMeasurement(batch=batch), load(reward), pairs)
    tokenizer = AutoTokenizer.from_pretrained(reward)
    model = AutoModelForSequenceClassification.from_pretrained(reward)

    def score(text):
        with torch.no_grad():
            return model(**tokenizer(text + tokenizer.eos_token, return_tensors="pt")).logits.item()

    wanted = [score(row["prompt"] + row["chosen"]) - score(row["prompt"] + row["rejected"]) for row in pairs.rows]
    np.testing.assert_allclose(found.margins, wanted, atol=1e-5)
    assert found.evaluation.metrics["pair_accuracy"]["value"] == pytest.approx(np.mean(np.array(wanted) > 0))
    assert {row["subset"] for row in found.tables["pair_subsets"]} == {"odd", "even"}


def test_a_policys_reward_is_its_log_ratio(tiny_llama, pairs, tmp_path):
    policy = load(tiny_llama)
    changed = policy.derive(module=AutoModelForCausalLM.from_pretrained(tiny_llama))
    with torch.no_grad():
        for parameter in changed.module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    found = measure_pairs(PairMeasurement(beta=0.5), changed, pairs, reference=policy)
    tokenizer = policy.tokenizer

    def log_prob(model, row, side):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]])
        shared = next((i for i, (a, b) in enumerate(zip(prompt, ids[0].tolist(), strict=False)) if a != b), len(prompt))
        with torch.no_grad():
            steps = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        return steps[shared - 1 :].sum().item()

    for place, row in enumerate(pairs.rows[:4]):
        chosen, rejected = (
            log_prob(changed.module, row, side) - log_prob(policy.module, row, side) for side in ("chosen", "rejected")
        )
        assert found.margins[place] == pytest.approx(0.5 * (chosen - rejected), abs=1e-3)


def test_a_policy_that_is_its_reference_knows_nothing(tiny_llama, pairs):
    found = measure_pairs(PairMeasurement(), load(tiny_llama), pairs, reference=load(tiny_llama))
    assert found.evaluation.metrics["pair_accuracy"]["value"] == 0.5
    assert found.evaluation.metrics["pair_log_loss"]["value"] == pytest.approx(math.log(2))


def test_pairs_that_are_too_long_are_left_out_and_counted(reward, rows):
    longer = Pairs([*rows, {"prompt": "p", "chosen": "yes " * 80, "rejected": "no"}], list(range(13)), "prefs")
    found = measure_pairs(PairMeasurement(max_length=64), load(reward), longer)
    assert (len(found.margins), found.left_out) == (12, 1)
    with pytest.raises(DataError, match="no pair of at most 8 tokens"):
        measure_pairs(PairMeasurement(max_length=8), load(reward), longer)


def test_readers_that_give_no_reward_are_refused(tiny_llama, reward, pairs, tmp_path):
    with pytest.raises(SettingsError, match="none is named"):
        measure_pairs(PairMeasurement(), load(tiny_llama), pairs)
    with pytest.raises(SettingsError, match="a reward model has no reference"):
        measure_pairs(PairMeasurement(), load(reward), pairs, reference=load(tiny_llama))
    three = classifier(tmp_path / "three", tiny_llama, seed=0, num_labels=3)
    with pytest.raises(CheckpointError, match="has 3 labels"):
        measure_pairs(PairMeasurement(), load(three), pairs)
    with pytest.raises(DataError, match="needs a chat template"):
        measure_pairs(PairMeasurement(chat=True), load(reward), pairs)


def test_the_difference_of_two_rewards_is_paired(reward, other_reward, pairs):
    first, second = (measure_pairs(PairMeasurement(), load(one), pairs) for one in (reward, other_reward))
    gap = difference(first, second)
    assert gap.value == pytest.approx(np.mean((first.margins > 0) * 1.0 - (second.margins > 0)))
    assert gap.low < gap.value < gap.high
    assert compare(first.evaluation.sequences, second.evaluation.sequences, column="right") == gap
    assert difference(first, first).value == 0.0


def test_the_command_ranks_two_rewards_and_the_report_draws_them(reward, other_reward, rows, tmp_path, capsys):
    from burnish.cli.evaluate import _DEFAULTS, evaluate

    file, run = tmp_path / "prefs.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = _DEFAULTS.model_copy(update={"reference": str(other_reward)})
    evaluate(str(reward), settings=settings, pairs=str(file), out=run)
    said = capsys.readouterr().out
    assert "paired" in said and "Pairs ranked right" in said and "odd" in said
    ledger = read_rows(run / "ledger.jsonl")
    assert [row["row"] for row in ledger].count("measurement") == 2
    (compared,) = (row["rows"][0] for row in ledger if row.get("name") == "pair_comparison")
    assert compared["low"] <= compared["difference"] <= compared["high"]
    html = page.write(run).read_text()
    assert "Calibration on preference pairs" in html and "Margins of first" in html
    assert "Pairs ranked right" in html.partition("Other measurements")[0]
    evaluate(str(reward), settings=settings, pairs=str(file), out=run)
    assert [row["row"] for row in Ledger(run).rows].count("measurement") == 2  # as measured before


def test_one_question_ranks_nothing(reward, other_reward, rows, tmp_path, capsys):
    from burnish.cli.evaluate import _DEFAULTS, evaluate

    file = tmp_path / "prefs.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    settings = _DEFAULTS.model_copy(update={"reference": str(other_reward)})
    evaluate(str(reward), settings=settings, pairs=str(file), out=tmp_path / "run")
    assert "one question gives no interval" in capsys.readouterr().out
    (compared,) = (
        row["rows"][0] for row in read_rows(tmp_path / "run" / "ledger.jsonl") if row.get("name") == "pair_comparison"
    )
    assert compared["verdict"] == "not known"


def test_settings_of_pairs_without_pairs_are_refused(reward):
    from burnish.cli.evaluate import evaluate

    with pytest.raises(SettingsError, match=r"chat: .* preference pairs"):
        evaluate(str(reward), on_pairs=PairMeasurement(chat=True))


def test_rewardbenchs_file_is_read_as_it_is(reward, tmp_path):
    row = {"prompt": "How?", "chosen": "So.", "rejected": "No.", "chosen_model": "a", "rejected_model": "b", "id": 1}
    file = tmp_path / "rewardbench.jsonl"
    subsets = ("mt-bench-easy", "donotanswer")
    file.write_text("".join(json.dumps(row | {"subset": name}) + "\n" for name in subsets))
    found = measure_pairs(PairMeasurement(), load(reward), read_pairs(file))
    assert [row["subset"] for row in found.tables["pair_subsets"]] == list(subsets)
