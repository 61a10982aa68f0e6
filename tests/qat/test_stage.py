"""The stage `qat`: few levels learn the original, and what is written is what was trained, in a stock format."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import warm
from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.core.errors import BurnishError, NumericalError, RecipeError, SettingsError
from burnish.qat.stage import Qat
from burnish.quantize.stage import Quantize
from small_models import PROSE, make, small_tokenizer

SHORT = {"context": 32, "batch": 4, "steps": 24, "lr": 3e-3, "group_size": 16, "eval_every": 8}
ROUNDED_ALONE = {"steps": 1, "lr": 1e-12, "ramp": 0.0}


def trained(original: Path | Model, work_dir: Path | None = None, **settings) -> Model:
    """On some English."""
    stage = Qat(**SHORT | settings)
    start = original if isinstance(original, Model) else load(original)
    return stage(start, data=[PROSE.read_text()], work_dir=work_dir)


def losses(work_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A small model whose predictions are not all alike."""
    model = Model(module=make("llama", disturbed=True), tokenizer=small_tokenizer())
    return model.save(tmp_path_factory.mktemp("qat") / "original")


@pytest.fixture(scope="module")
def ternary(original, tmp_path_factory) -> tuple[Model, Path, Path]:
    """A trained one, where it was saved, and its work directory."""
    place = tmp_path_factory.mktemp("qat")
    model = trained(original, place / "work")
    return model, model.save(place / "ternary"), place / "work"


def test_the_divergence_of_the_rounded_weights_falls(ternary):
    held_out = [row["validation_loss"] for row in losses(ternary[2]) if "validation_loss" in row]
    assert held_out[-1] < held_out[0]


def test_training_starts_at_the_original_and_rounds_more_from_step_to_step(ternary):
    first, *rest = [row["loss"] for row in losses(ternary[2])]
    assert first == pytest.approx(0.0, abs=1e-6)
    assert rest[1] > 0.01


def test_codes_are_those_of_the_name_in_two_bits(ternary, original):
    for _, weight in packed_weights(load(ternary[1])):
        assert set(weight.levels.unique().tolist()) == {-1, 0, 1}
        assert (weight.scale > 0).all()
    config = json.loads((ternary[1] / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (group["format"], group["weights"]["num_bits"], group["weights"]["group_size"]) == ("pack-quantized", 2, 16)
    for _, weight in packed_weights(trained(original, bits=2, steps=1)):
        assert set(weight.levels.unique().tolist()) == {-2, -1, 0, 1}


def test_what_is_in_memory_is_what_stock_loading_reads(ternary):
    quantization_config = CompressedTensorsConfig(dequantize=True)
    stock = AutoModelForCausalLM.from_pretrained(ternary[1], quantization_config=quantization_config)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(ternary[0].module(ids).logits, stock(ids).logits)


def test_codes_survive_the_packer_of_transformers_for_bitnet(ternary):
    """Four codes a byte, of rows a quarter of the matrix apart, each plus one (`quant_method: bitnet`)."""
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    for _, weight in packed_weights(ternary[0]):
        packed = pack_weights(weight.levels.to(torch.int8, copy=True))  # it changes what it is given
        quarter = len(weight.levels) // 4
        assert packed.shape == (quarter, weight.levels.shape[1])
        by_hand = sum((weight.levels[slot * quarter :][:quarter].int() + 1) << (2 * slot) for slot in range(4))
        assert torch.equal(packed.int(), by_hand)
        assert torch.equal(unpack_weights(packed, torch.int8), weight.levels.to(torch.int8))


def test_the_vocabulary_stays_and_norms_learn(ternary, original):
    before, after = load(original).module.state_dict(), load(ternary[1]).module.state_dict()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    norms = [name for name in before if "norm" in name]
    assert any(not torch.equal(before[name], after[name]) for name in norms)


def test_a_head_tied_to_the_embedding_stays_tied_and_dense(tmp_path):
    tied = make("llama", tie_word_embeddings=True, disturbed=True)
    place = trained(Model(module=tied, tokenizer=small_tokenizer()), steps=3).save(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(place / "model.safetensors")
    module = load(place).module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert torch.equal(module.get_input_embeddings().weight, tied.get_input_embeddings().weight)


def test_training_beats_rounding_alone(ternary, original, tmp_path):
    trained(original, tmp_path / "work", **ROUNDED_ALONE)
    alone, learned = (losses(place)[-1]["validation_loss"] for place in (tmp_path / "work", ternary[2]))
    assert learned < 0.8 * alone


def test_rounding_alone_without_a_rate_is_what_the_start_of_scales_gives(original):
    from burnish.qat.maths.few_levels import TERNARY, codes, initial_scale

    before = load(original).module.state_dict()
    for disk, weight in packed_weights(trained(original, scale_init="absmean", **ROUNDED_ALONE)):
        scale = initial_scale(before[disk], 16, TERNARY, "absmean")
        assert torch.allclose(weight.scale, scale, rtol=1e-6)
        assert torch.equal(weight.levels.float(), codes(before[disk], weight.scale, TERNARY))


def test_a_resumed_training_ends_with_the_same_bits(ternary, original, tmp_path):
    """Stopped in the ramp: how far weights are rounded is a function of the step alone."""
    from burnish.train import loop

    stopped, brief = RuntimeError("pulled the plug"), {"steps": 8, "low_rank": 2}
    original_save = loop._Training._save

    def save_and_stop(self, done: int) -> None:
        original_save(self, done)
        raise stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Training, "_save", save_and_stop)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            trained(original, tmp_path / "work", save_every=2, ramp=0.5, **brief)
    resumed = trained(original, tmp_path / "work", save_every=2, ramp=0.5, **brief)
    whole = trained(original, ramp=0.5, **brief)
    assert all(torch.equal(tensor, whole.adapter.tensors[name]) for name, tensor in resumed.adapter.tensors.items())
    for (_, ours), (_, theirs) in zip(packed_weights(resumed), packed_weights(whole), strict=True):
        assert torch.equal(ours.levels, theirs.levels)
        assert torch.equal(ours.scale, theirs.scale)


@pytest.mark.parametrize("fit", ["activations", "plain"])
def test_the_part_of_low_rank_is_an_adapter_that_peft_reads_beside_a_stock_file(original, tmp_path, fit):
    from peft import PeftModel

    model = trained(original, tmp_path / "work", low_rank=4, low_rank_fit=fit, steps=4, ramp=0.5)
    assert losses(tmp_path / "work")[0]["loss"] == pytest.approx(0.0, abs=1e-6)  # W - B A + B A
    place = model.save(tmp_path / "ternary")
    quantization_config = CompressedTensorsConfig(dequantize=True)
    stock = AutoModelForCausalLM.from_pretrained(place, quantization_config=quantization_config)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted, off = model.module(ids).logits, stock(ids).logits
        assert torch.equal(PeftModel.from_pretrained(stock, place / "adapter")(ids).logits, wanted)
        assert torch.equal(load(place).module(ids).logits, wanted)
    assert (off - wanted).abs().max() > 0.1
    for disk, weight in packed_weights(load(place)):
        assert weight.levels.abs().max() == 1, disk
    assert {tensor.dtype for tensor in model.adapter.tensors.values()} == {torch.bfloat16}


def test_a_part_of_low_rank_lowers_what_rounding_alone_costs(original, tmp_path):
    found = {}
    for rank in (0, 2, 8):
        trained(original, tmp_path / str(rank), low_rank=rank, **ROUNDED_ALONE)
        found[rank] = losses(tmp_path / str(rank))[-1]["validation_loss"]
    assert found[8] < found[2] < found[0]


def test_bytes_of_the_adapter_are_planned_and_a_rank_beyond_a_matrix_is_refused(original):
    before = load(original).plan()
    plans = {rank: Qat(data="text.txt", group_size=16, low_rank=rank).plan(before) for rank in (0, 4)}
    model = trained(original, low_rank=4, steps=1)
    assert plans[4].num_bytes - plans[0].num_bytes == 2 * model.adapter.num_parameters
    assert plans[4].adapter
    assert any("bits per weight more" in note for note in plans[4].notes)
    with pytest.raises(SettingsError, match=r"low_rank is 500, but model.layers.*has the shape.*at most"):
        Qat(data="text.txt", group_size=16, low_rank=500).plan(before)


def test_a_teacher_can_be_another_model(original, tmp_path):
    other = Model(module=make("llama"), tokenizer=small_tokenizer()).save(tmp_path / "other")
    stage = Qat(**SHORT | {"steps": 1})
    stage(load(original), data=[PROSE.read_text()], teacher=str(other), work_dir=tmp_path / "work")
    assert losses(tmp_path / "work")[0]["loss"] > 1e-3


def test_routed_experts_are_refused_by_name():
    mixture = Model(module=make("mixtral", disturbed=True), tokenizer=small_tokenizer())
    with pytest.raises(SettingsError, match=r"experts\.0.*is no linear layer by itself"):
        trained(mixture, steps=2)


def test_a_plan_says_bytes_and_what_loads_it(original):
    before = load(original).plan()
    after = Qat(data="text.txt", group_size=16).plan(before)
    model = trained(original, steps=1)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.tensors_on_disk()[0].values())
    assert after.num_bytes == pytest.approx(size, rel=0.02)
    assert any("no built-in kernel for 2 bits" in note for note in after.notes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low_rank_fit": "plain"}, "low_rank_fit counts for nothing without low_rank"),
        ({"lora_rank": 4}, "lora_rank does not go with qat"),
        ({"only": "*"}, "only does not go with qat"),
        ({"compile": True}, "compile does not go with qat"),
        ({"bits": 3}, "ternary"),
        ({"optimizer": "normuon"}, "adamw"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said):
    with pytest.raises((SettingsError, ValueError), match=said):
        Qat(**settings)


def test_packed_weights_wrong_groups_and_damaged_weights_are_refused(original, tmp_path):
    with pytest.raises(RecipeError, match="dense"):
        trained(Quantize(method="rtn", group_size=16)(load(original)).save(tmp_path / "packed"))
    with pytest.raises(SettingsError, match="group_size 24 does not divide"):
        trained(original, group_size=24)
    model = load(original)
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"up_proj.*not finite"):
        trained(model)


def test_a_loss_that_breaks_at_the_switch_stops_and_names_what_broke(original):
    with pytest.raises(BurnishError, match="finite"):
        trained(original, lr=1e30, max_grad_norm=None, ramp=0.1)


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_and_ends_with_the_same_files(original, tmp_path):
    (tmp_path / "text.txt").write_text(PROSE.read_text())
    command = ["qat", original, "--data", "text.txt", "--context", "32", "--batch", "4", "--steps", "60"]
    command += ["--group-size", "16", "--low-rank", "2", "--ramp", "0.9", "--save-every", "2"]
    warm.run(tmp_path / "log", *command, "-o", "straight", cwd=tmp_path)
    started = warm.Command(tmp_path / "log", *command, "-o", "killed", cwd=tmp_path)
    states = tmp_path / "killed.run" / "work" / "qat" / "states"
    assert started.wait_until(lambda: list(states.glob("step-*"))), started.output
    assert started.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    warm.run(tmp_path / "log", *command, "-o", "killed", cwd=tmp_path)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
