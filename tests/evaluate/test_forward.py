import pytest
import torch
from transformers import PreTrainedModel

import small_models
from burnish.core.errors import NumericalError
from burnish.evaluate.forward import ChunkedLogits

SHAPE = {"vocab_size": 96, "hidden_size": 32, "head_dim": 16}
WINDOW = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(0))


def llama() -> PreTrainedModel:
    return small_models.make("llama", **SHAPE)


def gemma2() -> PreTrainedModel:
    """Its logits are capped after the head: the head's matrix alone is wrong."""
    return small_models.make("gemma2", **SHAPE, final_logit_softcapping=0.5, sliding_window=16)


@pytest.mark.parametrize("make", [llama, gemma2])
@pytest.mark.parametrize("chunk", [1, 7, 39, 100])
@torch.inference_mode()
def test_chunks_together_are_the_networks_own_logits(make, chunk: int):
    module = make()
    parts = list(ChunkedLogits(module, name="it", chunk=chunk).chunks(WINDOW, index=0))
    assert max(len(part) for part in parts) <= chunk
    torch.testing.assert_close(torch.cat(parts), module(WINDOW[None]).logits[0, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "plain"), [(llama, True), (gemma2, False)])
@torch.inference_mode()
def test_a_head_that_caps_its_logits_is_found(make, plain: bool):
    logits = ChunkedLogits(make(), name="it")
    list(logits.chunks(WINDOW, index=0))
    assert (logits.head is not None) is plain


@torch.inference_mode()
def test_not_finite_logits_name_window_position_and_module():
    module = llama()
    module.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(
        NumericalError, match=r"model\.layers\.1\.mlp\.up_proj: .* not finite in window 3 at position 0"
    ):
        list(ChunkedLogits(module, name="the model").chunks(WINDOW, index=2))


@torch.inference_mode()
def test_the_first_bad_position_is_named():
    module = llama()

    def spoil(_module, _inputs, states):
        return states.index_fill(1, torch.tensor([25]), torch.nan) if states.shape[1] > 25 else states

    module.model.norm.register_forward_hook(spoil)
    with pytest.raises(NumericalError, match=r"model\.norm: .* at position 25;"):
        list(ChunkedLogits(module, name="the model", chunk=8).chunks(WINDOW, index=0))
