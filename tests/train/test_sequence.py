"""Processes that share rows compute the losses and gradients of one process that has whole rows."""

import json

import pytest
import torch
import torch.distributed as dist
from transformers import AttentionInterface

import burnish
import warm
from burnish.arch.attention import use
from burnish.core.errors import SettingsError
from burnish.train.distributed import world
from burnish.train.losses import causal_lm_loss
from burnish.train.sequence import Sequence, check_config
from burnish.train.stage import Train
from processes import together
from small_models import make, small_config

LONG = {"max_position_embeddings": 1200}
MODELS = {
    "grouped": ("llama", LONG),
    "one key head": ("llama", LONG | {"num_key_value_heads": 1}),
    "odd key heads": ("qwen3", LONG | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}),
    "sliding window": ("mistral", LONG | {"sliding_window": 100}),
    "learned positions": ("gpt2", LONG),
    "latent attention": ("deepseek_v3", LONG),
}


def batch(length, packed):
    """Two rows of tokens; documents of uneven lengths, and padding at the end, where they are packed."""
    tokens = torch.randint(1, 384, (2, length + 1), generator=torch.Generator().manual_seed(length))
    found = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:].clone()}
    found["targets"][:, : length // 3] = -100
    if packed:
        sizes = ([length // 2 + 7, length - length // 2 - 7], [31, 5, length - 50, 14])
        found["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in sizes])
    return found


def gradients(rank, kind, changes, batches, inner="sdpa"):
    """The summed loss and the gradient of every parameter, over all processes, or of one where there is no rank."""
    model = make(kind, dtype=torch.float64, **changes)
    total = torch.zeros((), dtype=torch.float64)
    shared = None if rank is None else Sequence(None, inner)
    if shared is not None:
        use(model, shared.register(model.config))
    for whole in batches:
        loss = causal_lm_loss(model, whole if shared is None else shared.cut(whole))
        loss.total.backward()
        total += loss.total.detach().double()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": total}
    if shared is not None:
        shared.check_calls()
        for tensor in found.values():
            dist.all_reduce(tensor)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_gradients_of_one(name):
    """1,024 tokens, and a length that does not divide; packed and not; the loss itself is summed in float32."""
    kind, changes = MODELS[name]
    batches = [batch(1024, packed=False), batch(257, packed=True)]
    expected = gradients(None, kind, changes, batches)
    for num in (1, 2):
        found = together(num, gradients, kind, changes, batches)[-1]
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()), msg=key)


def seen_by_flash(rank):
    """What transformers' flash attention is asked for, by a stand-in that computes nothing of its own."""
    asked = []

    def flash(module, query, key, value, mask, **options):
        asked.append((tuple(query.shape), tuple(key.shape), mask, options))
        return query.transpose(1, 2), None

    AttentionInterface.register("flash_attention_2", flash)
    gradients(rank, "llama", {}, [batch(64, packed=True)], inner="flash_attention_2")
    return asked[0]


def test_flash_attention_gets_whole_rows_of_some_heads_and_their_documents():
    query, key, mask, options = together(2, seen_by_flash)[0]
    assert query == (2, 2, 64, 16) and key == (2, 1, 64, 16) and mask is None
    assert torch.equal(options["position_ids"], batch(64, packed=True)["position_ids"])
    assert options["is_causal"] and options["sliding_window"] is None


RECIPE = """
start: {model}
nodes:
  - name: trained
    stage: train
    data: {data}
    context: 48
    batch: 4
    micro_batch: 2
    steps: 6
    lr: 0.003
    holdout: 0.1
    activation_checkpointing: true
    sequence_parallel: {processes}
    launch: {{processes: {processes}}}
"""


@pytest.mark.slow
def test_a_recipe_trains_alike_on_shared_rows(tiny_llama, tmp_path):
    data, tables = tmp_path / "texts.jsonl", []
    texts = ["The quick brown fox jumps over the lazy dog. " * (1 + number % 5) for number in range(60)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for processes in (1, 2):
        recipe, run = tmp_path / "recipe.yaml", tmp_path / f"run{processes}"
        recipe.write_text(RECIPE.format(model=tiny_llama, data=data, processes=processes))
        command = warm.Command(tmp_path / "log", "run", recipe, "-o", run)
        assert command.end() == 0, command.output
        rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        (table,) = [row["rows"] for row in rows if row["row"] == "table" and row["name"] == "loss"]
        tables.append(table)
    for ours, theirs in zip(*tables, strict=True):
        # Float32: the order of sums in six steps.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert tables[1][-1]["validation_loss"] == pytest.approx(tables[0][-1]["validation_loss"], rel=1e-5)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, changes, size, what",
    [
        ("llama", {}, 3, "4 attention heads cannot be shared evenly by 3 processes"),
        ("gemma2", {}, 2, "bends its attention scores"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, 2, "layers of the kind conv"),
        ("mamba", {}, 2, "layers of the kind linear_attention"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(kind, changes, size, what):
    with pytest.raises(SettingsError, match=what):
        check_config(small_config(kind, **changes), size)


def test_attention_with_sinks_is_refused_when_it_is_computed():
    with pytest.raises(AssertionError, match="computes attention with s_aux"):
        together(1, gradients, "gpt_oss", {}, [batch(16, packed=False)])


def test_a_class_that_knows_no_other_attention_is_refused():
    with pytest.raises(SettingsError, match="BloomForCausalLM does not know it"):
        use(make("bloom"), "flex_attention")


def test_layers_that_go_another_way_are_seen_after_a_batch():
    def work(rank):
        shared = Sequence(None)
        model = make("llama")
        shared.register(model.config)  # and not used
        causal_lm_loss(model, shared.cut(batch(16, packed=False)))
        shared.check_calls()

    with pytest.raises(AssertionError, match="0 of the model's 2 layers"):
        together(1, work)


@pytest.mark.parametrize("other", [{"compile": True}, {"attention": "eager"}, {"attention": "flex"}, {"balance": 0.1}])
def test_what_does_not_go_together_is_refused(other):
    with pytest.raises(SettingsError, match=f"sequence_parallel does not go with {next(iter(other))}"):
        Train.parse({"sequence_parallel": 2, **other}, where="here")


def test_one_process_cannot_share_rows(tiny_llama):
    with pytest.raises(SettingsError, match="sequence_parallel is 2, which does not divide the one process"):
        Train(context=32, steps=1, sequence_parallel=2)(burnish.load(tiny_llama), data=["A text. " * 90])


def test_groups_divide_the_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SettingsError, match="does not divide the 3 processes"), world("cpu", 2):
        pass


def test_a_load_balancing_loss_is_refused_by_the_plan():
    with pytest.raises(SettingsError, match="load-balancing loss is a mean over whole rows"):
        Train(context=32, data="text", sequence_parallel=2).check(small_config("mixtral"))
