"""What flows through each matrix: its inputs and, if asked, the gradients of a loss with respect to its outputs.

A matrix W (out, in) computes y = W x for every token it sees. Calibration methods need sums over tokens of x xᵀ, and of
g gᵀ with g = ∂loss/∂y, often per sequence. `capture` hands out x and g for every matrix, row by row with the number of
the token each row belongs to. Rows of a routed expert are exactly the tokens routed to it, and g is taken at the
expert matrix's own output, before the routing weight multiplies it, so the routing weight is part of g.

Plain matrices are reached by hooks on the module that holds them. An expert is no module of its own in transformers 5:
experts are reached through its registry of experts implementations, in which `capture` enters one that computes the
same thing expert by expert and looks at every product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from burnish.arch import expert_calls
from burnish.arch.view import MatrixView, layers
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Callback = Callable[[MatrixView, Tensor, Tensor | None, Tensor], None]
"""(view, inputs (rows, in), output gradients (rows, out) or None, token index (rows,))."""

_numbers = itertools.count()


class Capture:
    """A running capture. Set `callback`; it is called for every view once per forward pass, or once per backward pass.

    While it is None nothing is delivered, which is how a pass can be left out. The callback is given:

    * the view;
    * inputs: (rows, in), detached, in the model's dtype; consecutive views of one input group get the same object;
    * output gradients: (rows, out) of the loss that is differentiated, None without gradients; in the dtype of the
      product, which for some routers is float32 whatever the model's;
    * token index: (rows,) int64; token t of sequence b of a (B, T) batch has index b * T + t. Padding is included.

    An expert to which no token was routed is not called: its sums stay what they were. Tensors may share memory with
    the model's activations; a callback that keeps them beyond its own call must copy them.
    """

    def __init__(self, views: Sequence[MatrixView], *, gradients: bool, checkpointing: bool) -> None:
        self.callback: Callback | None = None
        self.gradients, self.checkpointing = gradients, checkpointing
        self.plain: dict[nn.Module, list[MatrixView]] = {}
        self.experts: dict[tuple[nn.Module, str, int], list[MatrixView]] = {}
        for view in views:
            if view.expert is None:
                self.plain.setdefault(view.owner, []).append(view)
            else:
                self.experts.setdefault((view.owner, view.attribute, view.expert), []).append(view)
        self.batch_shape = (0, 0)
        self._last_flat: tuple[Tensor, Tensor] | None = None

    def flat(self, activations: Tensor) -> Tensor:
        """(..., in) -> (rows, in), detached; the same object when asked twice in a row for the same activations."""
        if self._last_flat is None or self._last_flat[0] is not activations:
            self._last_flat = (activations, activations.detach().reshape(-1, activations.shape[-1]))
        return self._last_flat[1]

    def token_index(self, activations: Tensor) -> Tensor:
        """Token numbers of the rows of (..., features). A head may see only the last tokens of each sequence."""
        num_rows = activations.numel() // activations.shape[-1]
        index = torch.arange(num_rows, device=activations.device)
        num_sequences, length = self.batch_shape
        if num_rows == num_sequences * length or activations.ndim != 3:
            return index
        kept = activations.shape[1]
        return (index // kept) * length + (length - kept) + index % kept

    def observe(self, views: Sequence[MatrixView], inputs: Tensor, output: Tensor, token_index: Tensor) -> None:
        """Delivers at once, or when the gradient of `output` is known."""
        if not self.gradients:
            self._deliver(views, inputs, None, token_index)
            return
        if not output.requires_grad:
            if self.checkpointing and not torch.is_grad_enabled():
                return  # the layer runs once more in the backward pass
            raise SettingsError(
                "a capture of gradients met an output that no gradient reaches",
                where=views[0].name,
                fix="do not run the model under torch.no_grad() or inference_mode()",
            )
        output.register_hook(
            lambda gradient: self._deliver(views, inputs, gradient.reshape(-1, gradient.shape[-1]), token_index)
        )

    def _deliver(
        self, views: Sequence[MatrixView], inputs: Tensor, gradients: Tensor | None, token_index: Tensor
    ) -> None:
        if self.callback is None:
            return
        with torch.no_grad():
            for view in views:
                block = None if gradients is None else gradients[:, view.block]
                self.callback(view, inputs, block, token_index)

    def plain_hook(self, owner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of a module with one weight matrix. Routers return their logits among other things."""
        views = self.plain[owner]
        product = output[views[0].output] if isinstance(output, tuple) else output
        self.observe(views, self.flat(args[0]), product, self.token_index(args[0]))

    def experts_forward(self, experts: Any, *args: Tensor) -> Tensor:
        """Σ over chosen experts of routing weight * down(act(gate(x)) * up(x)), expert by expert.

        Args:
            experts: the experts module of a layer (3-D parameters).
            args: what it is called with, see `expert_calls.routed`.
        """
        hidden_states, top_k_index, top_k_weights = expert_calls.routed(experts, args)
        result = torch.zeros_like(hidden_states)
        for expert in range(len(experts.down_proj)):
            rows, choice = torch.where(top_k_index == expert)
            if rows.numel() == 0:
                continue
            tokens = expert_calls.token_numbers(experts, rows, len(hidden_states))
            inputs = hidden_states[rows]
            first = self._expert_product(experts, expert_calls.first_attribute(experts), expert, inputs, tokens)
            hidden = expert_calls.activated(experts, first)
            output = self._expert_product(experts, "down_proj", expert, hidden, tokens)
            weighted = output * top_k_weights[rows, choice, None]
            result = result.index_add(0, rows, weighted.to(result.dtype))
        return result

    def _expert_product(self, experts: Any, attribute: str, expert: int, inputs: Tensor, token_index: Tensor) -> Tensor:
        product = expert_calls.product(experts, attribute, expert, inputs)
        views = self.experts.get((experts, attribute, expert))
        if views is not None:
            self.observe(views, inputs.detach(), product, token_index)
        return product


def hidden_neurons(view: MatrixView, inputs: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows width"]:
    """What the down projection `view` of a routed expert is given, for rows that the expert is given."""
    experts: Any = view.owner
    assert view.expert is not None, "asked for only of routed experts"
    first = expert_calls.product(experts, expert_calls.first_attribute(experts), view.expert, inputs)
    return expert_calls.activated(experts, first)


@contextmanager
def capture(
    module: PreTrainedModel, views: Sequence[MatrixView], *, gradients: bool = False, checkpointing: bool = False
) -> Iterator[Capture]:
    """Watches `views` (from `matrices(module)`) while the block runs; see `Capture` for what a callback is given.

    The model, or single decoder layers of it, are run by the caller inside the block. With `gradients` the caller also
    calls `backward()` on a loss. Only activation gradients are computed: all weights are frozen inside the block, and
    differentiation starts at the first decoder layer that holds a view. With `checkpointing` too, activations are kept
    of one decoder layer at a time, and each layer runs twice; a training's own checkpointing needs a model in training
    mode, and here it is not.

    Raises:
        SettingsError: a view is only looked up (an embedding without a tied head), or no gradient reaches an output.
    """
    for view in views:
        if not view.multiplies:
            raise SettingsError(
                "an embedding is looked up, not multiplied, so it has no inputs to capture",
                where=view.name,
                fix="pass the views whose `multiplies` is true",
            )
    captured = Capture(views, gradients=gradients, checkpointing=checkpointing)
    with ExitStack() as stack:
        if gradients:
            stack.enter_context(_frozen(module))
        if checkpointing:
            for _, layer in layers(module):
                stack.enter_context(_run_twice(layer))
        if captured.experts:
            stack.enter_context(_experts_implementation(module, captured))
        for hook in _layer_hooks(module, views, captured):
            stack.callback(hook.remove)
        for owner in _heads_instead_of_embeddings(module, captured):
            stack.callback(owner.register_forward_hook(captured.plain_hook).remove)
        yield captured
        captured._last_flat = None


def _layer_hooks(
    module: PreTrainedModel, views: Sequence[MatrixView], captured: Capture
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks on decoder layers that note the batch's shape and, with gradients, start differentiation."""
    decoder_layers = layers(module)
    first = min((len(decoder_layers) - 1 if view.layer is None else view.layer for view in views), default=0)

    def before(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        captured.batch_shape = (hidden_states.shape[0], hidden_states.shape[1])
        if captured.gradients and number >= first and not hidden_states.requires_grad and torch.is_grad_enabled():
            hidden_states = hidden_states.detach().requires_grad_()
        if args:
            return (hidden_states, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden_states}

    for number, (_, layer) in enumerate(decoder_layers):
        yield layer.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: before(number, args, kwargs), with_kwargs=True
        )


def _heads_instead_of_embeddings(module: PreTrainedModel, captured: Capture) -> list[nn.Module]:
    """Modules to hook: those that hold the views, and for a tied embedding the head that multiplies with it."""
    for owner, views in list(captured.plain.items()):
        if views[0].tied:
            head = module.get_submodule(views[0].tied[0].rpartition(".")[0])
            captured.plain[head] = captured.plain.pop(owner)
    return list(captured.plain)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """All parameters without gradients inside the block."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _run_twice(layer: nn.Module) -> Iterator[None]:
    """Forgets the layer's activations after its forward pass, and computes them again for its backward pass."""
    from transformers import Cache

    original = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden_states, *rest = args or (kwargs.pop("hidden_states"),)
        if not (torch.is_grad_enabled() and hidden_states.requires_grad):
            return original(hidden_states, *rest, **kwargs)
        # No cache: the second pass would add to what the first has stored.
        rest = [None if isinstance(value, Cache) else value for value in rest]
        kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}

        def run(hidden_states: Tensor) -> Any:
            return original(hidden_states, *rest, **kwargs)

        # Reentrant, so that the second pass makes the graph that is differentiated, and the gradients that are
        # captured are those of its outputs.
        return checkpoint(run, hidden_states, use_reentrant=True, preserve_rng_state=False)

    layer.forward = forward
    try:
        yield
    finally:
        layer.forward = original


@contextmanager
def _experts_implementation(module: PreTrainedModel, captured: Capture) -> Iterator[None]:
    """Enters the capturing experts implementation in transformers' registry and selects it inside the block."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    owners = {owner for owner, _, _ in captured.experts}
    if unregistered := [owner for owner in owners if not expert_calls.is_registered(owner)]:
        for owner in unregistered:
            owner.forward = partial(captured.experts_forward, owner)
        try:
            yield
        finally:
            for owner in unregistered:
                del owner.forward
        return
    name = f"burnish_capture_{next(_numbers)}"
    before = module.get_experts_implementation()
    # The registry calls with the experts module as first argument.
    ALL_EXPERTS_FUNCTIONS[name] = captured.experts_forward
    try:
        module.set_experts_implementation(name)
        if module.config._experts_implementation != name:
            raise SettingsError(f"{type(module).__name__} does not take another experts implementation")
        yield
    finally:
        module.set_experts_implementation(before)
        del ALL_EXPERTS_FUNCTIONS[name]
