"""kill -9 in the middle of `burnish align` and `burnish audit`: the same command again continues and ends bit-equal."""

import json
import signal

import numpy as np
import pytest

import warm
from burnish.align.around_trainer import last_state
from burnish.align.audit import audit_pairs
from burnish.align.audit_settings import AuditSettings
from burnish.align.kept_arrays import KeptArrays
from burnish.core.checkpoint import load
from burnish.data.preferences import Pairs


def kill_when(command, condition):
    assert command.wait_until(condition), command.output
    assert command.end(signal.SIGKILL) == -signal.SIGKILL


@pytest.fixture
def long_pairs(tmp_path):
    """A file of 300 pairs whose answers take the tiny model a few seconds to read."""
    rows = [
        {
            "prompt": f"Question {index}?",
            "chosen": f"Certainly, {index}. " * 12,
            "rejected": f"no {index * index} " * 20,
        }
        for index in range(300)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_audit_continues_and_ends_bit_equal(checkpoint, long_pairs, tmp_path):
    log, work = tmp_path / "log", tmp_path / "killed.work"
    command = ["audit", long_pairs, "--model", checkpoint, "--repeats", "1", "--max-length", "256"]
    killed = [*command, "-o", tmp_path / "killed"]
    kill_when(warm.Command(log, *killed), lambda: len(list(work.glob("states-*/array.npy"))) >= 3)
    assert not (tmp_path / "killed").exists()
    first = next(work.glob("states-000000-*/array.npy"))
    made = first.stat().st_mtime_ns
    kill_when(warm.Command(log, *killed), lambda: list(work.glob("margins-*/array.npy")))  # again, between two fits
    assert first.stat().st_mtime_ns == made  # read once, not twice
    warm.run(log, *killed)
    assert not work.exists()
    warm.run(log, *command, "-o", tmp_path / "whole")
    for name in ("pairs.jsonl", "index.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_training_continues_and_ends_bit_equal(checkpoint, long_pairs, tmp_path):
    log = tmp_path / "log"
    command = ["align", checkpoint, "--data", long_pairs, "--loss", "aps-r3m-dpo", "--max-steps", "12", "--batch", "4"]
    command += ["--micro-batch", "2", "--max-length", "192", "--save-every", "2", "--lr", "1e-3"]
    command += ["--on-bad-pair", "drop"]
    warm.run(log, *command, "-o", tmp_path / "whole")

    def kept():
        return (tmp_path / "killed.run/work/align/trainer/checkpoint-4/trainer_state.json").exists()

    kill_when(warm.Command(log, *command, "-o", tmp_path / "killed"), kept)
    assert not (tmp_path / "killed").exists()
    warm.run(log, *command, "-o", tmp_path / "killed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


class Stop(Exception):
    pass


def test_an_interrupted_audit_reads_only_what_is_missing(checkpoint, tmp_path, monkeypatch):
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i} " * 20, "rejected": f"no {i} " * 25} for i in range(60)]
    pairs, settings = Pairs(rows, list(range(60)), "prefs"), AuditSettings(repeats=1, max_length=128)
    model = load(checkpoint)
    whole = audit_pairs(pairs, model, settings)
    array = KeptArrays.array
    made = []

    def stopping(self, name, make):
        def counted():
            made.append(name)
            if len(made) == 4:
                raise Stop
            return make()

        return array(self, name, counted)

    monkeypatch.setattr(KeptArrays, "array", stopping)
    with pytest.raises(Stop):
        audit_pairs(pairs, model, settings, work_dir=tmp_path / "work")
    again = audit_pairs(pairs, model, settings, work_dir=tmp_path / "work")
    assert again.rows == whole.rows
    assert made.count("states-000000") == 1 and made.count(made[3]) == 2


@pytest.fixture
def few_pairs():
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i} " * 20, "rejected": f"no {i} " * 25} for i in range(12)]
    return Pairs(rows, list(range(12)), "prefs")


def test_arrays_of_other_work_lie_beside_and_are_never_an_answer(tmp_path):
    first, other = (KeptArrays(tmp_path / "work", {"pairs": pairs}) for pairs in ("one", "another"))
    assert first.array("a", lambda: np.ones(2)).tolist() == [1, 1]
    assert other.array("a", lambda: np.zeros(2)).tolist() == [0, 0]
    again = KeptArrays(tmp_path / "work", {"pairs": "one"})
    assert again.array("a", lambda: np.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("changed", ["weights", "pairs", "max_length", "lam", "seed"])
def test_what_another_model_file_or_setting_left_is_not_used(checkpoint, few_pairs, tmp_path, changed):
    pairs, settings, model = few_pairs, AuditSettings(repeats=1), load(checkpoint)
    audit_pairs(pairs, model, settings, work_dir=tmp_path / "work")
    if changed == "weights":
        model.module.get_input_embeddings().weight.data.mul_(-1.5)
    elif changed == "pairs":
        pairs.rows[-1] = pairs.rows[-1] | {"chosen": "quite another answer"}
    else:
        settings = settings.model_copy(update={changed: {"max_length": 64, "lam": 0.6, "seed": 1}[changed]})
    wanted = audit_pairs(pairs, model, settings)
    assert audit_pairs(pairs, model, settings, work_dir=tmp_path / "work").rows == wanted.rows


def test_another_ranking_of_the_same_margins_fits_nothing_again(checkpoint, few_pairs, tmp_path, monkeypatch):
    model = load(checkpoint)
    audit_pairs(few_pairs, model, AuditSettings(repeats=1), work_dir=tmp_path / "work")
    monkeypatch.setattr("burnish.align.audit.cross_fitted_margins", None)
    audit_pairs(few_pairs, model, AuditSettings(repeats=1, rank_by="loss"), work_dir=tmp_path / "work")


def test_a_training_state_that_was_cut_short_is_passed_over(tmp_path):
    for step, text in ((2, '{"global_step": 2}'), (10, '{"global_step"')):
        state = tmp_path / "trainer" / f"checkpoint-{step}"
        state.mkdir(parents=True)
        (state / "trainer_state.json").write_text(text)
    assert last_state(tmp_path / "trainer").endswith("checkpoint-2")
