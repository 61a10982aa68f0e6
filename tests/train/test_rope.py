"""RoPE scaling: what stock transformers computes of the saved configuration, and what is refused."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import burnish
import small_models
from burnish.core.errors import SettingsError
from burnish.train.objective import Objective
from burnish.train.rope import RopeScaling, rescale

WAYS = ["linear=2", "yarn=2", "llama3=2", "theta=1e6,positions=512"]
PROSE = small_models.PROSE.read_text()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "start"
    small_models.make("llama", num_hidden_layers=1).save_pretrained(directory)
    small_models.small_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("way", WAYS)
def test_a_model_trained_further_loads_in_stock_transformers_with_the_same_logits(start, tmp_path, way):
    train = burnish.Train(steps=1, batch=1, context=400, lr=1e-3, rope_scaling=way, seed=0)
    model = train(burnish.load(start), data=[PROSE])
    model.save(tmp_path / "further")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "further").eval()
    assert stock.config.max_position_embeddings == 512
    ids = torch.randint(1, 384, (1, 500), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert_close(model.module(input_ids=ids).logits, stock(input_ids=ids).logits, atol=1e-6, rtol=0)
    assert burnish.load(start).config.max_position_embeddings == 256


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "phi3", "olmo2", "gpt_neox"])
@pytest.mark.parametrize("way", WAYS)
def test_rescaled_frequencies_are_those_of_a_model_made_with_the_configuration(model_type, way):
    module = small_models.make(model_type, num_hidden_layers=1)
    config = RopeScaling.of(way).scaled(module.config)
    fresh = type(module)(config)
    rescale(module, config)
    parts = [[part for part in one.modules() if hasattr(part, "original_inv_freq")] for one in (module, fresh)]
    for ours, theirs in zip(*parts, strict=True):
        assert_close(ours.inv_freq, theirs.inv_freq, atol=0, rtol=0)
        assert ours.attention_scaling == theirs.attention_scaling
    assert module.config.rope_parameters == fresh.config.rope_parameters


@pytest.mark.parametrize("way", WAYS)
def test_frequencies_do_not_follow_from_the_positions_of_a_batch(way):
    """Two views of a document have the same ones, wherever their positions end."""
    module = small_models.make("llama", num_hidden_layers=1)
    rescale(module, RopeScaling.of(way).scaled(module.config))
    before = module.model.rotary_emb.inv_freq.clone()
    with torch.inference_mode():
        module(input_ids=torch.arange(1, 9)[None], position_ids=torch.arange(504, 512)[None])
    assert torch.equal(module.model.rotary_emb.inv_freq, before)


def test_the_plan_knows_how_far_positions_reach(start):
    before = burnish.load(start).plan()
    train = burnish.Train(data="wikitext2-valid", context=512, steps=1, rope_scaling="yarn=2")
    assert train.plan(before).config.max_position_embeddings == 512
    assert before.config.max_position_embeddings == 256
    with pytest.raises(SettingsError, match="context is 513, but the model was made for 512 positions"):
        train.model_copy(update={"context": 513}).plan(before)
    with pytest.raises(SettingsError, match="or a rope_scaling that reaches further"):
        train.model_copy(update={"rope_scaling": None}).plan(before)


def test_a_gap_fits_once_positions_are_scaled(start):
    config = burnish.load(start).config
    skip = Objective.of("view=skip")
    with pytest.raises(SettingsError, match="scale its RoPE first"):
        skip.check(config, 200)
    skip.check(RopeScaling.of("linear=2").scaled(config), 200)
    with pytest.raises(SettingsError, match="reaches position 599, but the model's end at 511"):
        skip.check(RopeScaling.of("linear=2").scaled(config), 300)


@pytest.mark.parametrize(
    "text, told",
    [
        ("yarn", "'yarn' is no setting"),
        ("yarn=4,yarn=2", "yarn stands there twice"),
        ("yarn=4,linear=4", "linear and yarn are two ways to scale"),
        ("yarn=0.5", "yarn"),
        ("positions=512", "nothing scales"),
        ("theta=1e6", "theta and positions belong together"),
        ("ntk=4", "ntk"),
    ],
)
def test_what_is_no_scaling_is_refused(text, told):
    with pytest.raises(SettingsError, match=told):
        burnish.Train.parse({"data": "wikitext2-valid", "rope_scaling": text}, where="train")


@pytest.mark.parametrize(
    "model_type, told",
    [("gpt2", "has no rotary positions"), ("gemma3_text", "frequencies of its own for each kind of layer")],
)
def test_models_whose_positions_are_of_another_kind_are_refused(model_type, told):
    with pytest.raises(SettingsError, match=told):
        RopeScaling.of("yarn=2").scaled(small_models.make(model_type).config)


def test_a_model_that_is_scaled_already_is_refused():
    config = RopeScaling.of("yarn=2").scaled(small_models.make("llama").config)
    with pytest.raises(SettingsError, match=r"scaled already \(yarn\)"):
        RopeScaling.of("linear=2").scaled(config)
    with pytest.raises(SettingsError, match="fewer than the model's 256"):
        RopeScaling.of("theta=1e6,positions=100").scaled(small_models.make("llama").config)
