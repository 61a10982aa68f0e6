"""RULER: prompts against the official samples, the metric, what is sent, and scores by depth."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from burnish.cli import main
from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.store import Store
from burnish.evaluate.ruler.answering import RulerAnswer, RulerAnswering
from burnish.evaluate.ruler.measure import fitted, measure_ruler, places, sample_seed
from burnish.evaluate.ruler.prompt import added_tokens, audit, sent, template_of
from burnish.evaluate.ruler.score import by_depth, spread, summary
from burnish.evaluate.ruler.settings import RulerMeasurement, lengths_of, tasks_of
from burnish.evaluate.ruler.tasks import TASKS, Prompt
from burnish.verify.ruler import share_found
from small_models import small_tokenizer

SAMPLES = {
    row["task"]: row
    for row in map(
        json.loads,
        (Path(__file__).parents[1] / "reference" / "evaluate" / "ruler_samples.jsonl").read_text().splitlines(),
    )
}


class Words:
    """A token for every word and every run of punctuation, as the official samples were counted."""

    chat_template, bos_token_id = None, None

    def __call__(self, text, **settings):
        return {"input_ids": re.findall(r"\w+|[^\w\s]+", text)}


def skeleton(text):
    """A prompt without what is drawn: numbers, keys, variables, coded words and lists."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "U", text)
    text = re.sub(r"(for|magic number for) [a-z]+(-[a-z]+)+", r"\1 K", text)
    text = re.sub(r"\b[A-Z]{5}\b|\b(?!VAR)[A-Z]{3}\b", "V", text)
    return re.sub(r"\d+", "N", text)


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt"])
def test_a_prompt_is_the_official_one_but_for_what_is_drawn(name):
    official = SAMPLES[name]
    (prompt, _), *_ = fitted(Words(), TASKS[name], 2048, [0.4], "none", "seed")
    ours, theirs = (sorted(set(skeleton(text).split("\n"))) for text in (prompt.text, official["input"]))
    assert ours == theirs
    assert skeleton(prompt.prefix) == skeleton(official["answer_prefix"])
    assert len(prompt.answers) == len(official["outputs"])


@pytest.mark.parametrize("name", ["cwe", "fwe"])
def test_what_is_around_a_list_of_words_is_the_official_text(name):
    official = SAMPLES[name]
    (prompt, _), *_ = fitted(Words(), TASKS[name], 2048, [0.5], "none", "seed")
    for ends in (slice(0, 90), slice(-60, None)):
        assert prompt.text[ends] == official["input"][ends]
    assert prompt.prefix == official["answer_prefix"] and len(prompt.answers) == len(official["outputs"])
    assert prompt.text.count("\n") == official["input"].count("\n")


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_as_much_haystack_fits_as_in_the_official_sample(name):
    """The length of an official sample is counted as here; ours comes at least as near to the limit."""
    official, task = SAMPLES[name], TASKS[name]
    words = Words()
    count = len(words(official["input"] + official["answer_prefix"])["input_ids"]) + task.num_generated
    assert count == official["length"] <= 2048
    ((prompt, ids),) = fitted(words, task, 2048, [0.5], "none", "seed")
    ours = len(ids) + task.num_generated
    assert official["length"] - 15 <= ours <= 2048
    assert abs(len(prompt.text) / len(official["input"]) - 1) < 0.1


def test_the_three_words_are_the_most_frequent_and_fall_as_the_square_of_the_rank():
    prompt = TASKS["fwe"].draw("seed", 1500, 2048, 0.5)
    counts = [prompt.text.split().count(word) for word in prompt.answers]
    assert counts[0] > counts[1] > counts[2] > 0
    expected = [1500 * 6 / np.pi**2 / rank**2 for rank in (2, 3, 4)]
    assert counts == [int(one) for one in expected]


def test_the_ten_words_stand_more_often_than_all_others():
    prompt = TASKS["cwe"].draw("seed", 60, 2048, 0.5)
    listed = re.findall(r"\d+\. (\w+)", prompt.text.rsplit("Below is", 1)[1])
    counts = {word: listed.count(word) for word in listed}
    assert sorted(counts, key=counts.get)[-10:] and {counts[word] for word in prompt.answers} == {6}
    assert max(count for word, count in counts.items() if word not in prompt.answers) == 1


def test_a_chain_leads_from_the_number_through_every_variable():
    prompt = TASKS["vt"].draw("seed", 20, 2048, 0.5)
    question = prompt.text.rsplit("Memorize", 1)[1]
    number = re.search(r"assigned the value (\d+)", question)[1]
    known = {match[0] for match in re.findall(rf"VAR (\w+) = {number}()", question)}
    for variable, before in re.findall(r"VAR (\w+) = VAR (\w+)", question):
        assert before in known
        known.add(variable)
    assert known == set(prompt.answers) and len(known) == 5


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2"])
def test_the_same_needle_is_asked_for_in_the_same_haystack_at_every_depth(name):
    prompts = [TASKS[name].draw("seed", 40, 2048, depth) for depth in (0.0, 0.5, 1.0)]
    lines = [prompt.text.split("\n") for prompt in prompts]
    assert len({prompt.answers for prompt in prompts}) == 1
    assert sorted(lines[0]) == sorted(lines[1]) == sorted(lines[2])
    at = [next(i for i, line in enumerate(one) if prompts[0].answers[0] in line) for one in lines]
    assert at == [1, 21, 41]
    assert TASKS[name].draw("other", 40, 2048, 0.5).answers != prompts[0].answers


def test_a_json_object_is_asked_for_in_the_words_of_its_paper():
    prompt = TASKS["kv_json"].draw("seed", 9, 0, 0.4)
    before, _, rest = prompt.text.partition("JSON data:\n")
    data, _, question = rest.rpartition("\n\n")
    pairs = list(json.loads(data).items())
    assert before == "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    assert question == f'Key: "{pairs[4][0]}"' and prompt.answers == (pairs[4][1],) and len(pairs) == 10
    assert prompt.prefix == "\nCorresponding value:"


@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_a_letter_stands_at_its_depth_beside_seven_others(depth):
    drawn = [TASKS["letters"].draw("seed", 50, 0, each) for each in (depth, 0.5)]
    text, key, (value,) = drawn[0].text, drawn[0].prefix, drawn[0].answers
    assert len(text) == 103 and text[-1] == "\n"
    pairs = re.findall("([a-m])([N-Z])", text)
    assert len(pairs) == len(dict(pairs)) == 8 and dict(pairs)[key] == value
    assert text.index(key + value) == round(depth * 50) * 2
    assert [one.text.replace(key + value, "") for one in drawn] == [text.replace(key + value, "")] * 2


# -- the metric --------------------------------------------------------------------------------------------------------


def official_string_match_all(preds, refs):
    """scripts/eval/synthetic/constants.py of NVIDIA/RULER at c3f5e3b."""
    pairs = zip(preds, refs, strict=True)
    found = [sum([1.0 if r.lower() in pred.lower() else 0.0 for r in ref]) / len(ref) for pred, ref in pairs]
    return round(sum(found) / len(preds) * 100, 2)


def test_the_metric_is_the_official_one():
    answers = ["7374122.", "ulzdx and EBLNU", "", "one\x00two\n three", "none of them"]
    wanted = [["7374122"], ["ULZDX", "EBLNU", "RYTFL"], ["x"], ["one", "two", "three"], ["a", "of"]]
    ours = 100 * np.mean([share_found(answer, one) for answer, one in zip(answers, wanted, strict=True)])
    assert round(float(ours), 2) == official_string_match_all(answers, wanted)


def test_gold_answers_are_no_part_of_what_is_asked_but_of_the_haystack():
    for name, row in SAMPLES.items():
        assert share_found(row["input"], row["outputs"]) == 1, name
        assert share_found(row["answer_prefix"], row["outputs"]) == 0, name


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_the_prefix_stands_behind_the_template_and_the_beginning_once():
    tokenizer = small_tokenizer(special=("<|endoftext|>", "<|user|>", "<|bot|>"))
    prompt = Prompt("What?", " It is", ("x",))
    assert template_of(tokenizer, "auto") == "none"
    assert tokenizer.decode(sent(tokenizer, prompt, "none")) == "What? It is"
    tokenizer.chat_template = "{{ bos_token }}<|user|>{{ messages[0].content }}<|bot|>"
    assert template_of(tokenizer, "auto") == "chat" and template_of(tokenizer, "none") == "none"
    ids = sent(tokenizer, prompt, "chat")
    assert tokenizer.decode(ids) == "<|endoftext|><|user|>What?<|bot|> It is" and ids.count(tokenizer.bos_token_id) == 1
    assert audit(tokenizer, ids, 1) == ("<|endoftext|>", tokenizer.decode(ids[-1:]))
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}"
    with pytest.raises(SettingsError, match="two beginning tokens"):
        sent(tokenizer, prompt, "chat")


@pytest.mark.parametrize(
    "slip, wanted",
    [
        ("template", "<|endoftext|><|user|><|endoftext|><|user|>What?<|bot|><|bot|> It is"),
        ("bos", "<|endoftext|><|endoftext|><|user|>What?<|bot|> It is"),
        ("prefix", "<|endoftext|><|user|>What?<|bot|>"),
    ],
)
def test_a_slip_is_made_as_it_is_named(slip, wanted):
    tokenizer = small_tokenizer(special=("<|endoftext|>", "<|user|>", "<|bot|>"))
    tokenizer.chat_template = "{{ bos_token }}<|user|>{{ messages[0].content }}<|bot|>"
    prompt = Prompt("What?", " It is", ("x",))
    ids = sent(tokenizer, prompt, "chat", slip)
    assert tokenizer.decode(ids) == wanted
    more = {"template": 3, "bos": 1, "prefix": 0}  # an empty prompt has no prefix
    assert added_tokens(tokenizer, "chat", slip) == more[slip]
    assert sent(tokenizer, prompt, "none", "bos")[:2] == [tokenizer.bos_token_id] * 2


def test_a_template_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="no chat template"):
        template_of(small_tokenizer(), "chat")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_prompt_and_answer_stay_within_the_length_at_every_depth(name):
    tokenizer, task = small_tokenizer(), TASKS[name]
    for length in (2600, 6000):
        for _, ids in fitted(tokenizer, task, length, places(RulerMeasurement(depths=4), task), "none", "seed"):
            assert len(ids) + task.num_generated <= length
    with pytest.raises(SettingsError, match="are too few for"):
        fitted(tokenizer, task, 15, [0.5], "none", "seed")


def test_depths_are_different_places_in_the_shortest_prompt_that_is_allowed():
    """At as few tokens as are not refused; with one fewer the depths are named."""
    tokenizer, task = small_tokenizer(), TASKS["niah_single_1"]
    depths = places(RulerMeasurement(depths=12), task)
    for length in range(400, 4000, 25):
        try:
            asked = fitted(tokenizer, task, length, depths, "none", "seed")
            break
        except SettingsError as error:
            told = str(error)
    assert "no 12 places for a needle" in told
    assert len({prompt.text for prompt, _ in asked}) == 12


# -- scores by depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [np.ones((5, 3)), np.zeros((5, 3)), np.vstack([np.ones((5, 3)), np.zeros((1, 3))])])
def test_an_interval_of_few_samples_is_no_point_and_stays_between_0_and_1(samples):
    found = summary(samples)
    assert 0 <= found["score_low"] <= found["score"] <= found["score_high"] <= 1
    assert found["score_high"] - found["score_low"] > 0.3


def test_depths_are_compared_on_the_same_samples():
    scores = np.ones((12, 5))
    scores[:8, 2] = 0
    found = spread(scores, [0, 0.25, 0.5, 0.75, 1])
    assert found["worst_depth"] == 0.5 and found["worst_score"] == pytest.approx(4 / 12)
    assert found["spread"] == pytest.approx(8 / 12) and found["spread_low"] > 0 and found["p_value"] < 0.01
    row = by_depth(scores, [0, 0.25, 0.5, 0.75, 1])[2]
    assert row["score"] == pytest.approx(4 / 12) and row["below_best"] == pytest.approx(8 / 12)
    assert row["below_best_low"] > 0


def test_depths_that_do_not_matter_have_the_spread_of_chance():
    rng = np.random.default_rng(0)
    values = [
        spread((rng.random((10, 10)) < 0.6).astype(float), list(range(10)), seed)["p_value"] for seed in range(60)
    ]
    assert np.mean(values) > 0.35 and np.mean(np.array(values) < 0.05) < 0.2


# -- a model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    import small_models

    directory = tmp_path_factory.mktemp("models") / "long"
    small_models.make("llama", max_position_embeddings=4096, num_hidden_layers=1).save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    return directory


SMALL = RulerMeasurement(lengths="1k", samples=2, depths=3, template="none")


def test_an_answer_ends_where_its_score_is_settled(long_model, monkeypatch):
    """An answer to any single letter ends early; its score is that of the whole one."""
    model = load(long_model)
    answering = RulerAnswering(model.module, model.tokenizer, SMALL)
    ids = model.tokenizer("Where are we?")["input_ids"]
    whole = answering(Prompt("", "", ("no model says this by chance",)), ids, 40).text
    letter = (whole.strip() or "x")[0]
    short = answering(Prompt("", "", (letter,)), ids, 40).text
    assert whole.startswith(short) and share_found(short, [letter]) == share_found(whole, [letter]) == 1


def test_penalties_in_the_generation_config_change_no_answer(long_model):
    model = load(long_model)
    answering = RulerAnswering(model.module, model.tokenizer, SMALL)
    prompt, ids = Prompt("", "", ("no model says this by chance",)), model.tokenizer("Where are we?")["input_ids"]
    plain = answering(prompt, ids, 40)
    own = model.module.generation_config
    own.update(repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, temperature=3.0)
    assert RulerAnswering(model.module, model.tokenizer, SMALL)(prompt, ids, 40) == plain
    assert model.module.generation_config is own and own.repetition_penalty == 5.0


def test_a_measurement_that_was_stopped_goes_on(long_model, tmp_path, monkeypatch):
    calls = []

    def answer(self, prompt, ids, num_generated):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return RulerAnswer(prompt.answers[0] if prompt.depth != 0.5 else "nothing")

    monkeypatch.setattr(RulerAnswering, "__call__", answer)
    model, store = load(long_model), Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure_ruler(SMALL, model, ["niah_single_1"], store=store)
    found = measure_ruler(SMALL, model, ["niah_single_1"], store=store)
    assert len(calls) == 5 + 3  # the first sample is kept whole
    again = measure_ruler(SMALL, model, ["niah_single_1"], store=store)
    assert len(calls) == 8 and again.tables == found.tables
    assert found.evaluation.metrics["ruler_niah_single_1_1024"]["value"] == pytest.approx(2 / 3)
    (row,) = found.tables["ruler_scores"]
    assert row["worst_depth"] == 0.5 and row["worst_score"] == 0 and row["spread"] == 1


def test_a_length_too_short_for_the_last_task_is_refused_before_the_first_is_asked(long_model, monkeypatch):
    monkeypatch.setattr(RulerAnswering, "__call__", lambda *given: pytest.fail("a model was asked"))
    with pytest.raises(SettingsError, match="too few for cwe"):
        measure_ruler(SMALL, load(long_model), ["niah_single_1", "cwe"])


def test_the_protocol_names_what_decides(long_model, monkeypatch):
    monkeypatch.setattr(RulerAnswering, "__call__", lambda self, prompt, ids, num_generated: RulerAnswer(""))
    model = load(long_model)
    found = measure_ruler(SMALL, model, ["niah_single_1"]).evaluation.protocol
    assert found["template"] == "none" and found["beginning_token"] == "once" and found["lengths"] == [1024]
    other = measure_ruler(SMALL.model_copy(update={"seed": 1}), model, ["niah_single_1"]).evaluation.protocol
    assert other["prompts"] != found["prompts"]


def test_a_slip_is_another_protocol_on_the_same_prompts(long_model, tmp_path, monkeypatch):
    asked = []

    def answer(self, prompt, ids, num_generated):
        asked.append((prompt.text, len(ids)))
        return RulerAnswer("")

    monkeypatch.setattr(RulerAnswering, "__call__", answer)
    model, store = load(long_model), Store(tmp_path)
    plain = measure_ruler(SMALL, model, ["niah_single_1"], store=store).evaluation.protocol
    slipped = measure_ruler(SMALL.model_copy(update={"slip": "bos"}), model, ["niah_single_1"], store=store)
    assert plain["beginning_token"] == "once" and slipped.evaluation.protocol["beginning_token"] == "twice"
    assert [text for text, _ in asked[:6]] == [text for text, _ in asked[6:]]
    assert [length + 2 for _, length in asked[:6]] == [length for _, length in asked[6:]]


def test_the_command_measures_and_the_ledger_has_it(long_model, tmp_path, capsys):
    command = ["evaluate", str(long_model), "--task", "ruler:vt", "--lengths", "3k", "--samples", "1"]
    main([*command, "--audit"])
    shown = capsys.readouterr().out
    assert "vt, 3,072 tokens" in shown and "they| are" not in shown.split("last:")[0] and "wanted:" in shown
    main([*command, "-o", str(tmp_path / "run")])
    assert "vt" in capsys.readouterr().out
    rows = read_rows(tmp_path / "run" / LEDGER_FILE)
    assert [row["name"] for row in rows if row["row"] == "table"] == ["ruler_scores"]
    (measured,) = [row for row in rows if row["row"] == "measurement"]
    assert measured["metrics"]["ruler_vt_3072"]["value"] == 0


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--task", "ruler:nia"], "there is no RULER task 'nia'"),
        (["--task", "vt"], "write ruler:niah_multikey,vt"),
        (["--task", "ruler:vt,vt"], "stands there twice"),
        (["--task", "ruler:vt", "--lengths", "1m"], "is no number of tokens"),
        (["--task", "ruler:vt", "--lengths", "8k"], "positions end at 4,096"),
        (["--task", "ruler:vt", "--lengths", "8k", "--audit"], "positions end at 4,096"),
        (["--task", "ruler:cwe", "--lengths", "300"], "too few for cwe"),
        (["--task", "ruler:niah_single_1", "--lengths", "2k", "--depths", "100"], "no 100 places for a needle"),
        (["--lengths", "2k"], "add --task"),
        (["--audit"], "no task whose prompts"),
        (
            ["--task", "ruler:vt", "--against", "models/other"],
            "--against: is for a measurement on text; leave out --against or --task",
        ),
        (
            ["--task", "ruler:vt", "--engine", "vllm"],
            "--engine: is for a measurement on text; leave out --engine or --task",
        ),
        (["--task", "ruler:vt", "--num-windows", "3"], "--num-windows: is for a measurement on text"),
        (["--task", "ruler:vt", "--lengths", "2k", "--slip", "template"], "no template is used that could be written"),
        (["--task", "ruler:vt", "--lengths", "2k", "--slip", "template", "--audit"], "no template is used"),
        (["--task", "ruler:vt", "--lengths", "4k", "--slip", "bos"], "a length is 4,096 tokens and 2 more by the slip"),
        (["--task", "ruler:vt", "--slip", "bos", "--attention", "topk:0.1"], "slip and attention are two questions"),
        (["--endpoint", "a=http://127.0.0.1:9/v1,b"], "--endpoint: is for tasks of RULER"),
        (["--task", "longppl", "--endpoint", "a=http://127.0.0.1:9/v1,b"], "--endpoint: is for tasks of RULER"),
        (
            ["--pairs", "pairs.jsonl", "--context", "64"],
            "--context: is for a measurement on text; leave out --context or --pairs",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(long_model, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(["evaluate", str(long_model), *arguments])
    assert told in capsys.readouterr().err


def test_names_and_lengths_are_read():
    assert tasks_of("ruler:niah_single, niah_multikey,vt") == ["niah_single_1", "niah_multikey_2", "vt"]
    assert lengths_of("1k,2K,3000") == [1024, 2048, 3000]
    settings = RulerMeasurement()
    assert sample_seed(settings, TASKS["vt"], 1024, 0) != sample_seed(settings, TASKS["vt"], 1024, 1)
