"""What a model does between its hidden states and its logits is found out by running it."""

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from burnish.arch import head_of
from small_models import make

SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48}


@pytest.mark.parametrize(
    "kind, settings, scale, cap",
    [
        ("llama", {}, 1.0, None),
        ("llama", {"tie_word_embeddings": True}, 1.0, None),
        ("gpt2", {}, 1.0, None),
        ("mixtral", {}, 1.0, None),
        ("cohere", {"logit_scale": 0.25}, 0.25, None),
        ("granite", {"logits_scaling": 8.0}, 0.125, None),
        ("gemma2", {"final_logit_softcapping": 0.05}, 1.0, 0.05),
    ],
)
def test_the_form_of_the_head_gives_the_models_own_logits(kind, settings, scale, cap):
    model = make(kind, dtype=torch.float64, **SMALL, **settings).train()
    head = head_of(model)
    assert head is not None and (head.scale, head.cap) == (scale, cap)
    assert model.training, "the model is left as it was"
    model.eval()
    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    output, hidden = head.last_hidden(model, input_ids=ids)
    torch.testing.assert_close(head.logits(hidden), model(input_ids=ids).logits, rtol=1e-12, atol=1e-12)
    assert output.logits.shape == (2, 1, 60)
    assert not head.body._forward_hooks


def test_logits_that_are_made_in_an_unknown_way_are_left_to_the_model():
    model = make("granite", **SMALL, logits_scaling=8.0)
    model.config.logits_scaling = 4.0
    plain = model.forward

    def forward(input_ids, logits_to_keep=0, **inputs):
        output = plain(input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)
        output.logits = output.logits - 1.0
        return output

    model.forward = forward
    assert head_of(model) is None


def test_a_head_with_more_than_a_matrix_is_left_to_the_model():
    model = make("llama", **SMALL)
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    assert head_of(model) is None


def test_a_body_that_the_model_goes_around_is_left_to_the_model():
    model = make("llama", **SMALL)
    body, head = model.model, model.lm_head

    def forward(input_ids, logits_to_keep=0, **inputs):
        hidden = type(body).forward(body, input_ids=input_ids).last_hidden_state  # calls no hooks, as OPT does
        return CausalLMOutputWithPast(logits=head(hidden[:, -logits_to_keep:]))

    model.forward = forward
    assert head_of(model) is None
