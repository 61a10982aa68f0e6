"""The stage `train`, from Python and as a command."""

import itertools
import json
import signal

import pytest
import torch
import transformers

import burnish
import small_models
import warm
from burnish.cli import main
from burnish.core.checkpoint import model_card, plan_config
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.ledger import Ledger, read_rows
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.train.loop import Loop
from burnish.train.lora import with_adapters
from burnish.train.rows import any_large
from burnish.train.run import freeze_all_but, loop_of
from burnish.train.scratch import initialise
from burnish.train.stage import Train

PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
OTHER = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse. "
SMALL = {"context": 32, "batch": 4, "steps": 3, "lr": 0.01}


@pytest.fixture
def tiny(tiny_llama):
    return burnish.load(tiny_llama)


def state(model):
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["normuon", "adamw"])
def test_training_lowers_the_loss_and_leaves_the_input_alone(tiny, optimizer, tmp_path):
    before = state(tiny)
    trained = Train(**SMALL | {"steps": 25}, optimizer=optimizer)(tiny, data=[PROSE * 8], work_dir=tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(before[name], tensor) for name, tensor in state(tiny).items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in state(trained).items())


def test_the_state_of_another_model_or_another_text_is_not_continued(tiny, tmp_path):
    stage = Train(**SMALL, save_every=2)
    stage(tiny, data=[PROSE * 8], work_dir=tmp_path)
    other = burnish.load(tiny.path)
    other.module.lm_head.weight.data.mul_(1.5)
    with pytest.raises(CheckpointError, match="model: not the same"):
        stage(other, data=[PROSE * 8], work_dir=tmp_path)
    with pytest.raises(CheckpointError, match="data: not the same"):
        stage(tiny, data=[OTHER * 8], work_dir=tmp_path)


def test_large_files_give_the_same_training_from_rows_on_disk(tiny, tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": PROSE * count}) for count in (1, 3, 2, 5)]
    data.write_text("\n".join([*lines[:2], "{", *lines[2:]]))
    settings = SMALL | {"holdout": 0.2, "bad_rows": "skip", "save_every": 2}
    ledgers = []
    for place, limit in (("memory", 1 << 26), ("disk", 0), ("disk", 0)):
        monkeypatch.setattr("burnish.train.rows.LARGE", limit)
        ledger = Ledger(None)
        context = Context(
            {"data": str(data)}, tmp_path / place, "cpu", seeded_generator(0), Progress(enabled=False), ledger
        )
        trained = Train(**settings).run(tiny, context)
        ledgers.append((state(trained), [row["rows"] for row in ledger.rows if row["name"].startswith("rows left")]))
        if place == "disk":  # a second start finds what the first has made
            monkeypatch.setattr("burnish.train.rows.documents", None)
    assert ledgers[0][1] == ledgers[1][1] == ledgers[2][1] and len(ledgers[0][1]) == 1
    for weights, _ in ledgers[1:]:
        assert all(torch.equal(weight, weights[name]) for name, weight in ledgers[0][0].items())


def test_the_size_of_a_teacher_is_not_that_of_the_data(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.train.rows.LARGE", 100)
    (tmp_path / "rows.txt").write_text(PROSE)
    assert not any_large({"data": [PROSE], "teacher": str(tiny.path), "validation": None})
    assert any_large({"data": str(tmp_path / "rows.txt")})


def test_sharpness_is_a_setting(tiny, tmp_path):
    plain, sharp, none = (
        Train(**SMALL, sharpness=gamma, sharpness_rho=rho)(tiny, data=[PROSE * 8], work_dir=tmp_path / f"{gamma} {rho}")
        for gamma, rho in ((0.0, 0.05), (0.5, 0.05), (0.5, 0.0))
    )
    same = [
        all(torch.equal(a, b) for a, b in zip(state(plain).values(), state(m).values(), strict=True))
        for m in (sharp, none)
    ]
    assert same == [False, True]
    plans = [Train(**SMALL, data="rows.txt", sharpness=gamma).plan(tiny.plan()) for gamma in (0.0, 0.5)]
    assert plans[1].seconds == pytest.approx(2 * plans[0].seconds)
    assert plans[1].peak_memory_bytes == plans[0].peak_memory_bytes + 12 * tiny.plan().num_parameters


def test_changes_that_were_asked_for_are_in_the_lineage(tiny, tmp_path):
    Train(**SMALL, save_every=2)(tiny, data=[PROSE * 8], work_dir=tmp_path)
    changed = Train(**SMALL | {"lr": 0.005}, save_every=2)
    with pytest.raises(CheckpointError, match=r"lr was 0.01, now 0.005"):
        changed(tiny, data=[PROSE * 8], work_dir=tmp_path)
    result = changed(tiny, data=[PROSE * 8], work_dir=tmp_path, continue_with_changes=True)
    assert result.lineage.continued == [{"after_step": 2, "change": "lr was 0.01, now 0.005"}]
    assert "after step 2: lr was 0.01, now 0.005" in model_card(result.lineage)
    with pytest.raises(CheckpointError, match="context was 32, now 16"):
        Train(**SMALL | {"context": 16})(tiny, data=[PROSE * 8], work_dir=tmp_path, continue_with_changes=True)


def test_the_result_is_an_ordinary_checkpoint(tiny, tmp_path):
    trained = Train(**SMALL)(tiny, data=[PROSE * 8])
    trained.save(tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, trained.module.state_dict()[name])


def test_compiling_without_a_compiler_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match="no C\\+\\+ compiler here") as caught:
        Train(**SMALL, compile=True)(tiny, data=[PROSE * 8])
    assert caught.value.where == "compile"


def test_weights_keep_the_dtype_of_the_checkpoint(tiny_llama):
    model = burnish.load(tiny_llama, dtype=torch.bfloat16)
    assert Train(**SMALL)(model, data=[PROSE * 8]).module.dtype is torch.bfloat16


def test_activation_checkpointing_changes_nothing(tiny):
    plain = Train(**SMALL)(tiny, data=[PROSE * 8])
    saving = Train(**SMALL, activation_checkpointing=True)(tiny, data=[PROSE * 8])
    assert all(torch.equal(a, b) for a, b in zip(state(plain).values(), state(saving).values(), strict=True))


@pytest.mark.parametrize("start", ["default", "pissa", "corda"])
def test_lora_is_trained_and_merged(tiny, start):
    pytest.importorskip("peft")
    trained = Train(**SMALL, lora_rank=2, lora_init=start)(tiny, data=[PROSE * 8])
    before, after = state(tiny), state(trained)
    assert before.keys() == after.keys()
    # Embeddings have no adapter; PiSSA and CorDA take their adapters out of the weights first and add them back.
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_kept_adapters_on_the_start_are_the_trained_model(tiny, tiny_llama, tmp_path):
    from peft import PeftModel

    stage = Train(**SMALL, lora_rank=2, keep_adapter=True)
    trained = stage(tiny, data=[PROSE * 8], work_dir=tmp_path)
    start = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(20)[None]
    before = start(input_ids=ids).logits
    with_adapter = PeftModel.from_pretrained(start, tmp_path / "adapter").eval()
    found, expected = with_adapter(input_ids=ids).logits, trained.module(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-2
    assert not list((tmp_path / "adapter").glob("*.bin"))


@pytest.mark.parametrize(
    "settings, words",
    [({}, "needs a lora_rank"), ({"lora_rank": 2, "lora_init": "pissa"}, "does not go with lora_init pissa")],
)
def test_adapters_that_would_fit_no_other_copy_are_not_kept(settings, words):
    with pytest.raises(ValueError, match=words):
        Train(**SMALL, keep_adapter=True, **settings)


def test_lora_targets_that_do_not_exist_are_refused(tiny):
    pytest.importorskip("peft")
    with pytest.raises(SettingsError, match="the model has no modules named nonsense"):
        Train(**SMALL, lora_rank=2, lora_targets="nonsense")(tiny, data=[PROSE * 8])


def test_an_adapter_of_the_head_is_refused_because_no_loss_would_train_it(tiny):
    with pytest.raises(SettingsError, match="lora_targets: lm_head is the output head"):
        Train(**SMALL, lora_rank=2, lora_targets="q_proj,lm_head")(tiny, data=[PROSE * 8])


def test_held_out_rows_are_measured_in_the_table(tiny, tmp_path):
    Train(**SMALL, holdout=0.3)(tiny, data=[PROSE * 8], work_dir=tmp_path)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3 and last["validation_loss"] > 0


def test_validation_on_the_training_text_is_refused(tiny):
    with pytest.raises(DataError, match="shares 1 of its texts"):
        Train(**SMALL)(tiny, data=[PROSE * 8, OTHER * 8], validation=[OTHER * 8])


@pytest.mark.parametrize("setting", [{"steps": 10**20}, {"epochs": 1e20}, {"batch": 10**20}])
def test_a_slip_of_the_keyboard_is_not_planned(setting):
    with pytest.raises(SettingsError, match=f"{next(iter(setting))}.*(less|most|1,?0)"):
        Train.parse(setting, where="here")


@pytest.mark.parametrize("kind, left_out, given", [("phimoe", "router", "q_proj"), ("mamba", "out_proj", "in_proj")])
def test_adapters_are_for_layers_that_can_have_them(kind, left_out, given):
    pytest.importorskip("peft")
    module = with_adapters(small_models.make(kind), Train(lora_rank=2), None)
    names = {name for name, _ in module.named_parameters() if ".lora_" in name}
    assert any(f".{given}." in name for name in names)
    assert not any(f".{left_out}." in name for name in names)


def test_a_context_beyond_the_models_is_refused(tiny):
    with pytest.raises(SettingsError, match="context is 512, but the model was made for 256"):
        Train(data="text.txt").check(tiny.config)


def test_an_unknown_optimizer_option_suggests_the_nearest(tiny):
    with pytest.raises(SettingsError, match="normuon has no option 'scal'; did you mean 'scale'"):
        Train(optimizer_options={"scal": "rms"}, context=32).check(tiny.config)


@pytest.mark.parametrize(
    "optimizer, option, value, message",
    [
        ("normuon", "betas", "[0.9, 1.5]", r"betas are \(0.9, 1.5\), but must lie in"),
        ("normuon", "betas", "many", "betas is 'many', but must be 2 numbers"),
        ("muon", "nesterov", "1", "nesterov is 1, but must be true or false"),
        ("cosmos", "rank", "500", "rank is 500, but a 64 x 64 matrix has at most 64 input directions"),
        ("cosmos", "rank", "all", "rank is 'all', but must be a whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(tiny, optimizer, option, value, message):
    stage = Train(data="text.txt", context=32, optimizer=optimizer, optimizer_options={option: value})
    with pytest.raises(SettingsError, match=message):
        stage.plan(plan_config(tiny.config))


def test_optimizer_options_reach_the_optimizer(tiny):
    with pytest.raises(SettingsError, match="scale is 'big'"):
        Train(**SMALL, optimizer_options={"scale": "big"})(tiny, data=[PROSE * 8])


def test_a_tokenizer_of_another_model_is_refused(tiny):
    tiny.tokenizer.add_tokens(["wisdom"])
    tiny.module.resize_token_embeddings(300)
    with pytest.raises(DataError, match="but the model has 300 embeddings"):
        Train(**SMALL)(tiny, data=[PROSE * 8])


def test_empty_data_is_refused(tiny):
    with pytest.raises(DataError, match="holds no text"):
        Train(**SMALL)(tiny, data=["  "])


def test_steps_follow_from_epochs():
    assert Train(epochs=2.5, batch=4).num_steps(10) == 7
    assert isinstance(loop_of(Train(), 7, "cpu"), Loop)


def test_a_mixture_of_experts_is_balanced_unless_told_not_to(tmp_path):
    experts = {"num_local_experts": 4, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape = {"model_type": "mixtral", "hidden_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = initialise(shape | experts, tokenizer="bpe:280", texts=[PROSE * 8])
    for balance, name in ((None, "on"), (0.0, "off")):
        Train(**SMALL, balance=balance)(model, data=[PROSE * 8], work_dir=tmp_path / name)
        row = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert ("balance" in row) == (name == "on")


def test_a_balance_that_transformers_does_not_compute_is_refused_and_the_advice_works():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    shape = {"model_type": "granitemoe", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = initialise(shape | experts, tokenizer="bpe:280", texts=[PROSE * 8])
    with pytest.raises(SettingsError, match=r"no load-balancing loss for this model.* train with balance: 0"):
        Train(**SMALL)(model, data=[PROSE * 8])
    Train(**SMALL, balance=0)(model, data=[PROSE * 8])


def test_only_what_is_named_is_trained_and_the_rest_stays_bit_for_bit(tmp_path):
    experts = {"num_local_experts": 4, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = {"model_type": "mixtral", "hidden_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = initialise(shape | experts, tokenizer="bpe:280", texts=[PROSE * 8])
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    for optimizer in ("normuon", "adamw", "soap"):
        settings = SMALL | {"optimizer": optimizer}
        trained = Train(**settings, only="*.mlp.gate.*, model.norm.weight")(model, data=[PROSE * 8]).module
        changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {"model.norm.weight", *(f"model.layers.{layer}.mlp.gate.weight" for layer in range(2))}
        assert all(parameter.requires_grad for parameter in trained.parameters())
    routers = Train(**SMALL, only="routers")(model, data=[PROSE * 8]).module.state_dict()
    changed = {name for name, tensor in routers.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)}
    with pytest.raises(SettingsError, match=r"no parameter has a name that fits '\*\.router'"):
        Train(**SMALL, only="*.router")(model, data=[PROSE * 8])
    with pytest.raises(SettingsError, match=r"^only: the model has no routers, as it is no mixture of experts; leave"):
        freeze_all_but(small_models.small_llama(), "routers")
    with pytest.raises(SettingsError, match="only and lora_rank both say"):
        Train.parse(SMALL | {"only": "*", "lora_rank": 4}, where="r.yaml")


def test_a_balance_without_experts_is_refused(tiny):
    with pytest.raises(SettingsError, match="has no load-balancing loss"):
        Train(**SMALL, balance=0.1)(tiny, data=[PROSE * 8])


# -- from scratch ------------------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    first = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE * 4], seed=3)
    torch.manual_seed(2)
    second = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE * 4], seed=3)
    other = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE * 4], seed=4)
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))
    assert not torch.equal(state(first)["lm_head.weight"], state(other)["lm_head.weight"])


def test_the_vocabulary_is_the_tokenizers():
    model = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE * 4])
    assert model.config.vocab_size == len(model.tokenizer) == 280
    assert model.config.eos_token_id == model.tokenizer.eos_token_id


def test_a_learned_tokenizer_gives_any_text_back():
    words = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE]).tokenizer
    text = "naïve 日本語 \n\t 12,345 <|im_end|>"
    assert words.decode(words(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "config, tokenizer, message",
    [
        (CONFIG | {"model_type": "lama"}, "bpe:280", "did you mean 'llama'"),
        (CONFIG, "bpe:100", "has at least 257 tokens"),
        (CONFIG, "bpe:99999999999", "at most 1,000,000"),
        (CONFIG, "bpe:50000", "the text is too short for 50,000 tokens"),
    ],
)
def test_impossible_starts_are_refused(config, tokenizer, message):
    with pytest.raises(SettingsError, match=message):
        initialise(config, tokenizer=tokenizer, texts=[PROSE])


@pytest.mark.slow
def test_one_command_trains_from_scratch_into_a_report_with_a_loss_curve(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "text.txt").write_text(PROSE * 30)
    out = tmp_path / "mine"
    command = ["train", str(tmp_path / "config.json"), "--tokenizer", "bpe:280", "--data", str(tmp_path / "text.txt")]
    command += ["--context", "32", "--batch", "4", "--steps", "8", "--lr", "0.01", "--holdout", "0.2", "-o", str(out)]
    command += ["--evaluate"]  # in windows of the model's 64 positions
    main(command)
    assert transformers.AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 280
    rows = read_rows(tmp_path / "mine.run" / "ledger.jsonl")
    (table,) = [row for row in rows if row["row"] == "table" and row["name"] == "loss"]
    assert table["rows"][-1]["step"] == 8
    before, after = (row["metrics"]["perplexity"]["value"] for row in rows if row["row"] == "measurement")
    assert after < before
    report = next((tmp_path / "mine.run").glob("*.html")).read_text()
    assert "Training loss" in report
    capsys.readouterr()
    main(command)
    assert "up to date" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_and_ends_with_the_same_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "text.txt").write_text(PROSE * 60)
    command = ["train", "config.json", "--tokenizer", "bpe:280", "--data", "text.txt", "--context", "32"]
    command += ["--batch", "4", "--steps", "150", "--save-every", "2"]
    warm.run(tmp_path / "log", *command, "-o", "straight", cwd=tmp_path)
    started = warm.Command(tmp_path / "log", *command, "-o", "killed", cwd=tmp_path)
    states = tmp_path / "killed.run" / "work" / "train" / "states"
    assert started.wait_until(lambda: list(states.glob("step-*"))), started.output
    assert started.end(signal.SIGKILL) == -signal.SIGKILL and not (tmp_path / "killed").exists()
    assert "continuing after step" in warm.run(tmp_path / "log", *command, "-o", "killed", cwd=tmp_path)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed"))
    assert first == second


def test_a_configuration_without_a_tokenizer_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "config.json"), "--data", "x.txt", "-o", str(tmp_path / "out")])
    assert "a configuration alone has no tokenizer; give --tokenizer" in capsys.readouterr().err


def test_explain_prints_the_routing(tiny_llama, capsys):
    main(["train", str(tiny_llama), "--explain"])
    shown = capsys.readouterr().out
    assert "normuon on llama" in shown and "model.layers.*.self_attn.q_proj.weight" in shown


def test_explain_shows_the_adapters_of_lora(tiny_llama, capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("COLUMNS", "200")
    main(["train", str(tiny_llama), "--explain", "--lora-rank", "2", "--lora-init", "corda", "--lora-matrix"])
    lines = capsys.readouterr().out.splitlines()
    below = dict(itertools.pairwise(lines))  # the update and its reason stand below the name
    ((_, factor),) = [pair for pair in below.items() if "q_proj.lora_A" in pair[0]]
    assert "normuon" in factor and "LoRA factor" in factor
    assert any("q_proj.base_layer" in name and "needs no gradient" in why for name, why in below.items())


def test_bad_rows_are_refused_or_left_out_and_counted(tiny, tmp_path, capsys):
    rows = [{"text": PROSE}] * 40
    rows[7] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[9] = {"id": 9}
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(lines), "context": 48, "batch": 2, "steps": 2, "overlong": "split"}
    with pytest.raises(DataError, match=r"rows.jsonl:8: is a chat"):
        Train(**settings)(tiny, data=str(lines), work_dir=tmp_path / "a")
    ledger = Ledger(None)
    ctx = Context({"data": str(lines)}, tmp_path / "b", "cpu", seeded_generator(0), Progress(), ledger)
    Train(**settings, bad_rows="skip").run(tiny, ctx)
    (table,) = [row for row in ledger.rows if row.get("name") == "rows left out of data"]
    places = [row["row"].split(": ")[0].rpartition(":")[2] for row in table["rows"]]
    assert places == ["8", "10"]
    said = capsys.readouterr().err
    assert "2 rows are left out, the first" in said
    assert "after 2 steps and 192 tokens the loss is" in said


def test_a_start_is_made_by_a_command_with_tokenizer_and_chat_template(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "text.txt").write_text(PROSE * 4)
    template = tmp_path / "chat.jinja"
    command = ["init", str(tmp_path / "config.json"), "--tokenizer", "bpe:280", "--data", str(tmp_path / "text.txt")]
    command += ["--chat-template", str(template), "--seed", "3", "-o", str(tmp_path / "start")]
    for content, message in (
        ("{% for m in messages %}", "chat template cannot write it out"),
        ("{{ messages | length }}", "writes message 2 differently"),
    ):
        template.write_text(content)
        with pytest.raises(SystemExit):
            main(command)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "start").exists()
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}\n")
    main(command)
    made = burnish.load(tmp_path / "start")
    expected = initialise(CONFIG, tokenizer="bpe:280", texts=[PROSE * 4], seed=3)
    assert all(torch.equal(a, b) for a, b in zip(state(made).values(), state(expected).values(), strict=True))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert made.tokenizer.apply_chat_template(chat, tokenize=False) == "a<|endoftext|>b<|endoftext|>"
    with pytest.raises(SystemExit):
        main(command)
    assert "exists" in capsys.readouterr().err
