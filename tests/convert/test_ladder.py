"""Ladder residuals: exact limits, tensor parallelism, what is written and what is refused."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers.masking_utils import create_causal_mask

import burnish
from burnish.arch.table import DENSE, MIXTURES
from burnish.convert.ladder import check_source, costs, ladder
from burnish.convert.stage import LadderResidual
from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.derived_classes import in_front
from burnish.core.checkpoint.modeling_ladder import LadderBlock, split
from burnish.core.errors import CheckpointError, RecipeError, SettingsError
from burnish.core.kinds import Kind
from burnish.core.progress import Progress
from fresh_process import IDS, read_afresh
from processes import together
from small_models import PROSE, make, small_config, small_tokenizer

KINDS = ("llama", "mistral", "qwen2", "qwen3")
LADDERS = ([0], [2, 3], [1, 2], [0, 1, 2, 3], [0, 2])


def source(kind: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any):
    return make(kind, dtype=dtype, disturbed=True, **{"num_hidden_layers": 4} | changes)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 380, (2, 20), generator=torch.Generator().manual_seed(1))


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits


def by_definition(module: Any, ids: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """x_i = x_(i-1) + h_i(x_(i-2)) in these layers, and h_i(x_(i-1)) in the others."""
    decoder = module.model
    x = before = decoder.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    how = {
        "position_embeddings": decoder.rotary_emb(x, position_ids=places),
        "attention_mask": create_causal_mask(
            config=module.config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=places
        ),
    }
    for number, layer in enumerate(decoder.layers):
        read = before if number in numbers else x
        before, x = x, x + layer.self_attn(hidden_states=layer.input_layernorm(read), **how)[0]
        read = before if number in numbers else x
        before, x = x, x + layer.mlp(layer.post_attention_layernorm(read))
    return module.lm_head(decoder.norm(x))


# -- exact limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_ladders_it_is_the_standard_model_bit_for_bit(ids, kind):
    module = source(kind, torch.float32)
    assert torch.equal(logits(ladder(module, []), ids), logits(module, ids))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_sub_block_reads_the_stream_of_one_sub_block_earlier(ids, kind):
    module = source(kind)
    for numbers in LADDERS:
        expected = by_definition(module, ids, numbers)
        torch.testing.assert_close(logits(ladder(module, numbers), ids), expected, rtol=0, atol=1e-12)


def test_every_type_that_is_taken_adds_what_it_computes_behind_a_norm(ids):
    """Its layers are those of the class, whether they run as blocks next to a ladder or as they always did."""
    taken = set()
    for kind in (*DENSE, *MIXTURES):
        try:
            check_source(small_config(kind))
        except SettingsError:
            continue
        taken.add(kind)
        network = ladder(make(kind, disturbed=True), [])
        expected = logits(network, ids)
        for layer in network.model.layers:
            layer.__class__ = in_front(LadderBlock, type(layer))
        assert torch.equal(logits(network, ids), expected), kind
    assert taken >= {*KINDS, "smollm3", "granite", "gemma", "ernie4_5"} and not taken & MIXTURES.keys()


def test_sub_blocks_that_add_a_constant_do_the_same_in_either_order(ids):
    module = source("qwen2")
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.v_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    torch.testing.assert_close(logits(ladder(module, [0, 1, 2, 3]), ids), logits(module, ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_from_the_cache_is_the_full_forward(ids, kind):
    module = ladder(source(kind), [1, 2])
    begun = module(input_ids=ids[:, :12], use_cache=True)
    rest = module(input_ids=ids[:, 12:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(rest, logits(module, ids)[:, 12:], rtol=0, atol=1e-12)


def test_gradients_go_through_ladders_as_through_their_definition(ids):
    module = source()
    made = ladder(module, [1, 2, 3])
    made(input_ids=ids).logits.logsumexp(-1).sum().backward()
    by_definition(module, ids, [1, 2, 3]).logsumexp(-1).sum().backward()
    for (name, ours), theirs in zip(made.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10, msg=name)


# -- tensor parallelism ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_logits_of_one(ids, kind):
    module = source(kind, torch.float32, num_key_value_heads=2)
    made = {str(numbers): ladder(module, numbers) for numbers in ([], [2, 3], [0, 1, 2, 3])}
    expected = {name: logits(network, ids) for name, network in made.items()}

    def work(rank: int) -> dict[str, torch.Tensor]:
        assert dist.group.WORLD is not None
        found = {}
        for name, network in made.items():
            split(network, dist.group.WORLD)
            found[name] = logits(network, ids)
        return found

    for found in together(2, work):
        for name, theirs in expected.items():
            assert float((found[name] - theirs).norm() / theirs.norm()) < 1e-5, name


def test_ranks_that_cannot_share_heads_are_refused():
    module = source(num_key_value_heads=1)

    def work(rank: int) -> str:
        assert dist.group.WORLD is not None
        with pytest.raises(ValueError, match="num_key_value_heads is 1, which 2 ranks cannot share equally") as error:
            split(module, dist.group.WORLD)
        return str(error.value)

    assert len(together(2, work)) == 2


# -- what is written ---------------------------------------------------------------------------------------------------


def stage(**settings: Any) -> LadderResidual:
    return LadderResidual(**{"layers": "last:2", "custom_code": True, "tokens": 128, "length": 64} | settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory, and the model that it was made of."""
    model = Model(module=source(dtype=torch.float32), tokenizer=small_tokenizer())
    return stage()(model, calibration=[PROSE.read_text()]).save(tmp_path_factory.mktemp("ladder") / "made"), model


def test_a_saved_ladder_is_read_again_with_its_own_kind(made, ids):
    directory, model = made
    again = load(directory)
    assert (again.lineage.kind, again.plan().kind) == (Kind.CUSTOM_CAUSAL_LM, Kind.CUSTOM_CAUSAL_LM)
    assert torch.equal(logits(again.module, ids), logits(ladder(model.module, [2, 3]), ids))
    again.save(directory.parent / "again")
    assert torch.equal(logits(load(directory.parent / "again").module, ids), logits(again.module, ids))
    assert (directory.parent / "again" / "config.json").read_text() == (directory / "config.json").read_text()


@pytest.fixture
def bare(made, tmp_path):
    """Without a lineage, as another program would write it."""
    for path in made[0].iterdir():
        if path.name != "burnish.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_its_kind_is_known_without_a_lineage(bare):
    assert load(bare).lineage.kind is Kind.CUSTOM_CAUSAL_LM


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ladder_layers": [4]}, r"ladder_layers is \[4\], but names layers from 0 to 3, each once"),
        ({"ladder_layers": [1, 1]}, r"ladder_layers is \[1, 1\], but"),
        ({"ladder_layers": "all"}, "ladder_layers is all, but"),
        ({"ladder_layers": None}, "has no ladder_layers, without which it would be computed as a plain model"),
        ({"model_type": "ladder_nothing"}, "'ladder_nothing' needs code that comes with the checkpoint"),
    ],
)
def test_a_configuration_that_names_no_ladder_is_refused_in_a_sentence(bare, changed, said):
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(CheckpointError, match=said):
        load(bare).plan()


ON_ONE_RANK = """
from transformers.dynamic_module_utils import get_class_from_dynamic_module
torch.distributed.init_process_group("gloo", init_method=f"file://{place}.store", rank=0, world_size=1)
get_class_from_dynamic_module("modeling_ladder.split", directory)(model, torch.distributed.group.WORLD)
found.append(model(ids).logits)
"""


@pytest.mark.slow
def test_transformers_reads_it_by_the_file_beside_it_and_gives_the_same(made, tmp_path):
    directory, _ = made
    name, found = read_afresh(directory, tmp_path, trusted=True, more=ON_ONE_RANK)
    expected = logits(load(directory).module, IDS)
    assert name == "LadderLlamaForCausalLM" and len(found) == 3
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.slow
def test_who_runs_no_code_of_a_checkpoint_cannot_read_it(made):
    directory, _ = made
    code = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode and "trust_remote_code=True" in done.stderr, done.stderr


def test_the_code_that_comes_with_a_checkpoint_is_never_run(made, bare, ids):
    (bare / "modeling_ladder.py").write_text("raise SystemExit('was run')")
    assert torch.equal(logits(load(bare).module, ids), logits(load(made[0]).module, ids))


def test_the_card_says_who_reads_it(made):
    directory, _ = made
    card = (directory / "README.md").read_text()
    assert "trust_remote_code=True" in card and "no library has a class for it" in card
    config = json.loads((directory / "config.json").read_text())
    assert (config["model_type"], config["ladder_layers"]) == ("ladder_llama", [2, 3])
    assert config["auto_map"] == {
        "AutoConfig": "modeling_ladder.LadderLlamaConfig",
        "AutoModel": "modeling_ladder.LadderLlamaModel",
        "AutoModelForCausalLM": "modeling_ladder.LadderLlamaForCausalLM",
    }


# -- the choice of layers, and other stages ----------------------------------------------------------------------------


def test_auto_takes_the_neighbouring_layers_that_cost_least(ids):
    module = source(dtype=torch.float32)
    with torch.no_grad():  # the second and third layers hardly do anything
        for layer in module.model.layers[1:3]:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
    model = Model(module=module, tokenizer=small_tokenizer())
    chosen = stage(layers="auto:2")(model, calibration=[PROSE.read_text()]).module.config.ladder_layers
    runs = [[0, 1], [1, 2], [2, 3]]
    found = costs(ladder(module, []), runs, ids, Progress(enabled=False), "")
    assert chosen == runs[found.index(min(found))] == [1, 2]


def test_no_ladder_costs_nothing(ids):
    assert costs(ladder(source(), []), [[]], ids, Progress(enabled=False), "") == [0.0]


def test_a_ladder_is_trained_further_on_the_source_and_saved_again(made, tmp_path, ids):
    directory, model = made
    settings: dict[str, Any] = {"steps": 10, "batch": 4, "context": 32, "optimizer": "adamw", "lr": 2e-4, "alpha": 1.0}
    healed = burnish.Distill(**settings)(load(directory), data=[PROSE.read_text()], teacher=model)
    healed.save(tmp_path / "healed")
    again = load(tmp_path / "healed")
    assert again.lineage.kind is Kind.CUSTOM_CAUSAL_LM and again.config.ladder_layers == [2, 3]
    assert torch.equal(logits(again.module, ids), logits(healed.module, ids))
    look = burnish.Evaluate(num_windows=2, context=32, speed=False)
    found, before = (
        look(one, text=[PROSE.read_text()], reference=model).metrics["kl_divergence"]["value"]
        for one in (again, load(directory))
    )
    assert found < before


def test_a_training_that_computes_activations_twice_is_the_same(made):
    directory, _ = made
    settings: dict[str, Any] = {"steps": 2, "batch": 2, "context": 32, "optimizer": "adamw"}
    plain, twice = (
        burnish.Train(**settings, activation_checkpointing=again)(load(directory), data=[PROSE.read_text()])
        for again in (False, True)
    )
    for ours, theirs in zip(plain.module.parameters(), twice.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_needs_single_layers_refuses_it(made):
    directory, model = made
    with pytest.raises(SettingsError, match="hidden compares what comes between layers, and those of a ladder_llama"):
        burnish.Distill(hidden=1.0)(load(directory), data=[PROSE.read_text()], teacher=model)
    with pytest.raises(
        SettingsError, match="hidden compares what comes between layers, and those of the teacher, a lad"
    ):
        burnish.Distill(hidden=1.0, context=32)(model, data=[PROSE.read_text()], teacher=load(directory))
    with pytest.raises(RecipeError, match="quantize needs a causal-lm checkpoint, but is given a custom-causal-lm"):
        burnish.Quantize()(load(directory), calibration=[PROSE.read_text()])
    from burnish.arch import first_inputs

    with pytest.raises(CheckpointError, match="layers of a ladder_llama cannot be run one at a time"):
        first_inputs(load(directory).module, torch.arange(3, 23)[None])


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"custom_code": False}, "llama", "SGLang, TGI and llama.cpp do not load it; pass --custom-code"),
        ({"layers": "last:5"}, "llama", "layers is last:5, but the model has 4"),
        ({}, "gemma2", "no ladder for a gemma2 model: its attention and MLP are not added to the stream behind a norm"),
        ({}, "mixtral", "no ladder for a mixtral model: nothing is known of how ranks would share its mlp.gate"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(settings, kind, said):
    with pytest.raises(SettingsError, match=said):
        stage(**settings).plan(Model(module=source(kind, torch.float32)).plan())


def test_a_model_that_scales_what_it_adds_is_refused():
    with pytest.raises(SettingsError, match="not added to the stream behind a norm, as they are"):
        stage().plan(Model(module=source("granite", torch.float32, residual_multiplier=0.5)).plan())


@pytest.mark.parametrize("layers", ["last:0", "first:4", "last", "last:-1", "4"])
def test_other_words_for_layers_are_refused(layers):
    with pytest.raises(ValueError, match="is last:N or auto:N"):
        stage(layers=layers)
