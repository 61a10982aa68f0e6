"""Factors beside rounded weights: exact identities of their starts, and what is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from burnish.core.checkpoint import load
from burnish.core.errors import RecipeError, SettingsError
from burnish.quantize.low_rank import remainder, take_out
from burnish.quantize.stage import Quantize
from burnish.train.stage import Train
from small_models import PROSE

pytest.importorskip("peft")

TEXT = [PROSE.read_text()]
SHORT = {"method": "rtn", "bits": 2, "group_size": 16, "tokens": 1024, "length": 64, "low_rank": 4}
IDS = torch.arange(20)[None]


class Layer(nn.Module):
    """One linear layer that is fed with given inputs."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.up = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.up.weight.data = weight.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taken(start: str, samples: list[torch.Tensor], rank: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W, W_res, B A) of a layer that sees these samples, one at a time."""
    module = Layer(drawn(0, 8, 6))
    weight, layer = module.up.weight.detach().clone(), module.up
    take_out(module, {"up": layer}, rank, start, lambda: [module(x) for x in samples] and None, torch.float32)
    factors = module.up
    low = factors.lora_B["default"].weight.detach() @ factors.lora_A["default"].weight.detach()
    return weight, layer.weight.detach(), low


def covariance(samples: list[torch.Tensor]) -> torch.Tensor:
    """As peft has it: each sample by its largest entry, then damped."""
    scaled = [x[0] / x.max().abs() for x in samples]
    mean = torch.stack([x.T @ x for x in scaled]).mean(0)
    return mean + 0.01 * mean.diag().mean() * torch.eye(len(mean))


@pytest.mark.parametrize("start", ["corda", "corda-kpm", "pissa"])
def test_what_is_left_and_the_factors_are_the_weight(start):
    weight, left, low = taken(start, [drawn(seed, 1, 50, 6) for seed in (1, 2)])
    torch.testing.assert_close(left + low, weight, rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(low) == 3


def test_what_the_inputs_lose_is_what_was_discarded():
    samples = [drawn(seed, 1, 50, 6) * torch.tensor([5.0, 1, 1, 1, 1, 0.1]) for seed in (1, 2)]
    weight, left, _ = taken("corda", samples)
    c = covariance(samples)
    discarded = torch.linalg.svdvals(weight @ c)[3:]
    torch.testing.assert_close((left @ c).norm(), discarded.square().sum().sqrt(), rtol=1e-4, atol=1e-5)


def test_where_inputs_are_alike_it_is_pissa_and_milora():
    alike = [torch.eye(6)[None]]  # x^T x = I
    weight, _, largest = taken("corda", alike)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(largest, u[:, :3] * s[:3] @ vh[:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(largest, taken("pissa", alike)[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(taken("corda-kpm", alike)[2], u[:, 3:] * s[3:] @ vh[3:], rtol=0, atol=1e-5)


def test_loftq_is_the_largest_part_of_what_rounding_lost_and_at_full_rank_all_of_it():
    before, after = drawn(0, 8, 6), drawn(1, 8, 6)
    a, b = remainder(before, after, 6, torch.float32)
    torch.testing.assert_close(after + b @ a, before, rtol=0, atol=1e-5)
    a, b = remainder(before, after, 2, torch.float32)
    rest = torch.linalg.svdvals(before - after)[2:].square().sum().sqrt()
    torch.testing.assert_close((before - after - b @ a).norm(), rest)


@pytest.mark.parametrize("start", ["corda", "pissa", "loftq"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_checkpoint_is_a_packed_one_with_an_adapter(start, method, tiny_llama: Path, tmp_path: Path):
    made = Quantize(**SHORT | {"method": method, "low_rank_init": start})(load(tiny_llama), calibration=TEXT)
    with torch.no_grad():
        expected = made.module(IDS).logits
        again = load(made.save(tmp_path / "made"))
        assert torch.equal(again.module(IDS).logits, expected)
        plain = Quantize(**SHORT | {"method": method, "low_rank": 0})(load(tiny_llama), calibration=TEXT)
        original = load(tiny_llama).module(IDS).logits
        errors = [(logits - original).square().mean() for logits in (expected, plain.module(IDS).logits)]
    assert errors[0] < errors[1]
    assert again.adapter is not None and again.adapter.rank == 4
    assert made.quantization_config == plain.quantization_config


def test_learned_rounding_finds_the_layers_that_have_factors_beside_them(tiny_llama: Path):
    """Their weights lie one module deeper than the names of the matrices say."""
    settings = SHORT | {"method": "learned", "iterations": 3, "low_rank_init": "pissa"}
    made = Quantize(**settings)(load(tiny_llama), calibration=TEXT)
    assert made.adapter is not None and made.adapter.rank == 4
    assert made.module(IDS).logits.isfinite().all()


def test_what_the_original_computed_is_what_statistics_are_of(tiny_llama: Path):
    """Eight bits beside factors are the original but for rounding: GPTQ has seen inputs of the whole network."""
    made = Quantize(**SHORT | {"method": "gptq", "bits": 8, "low_rank_init": "corda"})(
        load(tiny_llama), calibration=TEXT
    )
    with torch.no_grad():
        torch.testing.assert_close(made.module(IDS).logits, load(tiny_llama).module(IDS).logits, rtol=0, atol=0.05)


def test_training_goes_on_with_its_factors_and_changes_no_code(tiny_llama: Path, tmp_path: Path):
    place = Quantize(**SHORT)(load(tiny_llama), calibration=TEXT).save(tmp_path / "made")
    trained = Train(context=32, batch=4, steps=2, lr=0.01, lora_rank=4)(load(place), data=TEXT)
    trained.save(tmp_path / "trained")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("made", "trained")]
    assert files[0] == files[1]


def test_plans_count_the_bits_of_factors(tiny_llama: Path):
    before = load(tiny_llama).plan()
    plain, beside = (Quantize(**SHORT | {"low_rank": rank}).plan(before) for rank in (0, 4))
    assert beside.adapter and not plain.adapter
    assert beside.num_bytes > plain.num_bytes
    assert any("factors of rank 4 take" in note for note in beside.notes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low_rank": 1000}, r"low_rank is 1,000, but .* has a rank of \d+ at most"),
        ({"low_rank": 0, "low_rank_init": "loftq"}, "low_rank_init is loftq, but there are no factors"),
        ({"target": "3.0bits", "method": "gptq", "bits": 4}, "bytes of factors are not among those"),
        ({"scheme": "fp8-dynamic", "bits": 8, "group_size": None}, "beside whole numbers alone"),
    ],
)
def test_what_does_not_go_with_factors_is_refused(settings, said, tiny_llama: Path):
    with pytest.raises(SettingsError, match=said):
        Quantize(**SHORT | settings).plan(load(tiny_llama).plan())


def test_a_model_with_an_adapter_is_not_rounded(tiny_llama: Path, tmp_path: Path):
    place = Quantize(**SHORT)(load(tiny_llama), calibration=TEXT).save(tmp_path / "made")
    with pytest.raises(RecipeError, match="would lose the LoRA adapter"):
        Quantize(**SHORT)(load(place), calibration=TEXT)


def test_peft_takes_one_window_at_a_time():
    """The first of its traps: two at once are no matrix."""
    module = Layer(drawn(0, 8, 6))
    with pytest.raises(RuntimeError):
        take_out(module, {"up": module.up}, 3, "corda", lambda: module(drawn(1, 2, 50, 6)), torch.float32)


def test_the_input_is_left_as_it_was(tiny_llama: Path):
    model = load(tiny_llama)
    before = copy.deepcopy(model.module.state_dict())
    Quantize(**SHORT)(model, calibration=TEXT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
