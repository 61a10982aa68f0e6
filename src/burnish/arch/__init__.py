"""What a model is made of: the only place that knows model types.

    for view in arch.matrices(module):          # every weight matrix, also inside fused experts, qkv, Conv1D
        print(view.name, view.role, view.shape)

    with arch.capture(module, views, gradients=True) as captured:
        captured.callback = accumulate          # accumulate(view, inputs, output_gradients, token_index)
        module(ids).logits.logsumexp(-1).sum().backward()

`describe` gives the facts of a model type (width keys, norms, experts), `layers` the decoder layers in order, `vectors`
the parameters that are not matrices. Together `matrices` and `vectors` hold every parameter exactly once.
"""

from burnish.arch.capture import Capture, capture, hidden_neurons
from burnish.arch.describe import Architecture, Experts, describe, known_model_types
from burnish.arch.expert_calls import is_registered, routed, token_numbers
from burnish.arch.experts import is_routed, num_active_parameters, num_experts, share_used
from burnish.arch.head import AllLogits, Head, head_of
from burnish.arch.plain import plain_matrices
from burnish.arch.stepping import HiddenStates, behind_layers, first_inputs
from burnish.arch.view import MatrixView, VectorView, by_input, by_parameter, layers, matrices, vectors
from burnish.arch.wrappers import plain_name, unwrapped

__all__ = [
    "AllLogits",
    "Architecture",
    "Capture",
    "Experts",
    "Head",
    "HiddenStates",
    "MatrixView",
    "VectorView",
    "behind_layers",
    "by_input",
    "by_parameter",
    "capture",
    "describe",
    "first_inputs",
    "head_of",
    "hidden_neurons",
    "is_registered",
    "is_routed",
    "known_model_types",
    "layers",
    "matrices",
    "num_active_parameters",
    "num_experts",
    "plain_matrices",
    "plain_name",
    "routed",
    "share_used",
    "token_numbers",
    "unwrapped",
    "vectors",
]
