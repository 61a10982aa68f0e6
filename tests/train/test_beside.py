"""An adapter beside packed weights: trained by `train` and `align`, loaded by stock libraries, carried or refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.adapter import Adapter, merged
from burnish.core.errors import BurnishError, CheckpointError, RecipeError, SettingsError
from burnish.quantize.stage import Quantize
from burnish.train.stage import Train
from small_models import PROSE

pytest.importorskip("peft")

SMALL = {"context": 32, "batch": 4, "steps": 4, "lr": 0.01, "lora_rank": 2}
IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def packed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("beside") / "packed"
    return Quantize(method="rtn", bits=2, group_size=16)(load(tiny_llama)).save(place)


@pytest.fixture(scope="module")
def beside(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model with an adapter that has learned some English."""
    made = Train(**SMALL)(load(packed), data=[PROSE.read_text()])
    return made.save(tmp_path_factory.mktemp("beside") / "adapted")


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def stock(place: Path):
    return AutoModelForCausalLM.from_pretrained(
        place, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.float32
    )


def test_weights_stay_bit_for_bit_and_the_adapter_lies_beside_them(packed, beside):
    assert (packed / "model.safetensors").read_bytes() == (beside / "model.safetensors").read_bytes()
    assert (packed / "config.json").read_bytes() == (beside / "config.json").read_bytes()
    factors = load_file(beside / "adapter" / "adapter_model.safetensors")
    assert any(factor.abs().max() > 0 for name, factor in factors.items() if "lora_B" in name)


def test_off_it_is_the_quantized_model_and_on_what_burnish_loads(packed, beside):
    from peft import PeftModel

    off, base = stock(beside), stock(packed)
    assert torch.equal(logits(off), logits(base))
    on = PeftModel.from_pretrained(off, beside / "adapter")
    found = load(beside, dtype=torch.float32).module
    assert torch.equal(logits(on), logits(found))
    assert (logits(found) - logits(base)).abs().max() > 1e-2
    with on.disable_adapter():
        assert torch.equal(logits(on), logits(base))


def test_what_is_in_memory_is_what_is_written(packed, tmp_path):
    made = Train(**SMALL)(load(packed), data=[PROSE.read_text()])
    before = logits(made.module)
    identity = made.identity
    assert torch.equal(before, logits(load(made.save(tmp_path / "made")).module))
    assert made.identity == made.hash != identity


def test_its_bytes_count_and_a_changed_factor_is_noticed(packed, beside, tmp_path):
    from burnish.evaluate.sizes import measure_sizes

    plain, with_it = load(packed), load(beside)
    size = (beside / "adapter" / "adapter_model.safetensors").stat().st_size
    assert with_it.plan().num_bytes == plain.plan().num_bytes + size
    sizes = [measure_sizes(model, model.module) for model in (plain, with_it)]
    assert sizes[1].bytes_on_disk == sizes[0].bytes_on_disk + size
    assert sizes[1].num_parameters == sizes[0].num_parameters + with_it.adapter.num_parameters
    assert sizes[1].weight_bytes_per_token > sizes[0].weight_bytes_per_token
    assert with_it.hash != plain.hash
    told = json.loads((beside / "burnish.json").read_text())["files"]
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= told.keys()
    assert "adapter off" in (beside / "README.md").read_text()


def test_saving_what_was_loaded_carries_it(beside, tmp_path):
    model = load(beside, dtype=torch.float32)
    expected = logits(model.module)
    assert torch.equal(expected, logits(load(model.save(tmp_path / "again")).module))


def test_its_training_goes_on(beside, tmp_path):
    start = load(beside)
    model = Train(**SMALL | {"lr": 1e-12, "steps": 1})(start, data=[PROSE.read_text()])
    for name, factor in start.adapter.tensors.items():
        torch.testing.assert_close(factor, model.adapter.tensors[name], rtol=0, atol=1e-9)
    further = Train(**SMALL)(start, data=[PROSE.read_text()])
    assert any(not torch.equal(factor, further.adapter.tensors[name]) for name, factor in start.adapter.tensors.items())
    with pytest.raises(SettingsError, match="lora_rank is 3, but the adapter beside the weights has rank 2"):
        Train(**SMALL | {"lora_rank": 3})(start, data=[PROSE.read_text()])
    with pytest.raises(SettingsError, match="lora_targets is that of the adapter"):
        Train(**SMALL, lora_targets="q_proj")(start, data=[PROSE.read_text()])


def test_unpacking_adds_it_to_the_weights(beside):
    from burnish.convert.stage import Unpack

    dense = Unpack(dtype="float32")(load(beside))
    assert dense.adapter is None
    torch.testing.assert_close(logits(dense.module), logits(load(beside, dtype=torch.float32).module))


@pytest.mark.parametrize("command", ["tune", "slim", "quantize", "mla", "align"])
def test_stages_that_would_lose_it_refuse(beside, command):
    from burnish.stages import stage_class

    settings = {"align": {"lora_rank": 2}, "slim": {"width": 32}}
    stage = stage_class(command)(**settings.get(command, {}))
    with pytest.raises(RecipeError, match=r"would lose the LoRA adapter.*burnish convert unpack"):
        stage.check_accepts(load(beside).plan(), where=command)


def test_gguf_and_engines_refuse(beside, packed, tmp_path):
    from burnish.core.progress import Progress
    from burnish.evaluate.engines.environments import ENGINES
    from burnish.evaluate.engines.measure import Subject, _Measurement
    from burnish.evaluate.stage import Evaluate
    from burnish.export.gguf import check_packing

    with pytest.raises(SettingsError, match=r"LoRA adapter beside its weights.*convert unpack"):
        check_packing(load(beside))
    quiet = Progress(enabled=False)
    measurement = _Measurement(Evaluate(), ENGINES["vllm"], Path("python"), {}, tmp_path, tmp_path, quiet)
    sources, _, refused = measurement.sources([Subject("without", packed), Subject("with", beside)])
    assert sources == {"without": packed}
    assert "the engine is given the weights alone" in str(refused["with"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_init": "pissa"}, "lora_init pissa does not go with an adapter that stays beside"),
        ({"keep_adapter": True}, "keep_adapter True does not go with"),
        ({"lora_experts": "each"}, "lora_experts each does not go with"),
    ],
)
def test_settings_that_would_change_the_weights_are_refused(packed, settings, said):
    with pytest.raises(SettingsError, match=said):
        Train(**SMALL | settings)(load(packed), data=[PROSE.read_text()])


def test_other_packings_and_training_all_weights_are_refused(packed, tiny_llama, tmp_path):
    with pytest.raises(RecipeError, match=r"train needs dense weights.*lora_rank: 16"):
        Train(**SMALL | {"lora_rank": 0})(load(packed), data=[PROSE.read_text()])
    floats = Quantize(scheme="fp8-dynamic", method="rtn")(load(tiny_llama)).save(tmp_path / "floats")
    with pytest.raises(SettingsError, match="adapters are trained beside whole numbers"):
        Train(**SMALL)(load(floats), data=[PROSE.read_text()])


def test_one_of_another_network_or_kind_is_refused(beside, tmp_path):
    shutil.copytree(beside, tmp_path / "other")
    (tmp_path / "other" / "burnish.json").unlink()
    config = tmp_path / "other" / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"target_modules": ["q_proj"]}))
    with pytest.raises(CheckpointError, match="is of another network"):
        _ = load(tmp_path / "other").module
    config.write_text(json.dumps(content | {"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(CheckpointError, match="LoRA alone is read beside a checkpoint"):
        load(tmp_path / "other")
    config.write_text(json.dumps(content))
    (tmp_path / "other" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(BurnishError, match=r"has no adapter_model.safetensors"):
        load(tmp_path / "other")


def test_one_that_is_damaged_is_refused_and_never_left_out(beside, tmp_path):
    place = load(beside).save(tmp_path / "other") / "adapter"
    weights = place / "adapter_model.safetensors"
    factors = load_file(weights)
    name = min(factors)
    save_file(factors | {name: factors[name] * math.nan}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} holds numbers that are not finite"):
        _ = load(place.parent).module
    config = json.loads((place / "adapter_config.json").read_text())
    for changed in ({"lora_alpha": math.nan}, {"lora_alpha": "x"}, {"r": True}, {"r": 0}):
        (place / "adapter_config.json").write_text(json.dumps(config | changed))
        with pytest.raises(CheckpointError, match=r"but they are a rank and a number|lora_alpha"):
            load(place.parent)
    (place / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json"):
        load(place.parent)


def test_one_that_is_gone_is_missed(beside, tmp_path):
    place = load(beside).save(tmp_path / "other")
    shutil.rmtree(place / "adapter")
    with pytest.raises(CheckpointError, match="its directory adapter is gone"):
        load(place)


def test_an_embedding_that_is_the_head_too_gets_no_adapter_and_nothing_is_added_to_it(tiny_llama):
    """Adding what one of the two has learned to the one weight would change the other: logits were off by 8.7."""
    tied = load(tiny_llama)
    assert tied.module.get_input_embeddings().weight is tied.module.get_output_embeddings().weight
    settings = Train(**SMALL, lora_targets="q_proj,embed_tokens")
    with pytest.raises(SettingsError, match=r"lora_targets: embed_tokens is the output head too"):
        settings(tied, data=[PROSE.read_text()])
    a, b = (torch.ones(side) for side in reversed(tied.module.get_input_embeddings().weight.shape))
    made = tied.with_adapter(Adapter.of({"lm_head": (a[None], b[:, None])}))
    with pytest.raises(CheckpointError, match="have one weight"):
        merged(made.module)


def test_factors_make_an_adapter(tiny_llama, tmp_path):
    start = load(tiny_llama)
    name = "model.layers.0.mlp.up_proj"
    weight = start.module.get_submodule(name).weight
    a, b = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
    made = start.with_adapter(Adapter.of({name: (a, b)}))
    expected = load(tiny_llama).module
    with torch.no_grad():
        expected.get_submodule(name).weight += b @ a
    torch.testing.assert_close(logits(made.module), logits(expected))
    again = load(made.save(tmp_path / "dense"))
    assert torch.equal(logits(made.module), logits(again.module))
    assert isinstance(again, Model) and again.adapter.rank == 3
