"""Capture: inputs and output gradients are those of the model, row by row."""

import pytest
import torch

from burnish import arch
from burnish.core.errors import SettingsError


def captured_rows(module, views, token_ids, *, gradients=True, checkpointing=False, **forward):
    """{view name: (inputs, output gradients, token index)} of one pass, with the loss Σ logits³."""
    rows = {}
    with arch.capture(module, views, gradients=gradients, checkpointing=checkpointing) as captured:
        captured.callback = lambda view, inputs, grads, index: rows.__setitem__(
            view.name, (inputs.clone(), None if grads is None else grads.clone(), index.clone())
        )
        logits = module(token_ids, **forward).logits
        if gradients:
            logits.pow(3).sum().backward()
    return rows


def test_inputs_and_gradients_rebuild_every_weight_gradient(any_model64, token_ids, all_float64):
    """∂loss/∂W = Σ g xᵀ over tokens, for every matrix, against autograd through the stock eager implementation."""
    views = [view for view in arch.matrices(any_model64) if view.multiplies and not view.tied]
    rows = captured_rows(any_model64, views, token_ids)
    any_model64(token_ids).logits.pow(3).sum().backward()
    gradients = {name: parameter.grad for name, parameter in any_model64.named_parameters()}
    for view in views:
        expected = view.of(gradients[view.parameter])
        if view.name not in rows:  # an expert that saw no token
            assert view.expert is not None
            assert not expected.any()
            continue
        inputs, grads, _ = rows[view.name]
        torch.testing.assert_close(grads.T @ inputs, expected, rtol=1e-9, atol=1e-9, msg=view.name)


def test_a_dense_matrix_sees_what_a_hand_written_hook_sees(model_of, token_ids):
    module = model_of("llama")
    view = next(view for view in arch.matrices(module) if view.name == "model.layers.1.mlp.up_proj.weight")
    seen = {}
    up = module.model.layers[1].mlp.up_proj
    handles = [
        up.register_forward_hook(lambda _m, args, _o: seen.update(inputs=args[0].detach())),
        up.register_full_backward_hook(lambda _m, _i, grads: seen.update(grads=grads[0])),
    ]
    module(token_ids).logits.pow(3).sum().backward()
    for handle in handles:
        handle.remove()
    inputs, grads, index = captured_rows(module, [view], token_ids)[view.name]
    assert torch.equal(inputs, seen["inputs"].flatten(0, 1))
    assert torch.equal(grads, seen["grads"].flatten(0, 1))
    assert index.tolist() == list(range(14))


def test_an_expert_sees_the_tokens_its_router_sends(model_of, token_ids, all_float64):
    """By hand: the router's own choice, and the expert's own formula with the routing weight in the gradient."""
    module = model_of("mixtral", torch.float64)
    experts = module.model.layers[1].mlp.experts
    seen = {}
    handle = experts.register_forward_hook(lambda _m, args, output: seen.update(args=args, output=output))
    module.set_experts_implementation("eager")
    logits = module(token_ids).logits
    (outer,) = torch.autograd.grad(logits.pow(3).sum(), seen["output"])
    handle.remove()
    hidden, chosen, weights = seen["args"]
    rows = captured_rows(module, [v for v in arch.matrices(module) if v.expert is not None], token_ids)
    for expert in range(4):
        token, choice = torch.where(chosen == expert)
        name = f"model.layers.1.block_sparse_moe.experts.{expert}"
        inputs, _, index = rows[f"{name}.w1.weight"]
        assert torch.equal(index, token)
        torch.testing.assert_close(inputs, hidden[token].detach())
        _, down_grads, _ = rows[f"{name}.w2.weight"]
        torch.testing.assert_close(down_grads, (outer[token] * weights[token, choice, None]).detach())


@pytest.mark.parametrize("first", [0, 1])
def test_activations_that_are_computed_twice_give_the_same_rows(any_model64, token_ids, first):
    """Also where differentiation starts at a later layer, and with heads behind the last layer."""
    every = [view for view in arch.matrices(any_model64) if view.multiplies]
    views = [view for view in every if view.layer is None or view.layer >= first]
    kept = captured_rows(any_model64, views, token_ids)
    twice = captured_rows(any_model64, views, token_ids, checkpointing=True)
    assert twice.keys() == kept.keys()
    for name, rows in kept.items():
        torch.testing.assert_close(
            twice[name], rows, rtol=1e-10, atol=1e-10, msg=name
        )  # sums of gradients differ in order


def test_with_checkpointing_the_activations_of_one_layer_are_kept(model_of, token_ids):
    """Tensors that autograd keeps between the passes: one per layer, in place of several per matrix."""
    module = model_of("mixtral")
    views = [view for view in arch.matrices(module) if view.role == "down"]

    def num_kept(checkpointing):
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += 1
            return tensor

        with (
            arch.capture(module, views, gradients=True, checkpointing=checkpointing),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            module(token_ids)
        return kept

    assert num_kept(True) < num_kept(False) / 4


def test_token_index_separates_sequences(model_of, token_ids, all_float64):
    """Rows of sequence b in a batch are the rows of that sequence run alone."""
    for name in ("llama", "gpt2", "mixtral", "qwen2_moe", "deepseek_v3"):
        module = model_of(name, torch.float64)
        views = [view for view in arch.matrices(module) if view.multiplies]
        together = captured_rows(module, views, token_ids)
        length = token_ids.shape[1]
        for sequence in range(2):
            alone = captured_rows(module, views, token_ids[sequence : sequence + 1])
            for view_name, (inputs, grads, index) in together.items():
                mine = index // length == sequence
                if not mine.any():
                    assert view_name not in alone
                    continue
                alone_inputs, alone_grads, alone_index = alone[view_name]
                assert torch.equal(index[mine] % length, alone_index)
                torch.testing.assert_close(inputs[mine], alone_inputs, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(grads[mine], alone_grads, rtol=1e-9, atol=1e-9)


def test_an_expert_without_tokens_is_not_called(model_of, token_ids):
    """With a router that prefers experts 0 and 1 for every token, 2 and 3 never run."""
    module = model_of("mixtral")
    views = arch.matrices(module)
    for layer in module.model.layers:
        layer.post_attention_layernorm.weight.data.fill_(1.0)
        layer.mlp.gate.weight.data.zero_()
    rows = captured_rows(module, [view for view in views if view.expert is not None], token_ids)
    experts = {view.expert for view in views if view.name in rows}
    # Equal logits: top-k takes the same two experts for every token.
    assert len(experts) == 2
    assert all(len(index) == 14 for _, _, index in rows.values())


def test_capture_leaves_the_output_unchanged(any_model, token_ids):
    """Up to the order of summation over a token's experts (float32)."""
    with torch.no_grad():
        before = any_model(token_ids).logits
    views = [view for view in arch.matrices(any_model) if view.multiplies]
    with arch.capture(any_model, views), torch.no_grad():
        inside = any_model(token_ids).logits
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)


def test_nothing_of_a_capture_remains(any_model, token_ids):
    frozen = next(iter(any_model.parameters()))
    frozen.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in any_model.parameters()]
    implementation = any_model.get_experts_implementation()
    views = [view for view in arch.matrices(any_model) if view.multiplies]
    captured_rows(any_model, views, token_ids)
    assert any_model.get_experts_implementation() == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in any_model.modules())
    assert [parameter.requires_grad for parameter in any_model.parameters()] == trained
    assert all(parameter.grad is None for parameter in any_model.parameters())


def test_frozen_weights_still_give_gradients(model_of, token_ids):
    module = model_of("qwen3_moe")
    views = [view for view in arch.matrices(module) if view.multiplies]
    expected = captured_rows(module, views, token_ids)
    module.requires_grad_(False)
    for name, (_, grads, _) in captured_rows(module, views, token_ids).items():
        assert torch.equal(grads, expected[name][1])


def test_a_tied_embedding_is_captured_as_the_head(model_of, token_ids):
    module = model_of("llama_tied", torch.float64)
    view = arch.matrices(module)[0]
    inputs, grads, _ = captured_rows(module, [view], token_ids)[view.name]
    with torch.no_grad():
        logits = module(token_ids).logits.flatten(0, 1)
    torch.testing.assert_close(inputs @ view.tensor.T, logits)
    torch.testing.assert_close(grads, 3 * logits**2)


def test_a_head_that_sees_only_the_last_tokens_still_numbers_them_by_sequence(model_of, token_ids):
    module = model_of("llama")
    head = arch.matrices(module)[-1]
    _, _, index = captured_rows(module, [head], token_ids, logits_to_keep=2)[head.name]
    assert index.tolist() == [5, 6, 12, 13]


def test_views_of_one_input_get_the_same_tensor(model_of, token_ids):
    module = model_of("llama")
    views = [view for view in arch.matrices(module) if view.role in ("q", "k", "v") and view.layer == 0]
    inputs = []
    with arch.capture(module, views) as captured, torch.no_grad():
        captured.callback = lambda _view, x, _grads, _index: inputs.append(x)
        module(token_ids)
    assert inputs[0] is inputs[1] is inputs[2]


def test_single_decoder_layers_can_be_run(model_of, token_ids):
    """A method that walks layer by layer calls layers itself."""
    module = model_of("mixtral")
    views = [view for view in arch.matrices(module) if view.layer == 1]
    kept = {}
    layer = module.model.layers[1]
    handle = layer.register_forward_pre_hook(lambda _m, a, k: kept.update(args=a, kwargs=k), with_kwargs=True)
    whole = captured_rows(module, views, token_ids)
    handle.remove()
    rows = {}
    with arch.capture(module, views) as captured, torch.no_grad():
        captured.callback = lambda view, inputs, _grads, _index: rows.__setitem__(view.name, inputs)
        layer(*kept["args"], **kept["kwargs"])
    assert set(rows) == set(whole)
    assert all(torch.equal(rows[name], whole[name][0]) for name in rows)


def test_without_a_callback_nothing_is_delivered(model_of, token_ids):
    module = model_of("llama")
    with arch.capture(module, arch.matrices(module)[1:], gradients=True):
        module(token_ids).logits.sum().backward()


def test_gradients_under_no_grad_are_an_error(model_of, token_ids):
    module = model_of("llama")
    with (
        pytest.raises(SettingsError, match="no gradient reaches"),
        arch.capture(module, arch.matrices(module)[1:2], gradients=True),
        torch.no_grad(),
    ):
        module(token_ids)


def test_capturing_a_looked_up_embedding_is_an_error(model_of):
    module = model_of("llama")
    with pytest.raises(SettingsError, match="looked up"), arch.capture(module, arch.matrices(module)):
        pass
