import pytest
import torch
from transformers import PreTrainedModel

import small_models
from burnish.arch import Head
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


def curved() -> PreTrainedModel:
    """No configuration says what its logits go through."""
    module = llama()
    module.lm_head.register_forward_hook(lambda _module, _inputs, output: output**3)
    module.register_forward_hook(
        lambda _module, _inputs, output: type(output)(**(dict(output) | {"logits": output.logits + 1}))
    )
    return module


@pytest.mark.parametrize(("make", "known"), [(llama, True), (gemma2, True), (curved, False)])
@torch.inference_mode()
def test_logits_come_of_the_head_where_it_is_known(make, known: bool):
    module = make()
    logits = ChunkedLogits(module, name="it")
    assert isinstance(logits.head, Head) is known
    torch.testing.assert_close(torch.cat(list(logits.chunks(WINDOW, index=0))), module(WINDOW[None]).logits[0, :-1])


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
