"""Sparse attention in stock models: what it leaves as it is, what it reads, what is refused."""

import json

import pytest
import torch
from torch.testing import assert_close

import small_models
from burnish.cli import main
from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.store import Store
from burnish.evaluate.ruler.answering import RulerAnswering
from burnish.evaluate.ruler.measure import fitted, measure_ruler
from burnish.evaluate.ruler.prompt import context_tokens, sent
from burnish.evaluate.ruler.settings import RulerMeasurement
from burnish.evaluate.ruler.tasks import TASKS
from burnish.evaluate.sparse.attention import check, sparse
from burnish.evaluate.sparse.channels import channels_on
from burnish.evaluate.sparse.spec import PARTS, parts_of

LENGTH, FIRST = 60, 41
EVERY = [
    "sink:2+local:8",
    "sink:2+local:8+topk:0.1",
    "topk:9",
    "topp:0.6",
    "sink:1+quest:0.3,page=4",
    "doublesparsity:0.2,channels=4",
    "snapkv:20,window=6,pool=3",
    "local:4+magicpig:8,bits=3",
    "local:4+magicpig:12,bits=2,shared=2",
    "sink:2+adaptive:0.5,base=0.1",
    "random:0.5",
]


@pytest.fixture(scope="module")
def model():
    return small_models.make("llama").eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 384, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def channels_for(model, text, ids):
    double = parts_of(text).get("doublesparsity")
    return None if double is None else channels_on(model, ids, double.channels)


@torch.inference_mode()
def logits_of(model, ids, text, first=FIRST, **settings):
    settings.setdefault("channels", channels_for(model, text, ids))
    with sparse(model, parts_of(text), **settings) as attention:
        attention.begin(first)
        return model(input_ids=ids, use_cache=False).logits[0], attention.cost()


@pytest.mark.parametrize(
    "text", ["topk:1.0", "topp:1.0", "local:999", "quest:1.0,page=7", "adaptive:0.00001", "random:1.0", "snapkv:0.9999"]
)
def test_with_every_key_it_is_dense_attention_bit_for_bit(model, ids, text):
    with torch.inference_mode():
        dense = model(input_ids=ids, use_cache=False).logits[0]
    found, cost = logits_of(model, ids, text)
    assert torch.equal(found, dense)
    assert cost["density"] == 1 and cost["output_error"] == 0 and cost["kv_bytes"] == cost["dense_bytes"]


@pytest.mark.parametrize("text", EVERY)
def test_the_context_is_read_densely_and_what_follows_is_not(model, ids, text):
    with torch.inference_mode():
        dense = model(input_ids=ids, use_cache=False).logits[0]
    found, cost = logits_of(model, ids, text)
    assert torch.equal(found[:FIRST], dense[:FIRST])
    assert not torch.equal(found[FIRST:], dense[FIRST:])
    assert cost["queries"] == LENGTH - FIRST
    assert 0 < cost["density"] < 1 and 0 < cost["mass_recall"] < 1 and cost["output_error"] > 0
    assert model.config._attn_implementation != "burnish_sparse"


@pytest.mark.parametrize("text", EVERY)
def test_a_decoded_token_sees_what_its_row_of_the_prompt_sees(model, ids, text):
    """One token at a time with a cache, and all at once: the same rows, sampled ones included."""
    whole, cost = logits_of(model, ids, text)
    with sparse(model, parts_of(text), channels=channels_for(model, text, ids)) as attention, torch.inference_mode():
        attention.begin(FIRST)
        output = model(input_ids=ids[:, :FIRST], use_cache=True)
        rows = [output.logits[0, -1]]
        for place in range(FIRST, LENGTH):
            output = model(input_ids=ids[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0, -1])
        assert attention.cost()["density"] == pytest.approx(cost["density"])
    assert_close(torch.stack(rows), whole[FIRST - 1 :], atol=2e-5, rtol=1e-4)


def test_what_was_kept_of_a_prompt_is_forgotten_at_the_next(model, ids):
    """One without a context has nothing that could have been left out."""
    with sparse(model, parts_of("snapkv:20,window=6,pool=3")) as attention, torch.inference_mode():
        attention.begin(FIRST)
        model(input_ids=ids, use_cache=False)
        assert attention.cost()["density"] < 1
        attention.begin(0)
        model(input_ids=ids, use_cache=False)
        assert attention.cost()["density"] == 1


def test_what_is_left_out_is_not_looked_at(model, ids):
    """A token between sinks and window changes the last logits of dense layers alone."""
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 384
    short, _ = logits_of(model, ids, "sink:2+local:8", first=0)
    moved = (short - logits_of(model, changed, "sink:2+local:8", first=0)[0]).abs().amax(dim=-1) > 0
    # Two layers with windows of 8: what is changed reaches 14 tokens.
    assert moved.nonzero().flatten().tolist() == list(range(20, 35))
    some_dense, cost = logits_of(model, ids, "sink:2+local:8", first=0, dense_layers=(0,))
    moved = (some_dense - logits_of(model, changed, "sink:2+local:8", first=0, dense_layers=(0,))[0]).abs().amax(
        dim=-1
    ) > 0
    assert moved[20:].all()
    assert cost["layers"]["density"][0] == 1 and cost["layers"]["density"][1] < 0.5
    assert cost["density"] == pytest.approx((1 + cost["layers"]["density"][1]) / 2)


def test_bytes_are_those_that_keys_values_and_index_have(model, ids):
    """Two layers, two heads of keys of 16 and values of 16 in float32; one query, which sees 60 keys."""
    entry, every = (16 + 16) * 4, 2 * 2 * LENGTH
    _, cost = logits_of(model, ids, "sink:2+local:8", first=LENGTH - 1)
    assert cost["density"] == pytest.approx(10 / LENGTH)
    assert cost["kv_bytes"] == 2 * 2 * 10 * entry and cost["index_bytes"] == 0 and cost["dense_bytes"] == every * entry
    index = {
        "quest:0.1,page=8": 2 * 2 * 8 * 2 * 16 * 4,
        "doublesparsity:0.1,channels=4": every * (4 * 4 / 8 + 8),
        "magicpig:10,bits=4": every * 10 * 4 / 8,
        "topk:3": every * 16 * 4,
        "random:0.5": 0,
    }
    for text, wanted in index.items():
        assert logits_of(model, ids, text, first=LENGTH - 1)[1]["index_bytes"] == wanted, text


@pytest.mark.parametrize("text", EVERY)
def test_without_a_context_every_token_is_answered_sparsely(model, ids, text):
    _, cost = logits_of(model, ids, text, first=0)
    assert cost["queries"] == LENGTH
    assert cost["density"] == 1 if text.startswith("snapkv") else cost["density"] < 1


def test_every_query_head_chooses_for_itself(model, ids):
    """Heads that share keys read their union: more than one of them, less than all."""
    _, cost = logits_of(model, ids, "topk:6", first=LENGTH - 1)
    read = cost["kv_bytes"] / ((16 + 16) * 4) / 4
    assert 6 < read < 12


def test_what_is_drawn_follows_the_seed(model, ids):
    one, other = logits_of(model, ids, "random:0.5")[0], logits_of(model, ids, "random:0.5", seed=1)[0]
    assert torch.equal(one, logits_of(model, ids, "random:0.5")[0]) and not torch.equal(one, other)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, told",
    [
        ("quest:0", "greater than 0"),
        ("quest:1.5", "1.5 is no share of the keys"),
        ("topp:1.2", "less than or equal to 1"),
        ("random:0", "greater than 0"),
        ("sink:2.5", "valid integer"),
        ("local:99999999999999999999", "local: amount is '99999999999999999999'"),
        ("topk:1e30", "topk: amount is '1e30'"),
        ("quest:0.1,page=1000000000", "quest: page is '1000000000'"),
        ("magicpig:1000000,bits=62", "magicpig: amount is '1000000'"),
        ("sink", "sink has no amount"),
        ("quest:page=3", "quest has no amount"),
        ("qest:0.1", "did you mean 'quest'"),
        ("quest:0.1,pages=3", "did you mean 'page'"),
        ("quest:0.1,page", "'page' of quest is no setting"),
        ("quest:0.1,page=2,page=3", "page of quest stands there twice"),
        ("sink:2+sink:3", "sink stands there twice"),
        ("random:0.1+topk:0.1", "topk cannot follow random"),
        ("random:0.1+adaptive:0.1", "adaptive cannot follow random"),
        ("snapkv:0.1+quest:0.1", "quest does not compose with snapkv"),
        ("local:8+snapkv:0.1", "local does not compose with snapkv"),
        ("snapkv:0.1,pool=4", "use an odd number"),
        ("magicpig:1,shared=2", "2 tables cannot agree of 1"),
    ],
)
def test_mechanisms_that_cannot_be_are_one_sentence(text, told):
    with pytest.raises(SettingsError, match=told):
        parts_of(text)


def test_every_mechanism_is_among_those_that_are_tried():
    assert {name for text in EVERY for name in parts_of(text)} == set(PARTS)


@pytest.mark.parametrize(
    "kind, changes, told",
    [
        ("deepseek_v3", {}, "MLA"),
        ("bloom", {}, "ALiBi"),
        ("mistral", {"sliding_window": 16}, "layers that see 16 tokens alone"),
        ("gemma2", {}, "bends its attention scores"),
        ("jamba", {}, "of the kind"),
    ],
)
def test_attention_of_another_kind_is_refused_by_name(kind, changes, told):
    config = small_models.small_config(kind, **changes)
    with pytest.raises(SettingsError, match=told) as error:
        check(config, parts_of("topk:0.1"), (), longest=64)
    assert config.get_text_config().model_type in str(error.value)


@pytest.mark.parametrize(
    "text, dense, told",
    [
        ("topk:0.1", (2,), "there is no layer 2"),
        ("topk:0.1", (0, 1), "every layer stays dense"),
        ("doublesparsity:0.1,channels=17", (), "17 channels, but a key has 16"),
    ],
)
def test_layers_and_channels_that_are_not_there_are_refused(model, text, dense, told):
    with pytest.raises(SettingsError, match=told):
        check(model.config, parts_of(text), dense)


def test_several_prompts_at_a_time_are_refused(model, ids):
    with pytest.raises(SettingsError, match="one prompt at a time"):
        logits_of(model, ids.repeat(2, 1), "topk:0.1")


def test_a_model_whose_layers_do_not_ask_is_refused(model, ids):
    with sparse(model, parts_of("topk:0.1")) as attention, torch.inference_mode():
        attention.begin(0)
        model(input_ids=ids)
        attention.check_called(2)
        with pytest.raises(SettingsError, match="2 of the model's 3 layers"):
            attention.check_called(3)


# -- RULER -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "long"
    small_models.make("llama", max_position_embeddings=4096).save_pretrained(directory)
    small_models.small_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("template", ["none", "chat"])
def test_the_question_begins_where_the_context_ends(name, template):
    tokenizer = small_models.small_tokenizer(special=("<|endoftext|>", "<|user|>", "<|bot|>"))
    tokenizer.chat_template = "<|user|>{{ messages[0].content }}<|bot|>"
    prompt, ids = fitted(tokenizer, TASKS[name], 3000, [0.5], template, "seed")[0]
    assert ids == sent(tokenizer, prompt, template)
    asked = tokenizer.decode(ids[context_tokens(tokenizer, prompt, template) :])
    question = asked.lstrip("\n").removesuffix(prompt.prefix).removesuffix("<|bot|>")
    assert question == prompt.text.split("\n")[-1]
    assert question.startswith(("What is the special magic", "Question: ", 'Key: "')) or name == "letters"


def test_the_first_token_of_an_answer_has_read_everything_in_protocol_a_alone(long_model):
    model = load(long_model)
    module, tokenizer = model.module, model.tokenizer
    prompt, ids = fitted(tokenizer, TASKS["niah_single_1"], 1024, [0.5], "none", "seed")[0]
    question = len(ids) - context_tokens(tokenizer, prompt, "none")
    answers = {}
    for protocol in ("A", "B"):
        own = RulerMeasurement(attention="sink:1+local:2", attention_protocol=protocol, template="none")
        answers[protocol] = RulerAnswering(module, tokenizer, own)(prompt, ids, 4)
    dense = RulerAnswering(module, tokenizer, RulerMeasurement(template="none"))(prompt, ids, 4)
    assert answers["A"].cost["queries"] == 3 and answers["B"].cost["queries"] == 3 + question
    assert answers["A"].text[:1] == dense.text[:1] and dense.cost == {}


def test_a_full_mask_answers_as_dense_attention_does(long_model):
    model = load(long_model)
    prompt, ids = fitted(model.tokenizer, TASKS["niah_multikey_2"], 1024, [0.5], "none", "seed")[0]
    said = [
        RulerAnswering(model.module, model.tokenizer, RulerMeasurement(template="none", attention=attention))(
            prompt, ids, 12
        )
        for attention in (None, "topp:1.0", "sink:1+local:2")
    ]
    assert said[0].text == said[1].text != said[2].text


@pytest.mark.parametrize("protocol", ["A", "B"])
@pytest.mark.parametrize("attention", [None, "topk:0.1", "sink:1+quest:0.3,page=4", "sink:1+snapkv:0.2,window=4"])
def test_a_context_that_was_read_before_is_answered_as_one_that_was_not(long_model, attention, protocol):
    model = load(long_model)
    prompt, ids = fitted(model.tokenizer, TASKS["niah_multikey_2"], 700, [0.5], "none", "seed")[0]
    asks = {"template": "none"} | ({"attention": attention, "attention_protocol": protocol} if attention else {})
    answering = RulerAnswering(model.module, model.tokenizer, RulerMeasurement.parse(asks, where="here"))
    read = answering.read(ids[: context_tokens(model.tokenizer, prompt, "none") - 4])
    length = read.get_seq_length()
    whole, behind, again = (answering(prompt, ids, 6, one) for one in (None, read, read))
    assert whole.text == behind.text == again.text and read.get_seq_length() == length
    assert [one.cost.get("queries") for one in (whole, behind)] == [whole.cost.get("queries")] * 2
    for name in ("density", "mass_recall", "output_error", "kv_bytes") if attention else ():
        assert behind.cost[name] == pytest.approx(whole.cost[name], rel=1e-4)


def test_the_command_measures_what_was_read_and_goes_on(long_model, tmp_path, capsys, monkeypatch):
    command = ["evaluate", str(long_model), "--task", "ruler:niah_single", "--lengths", "600", "--samples", "1"]
    command += ["--depths", "2", "--template", "none", "-o", str(tmp_path / "run")]
    sparsely = [*command, "--attention", "sink:4+doublesparsity:0.1,channels=4", "--dense-layers", "0"]
    main(command)
    main(sparsely)
    said = capsys.readouterr().out
    assert "protocol B (question and answer); dense layers: 0" in said and "no time is measured" in said
    rows = read_rows(tmp_path / "run" / LEDGER_FILE)
    measured = [row["protocol"] for row in rows if row["row"] == "measurement"]
    assert len(measured) == 2 and "attention" not in measured[0]
    assert measured[1]["attention"].startswith("sink:4") and measured[1]["attention_protocol"] == "B"
    (costs,) = [row for row in rows if row.get("name") == "sparse_attention"]
    (found,) = costs["rows"]
    assert 0.5 < found["density"] < 0.7 and found["output_error"] > 0
    (layers,) = [row for row in rows if row.get("name") == "sparse_layers"]
    assert [row["layer"] for row in layers["rows"]] == [0, 1] and layers["rows"][0]["density"] == 1
    monkeypatch.setattr(RulerAnswering, "__call__", lambda *given: pytest.fail("a kept answer was asked for again"))
    main(sparsely)
    main(command)


def test_what_was_answered_by_other_attention_is_not_taken(long_model, tmp_path):
    own = {"lengths": "600", "samples": 1, "depths": 2, "template": "none"}
    model, store = load(long_model), Store(tmp_path)
    for attention in ("local:4", "local:5"):
        measure_ruler(RulerMeasurement(attention=attention, **own), model, ["niah_single_1"], store=store)
    kept = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/answers.json"))]
    assert len(kept) == 2 and kept[0] != kept[1]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--attention", "quest:0"], "greater than 0"),
        (["--attention-protocol", "A"], "counts for nothing without attention"),
        (["--dense-layers", "0"], "counts for nothing without attention"),
        (["--attention", "topk:0.1", "--dense-layers", "7"], "there is no layer 7"),
    ],
)
def test_what_cannot_be_asked_is_said(long_model, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(["evaluate", str(long_model), "--task", "ruler:niah_single", "--lengths", "600", *arguments])
    assert told in capsys.readouterr().err
