import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from burnish.core.checkpoint import Model, load
from burnish.core.errors import DataError, MissingExtraError, SettingsError
from burnish.evaluate import compare
from burnish.evaluate.tasks import _metrics, evaluate_tasks, minimal_pairs

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install 'burnish[eval]')"
)

PAIRS = [
    ("You may reproduce copies of the Work.", "You may reproduces copies of the Work."),
    ("the terms of this License", "the terms License of this"),
    ("any patent claims", "any claims patents"),
    ("without warranties or conditions", "without conditions or or warranties"),
    ("for use and distribution", "use for distribution and"),
]


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    return load(tiny_llama)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"good": good, "bad": bad}) + "\n" for good, bad in PAIRS))
    return path


@torch.inference_mode()
def log_prob(model: Model, sentence: str) -> float:
    """Of a sentence after the start token and a space, which is how lm-eval scores a choice without a prompt."""
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(f" {sentence}", add_special_tokens=False).input_ids]
    log_probs = model.module(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    return log_probs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()


@needs_lm_eval
def test_minimal_pairs_score_what_the_log_probabilities_say(model: Model, data: Path):
    evaluation = evaluate_tasks(model, [minimal_pairs(data)])["pairs"]
    expected = [float(log_prob(model, good) > log_prob(model, bad)) for good, bad in PAIRS]
    assert evaluation.sequences["acc"] == expected
    assert evaluation.metrics["acc"]["value"] == pytest.approx(sum(expected) / len(expected))


@needs_lm_eval
def test_two_models_can_be_compared_on_a_task(model: Model, data: Path):
    evaluation = evaluate_tasks(model, [minimal_pairs(data)], limit=4)["pairs"]
    assert evaluation.protocol["num_samples"] == 4
    assert compare(evaluation.sequences, evaluation.sequences, column="acc").value == 0


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.smollm2
def test_blimp_ships_with_the_package(smollm2: Path, data: Path):
    """One pair of each paradigm; a model of this size and a coin differ."""
    evaluation = evaluate_tasks(load(smollm2), [minimal_pairs()], limit=67)["blimp_670"]
    assert evaluation.protocol["num_samples"] == 67
    assert 0.65 < evaluation.metrics["acc"]["value"] < 0.95


@needs_lm_eval
def test_a_yaml_file_is_a_task(model: Model, data: Path, tmp_path: Path):
    task = minimal_pairs(data, name="from_file")
    (tmp_path / "task.yaml").write_text(json.dumps(task))  # JSON is YAML
    assert set(evaluate_tasks(model, [tmp_path / "task.yaml"], limit=2)) == {"from_file"}


@needs_lm_eval
def test_unreadable_task_data_is_one_clear_sentence(model: Model, data: Path):
    data.write_text('{"good": ')
    with pytest.raises(DataError, match="could not read the data of pairs"):
        evaluate_tasks(model, [minimal_pairs(data)])


@needs_lm_eval
@pytest.mark.slow
def test_unknown_task_is_refused(model: Model):
    with pytest.raises(SettingsError, match="lm-eval knows no task 'helaswag'"):
        evaluate_tasks(model, ["helaswag"])


def test_missing_lm_eval_names_the_extra(model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'burnish\[eval\]'"):
        evaluate_tasks(model, [minimal_pairs(data)])


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        minimal_pairs(tmp_path / "nothing.jsonl")


def test_an_accuracy_has_the_interval_of_its_counts():
    """Four right of four: lm-eval's standard error is 0, and the interval of Clopper and Pearson ends at 0.4."""
    row = {"acc,none": 1.0, "acc_stderr,none": 0.0, "score,none": 0.5, "score_stderr,none": 0.1}
    found = _metrics(row, {"doc": [0.0, 1.0, 2.0, 3.0], "acc": [1.0] * 4, "score": [0.5] * 4})
    assert (found["acc"]["low"], found["acc"]["high"]) == pytest.approx((0.025**0.25, 1.0))
    assert found["score"]["high"] - 0.5 == pytest.approx(0.1 * 3.182446305)
