"""LongPPL: the rule against the published program, windows within documents, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import burnish
import small_models
from burnish.cli import main
from burnish.core.checkpoint import load
from burnish.core.errors import DataError, SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.evaluate.longppl.measure import documents_cut, losses_of, measure_longppl, tokens_of
from burnish.evaluate.longppl.settings import LongPplMeasurement
from burnish.evaluate.maths.key_tokens import key_stretches, key_tokens, long_perplexity, short_pieces, within

PUBLISHED = json.loads((Path(__file__).parents[1] / "reference" / "evaluate" / "longppl.json").read_text())
PROSE = small_models.PROSE.read_text()


def test_the_rule_is_that_of_the_published_program():
    how, theirs, ours = (PUBLISHED[name] for name in ("settings", "evaluator", "model"))
    length, short = len(theirs["offsets"]), how["trunc_len"]
    pieces = short_pieces(length, short, how["sliding_window"])
    each = [
        losses[first - start - 1 : end - start - 1]
        for (start, first, end), losses in zip(pieces, theirs["pieces"], strict=True)
    ]
    keys = key_tokens(
        np.array(theirs["losses"][short - 1 :]), np.concatenate(each), key_gain=how["alpha"], key_loss=-how["beta"]
    )
    stretches = key_stretches(np.array(theirs["offsets"])[short:][keys])
    assert stretches.tolist() == PUBLISHED["stretches"]
    counted = within(np.array(ours["offsets"])[1:], stretches)
    assert counted.sum() == PUBLISHED["n_key_token"] > 5
    # That program rounds losses to float32.
    assert long_perplexity(np.array(ours["losses"]), counted) == pytest.approx(PUBLISHED["longppl"], rel=1e-6)
    assert math.exp(np.mean(ours["losses"])) == pytest.approx(PUBLISHED["ppl"], rel=1e-6)


def test_every_token_behind_the_short_context_is_scored_once_and_sees_enough():
    pieces = short_pieces(37, 10, 4)
    assert [place for _, first, end in pieces for place in range(first, end)] == list(range(10, 37))
    assert all(10 <= place - start <= 13 for start, first, end in pieces for place in range(first, end))
    assert short_pieces(10, 10, 4) == []


def test_no_key_token_is_no_perplexity():
    assert key_stretches(np.zeros((0, 2), dtype=int)).shape == (0, 2)
    assert not within(np.array([[0, 2], [2, 3]]), np.zeros((0, 2), dtype=int)).any()
    assert math.isnan(long_perplexity(np.ones(2), np.zeros(2, dtype=bool)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one tokenizer, and one of another."""
    place = tmp_path_factory.mktemp("models")
    for name, size in (("first", 384), ("second", 384), ("other", 300)):
        torch.manual_seed(len(name))
        small_models.make("llama", num_hidden_layers=1, vocab_size=size).save_pretrained(place / name)
        small_models.small_tokenizer(size).save_pretrained(place / name)
    return place


ON_TEXT = burnish.Evaluate(num_windows=3, context=96, speed=False, device="cpu")
KEYS = LongPplMeasurement(short_context=32, short_step=16, key_gain=0.0, key_loss=20.0)


def test_windows_are_stretches_of_one_document(models):
    tokenizer = load(models / "first").tokenizer
    texts = [PROSE[:80], PROSE[80:2000], PROSE[2000:6000]]
    windows = list(documents_cut(tokenizer, texts, ON_TEXT, where="texts"))
    assert len(windows) == 3
    for window in windows:
        assert window.text in PROSE and window.text not in texts[0] and len(window.ids) == 96
        assert tokenizer.decode(window.ids) == window.text
        assert window.offsets[0, 0] == 0 and window.offsets[-1, 1] == len(window.text)
    with pytest.raises(DataError, match="has 0 windows of 96 tokens within one document"):
        list(documents_cut(tokenizer, [PROSE[:100]] * 9, ON_TEXT, where="texts"))


def test_it_is_the_loss_of_those_tokens_that_gain_by_the_evaluators_context(models):
    """Written out: each short context is a forward pass of its own."""
    model, evaluator = load(models / "first"), load(models / "second")
    found = measure_longppl(KEYS, ON_TEXT, model, evaluator, text=[PROSE])

    def losses(one, ids):
        with torch.inference_mode():
            logits = one.module(input_ids=ids[None]).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")

    nats = []
    ids_of, _ = tokens_of(model.tokenizer, PROSE, "prose")
    for window in ids_of[: 3 * 96].view(3, 96):
        ours, whole = losses(model, window), losses(evaluator, window)
        for place in range(32, 96):
            start = (place - 32) // 16 * 16
            short = losses(evaluator, window[start : place + 1])[-1]
            if short > whole[place - 1]:
                nats.append(ours[place - 1].item())
    assert found.metrics["key_tokens"]["value"] == len(nats) > 10
    assert found.metrics["longppl"]["value"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert found.metrics["longppl"]["low"] < found.metrics["longppl"]["value"] < found.metrics["longppl"]["high"]


def test_an_evaluator_of_another_tokenizer_is_mapped_by_characters(models):
    model, evaluator = load(models / "first"), load(models / "other")
    found = measure_longppl(KEYS, ON_TEXT, model, evaluator, text=[PROSE])
    alone = measure_longppl(KEYS, ON_TEXT, model, model, text=[PROSE])
    assert found.metrics["key_tokens"]["value"] > 10
    assert found.metrics["perplexity"] == alone.metrics["perplexity"]
    assert found.protocol["evaluator"] != alone.protocol["evaluator"]


def test_where_no_token_gains_nothing_is_claimed(models):
    model = load(models / "first")
    settings = KEYS.model_copy(update={"key_gain": 50.0})
    found = measure_longppl(settings, ON_TEXT, model, model, text=[PROSE])
    assert found.metrics["longppl"]["value"] is None and "no token needs" in found.metrics["longppl"]["note"]
    assert found.metrics["key_tokens"]["value"] == 0


def test_the_command_says_it_and_the_ledger_has_it(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    command = ["evaluate", str(models / "first"), "--task", "longppl", "--text", str(text), "--num-windows", "2"]
    command += ["--context", "96", "--short-context", "32", "--short-step", "16", "--key-gain", "0", "--key-loss", "20"]
    main([*command, "--evaluator", str(models / "second"), "-o", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "LongPPL" in said and "Key tokens" in said and "key tokens by" in said
    (measured,) = [row for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "measurement"]
    assert measured["protocol"]["short_context"] == 32 and measured["metrics"]["longppl"]["value"] > 1


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--task", "longppl"], "do not reach beyond a short context of 4,096"),
        (["--task", "longppl", "--context", "512", "--short-context", "64"], "positions end at 256"),
        (["--task", "longppl", "--lengths", "3k"], "is for tasks of RULER"),
        (["--task", "longppl", "--audit"], "no task whose prompts"),
        (["--task", "longppl", "--no-speed"], "is for a measurement on text"),
        (["--task", "ruler:vt", "--key-gain", "1"], "add --task longppl"),
        (["--short-context", "64"], "add --task longppl"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(models, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(["evaluate", str(models / "first"), *arguments])
    assert told in capsys.readouterr().err


def test_a_window_that_the_evaluator_cannot_hold_is_refused(models):
    model, evaluator = load(models / "first"), load(models / "other")
    with pytest.raises(SettingsError, match="of the evaluator's tokens, whose positions end at 256"):
        measure_longppl(KEYS, ON_TEXT.model_copy(update={"context": 250}), model, evaluator, text=[PROSE])


def test_losses_are_those_of_the_whole_window(models):
    """The evaluator's pieces and the model's losses come of one function."""
    from burnish.evaluate.forward import ChunkedLogits

    module = load(models / "first").module.eval()
    ids = torch.arange(1, 60)
    whole = losses_of(ChunkedLogits(module, name="it", chunk=7), ids, 0)
    with torch.inference_mode():
        logits = module(input_ids=ids[None]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    assert whole == pytest.approx(expected.numpy(), abs=1e-5)
