"""Steering in vLLM 0.32, at five of its places:

    InputProcessor._validate_params    a request that asks for what there is not is refused (400)
    generate_block_hash_extra_keys     blocks with tokens that were steered are found again by that steering alone
    Worker.load_model                  the op goes behind the output projections
    GPUModelRunner._update_states      requests that begin and end
    GPUModelRunner._prepare_inputs     which tokens are steered

The model runner for CPUs is a subclass of that for GPUs; vLLM's second model runner is not known here and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from prometheus_client import Counter
from torch import Tensor, nn
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from burnish.core.checkpoint import load, text_digest
from burnish.core.errors import CheckpointError, EngineError, SettingsError
from burnish.steer.hooks import SteeringCounts
from burnish.steer.vllm.asked import SteeringRequest, VectorSet, asked
from burnish.steer.vllm.buffers import SteeringBuffers
from burnish.steer.vllm.host import HostSteering

logger = init_logger(__name__)
_RUNNING: WeakKeyDictionary[Any, RunningSteering] = WeakKeyDictionary()
"""By model runner."""
_PASS: list[SteeringBuffers | HostSteering | None] = [None]
"""What turns rows of the pass that is prepared; None where nothing is turned, and the op ends at once."""
_LIBRARY = torch.library.Library("burnish", "DEF")
_TOKENS = Counter("burnish_steer_tokens", "Tokens of steered requests that have ended.", ["vectors", "what"])
KEPT = 1024
"""Requests whose counts are kept."""


class RunningSteering:
    """Of one model runner.

    Attributes:
        steering: what its op asks.
        told: counts of requests that have ended, the last ones.
    """

    def __init__(self, steering: SteeringBuffers | HostSteering) -> None:
        self.steering = steering
        self.told: dict[str, tuple[SteeringRequest, SteeringCounts]] = {}

    def begin(self, new: Any) -> None:
        params = new.sampling_params
        wanted = asked(params.extra_args, [one.name for one in self.steering.sets]) if params is not None else None
        if wanted is not None:
            self.steering.begin(new.req_id, wanted, len(new.prompt_token_ids))

    def end(self, request: str) -> None:
        found = self.steering.end(request)
        if found is None:
            return
        wanted, counts = self.told[request] = found
        if len(self.told) > KEPT:
            del self.told[next(iter(self.told))]
        for what, number in vars(counts).items():
            _TOKENS.labels(wanted.name, what).inc(number)
        logger.info("steer %s %s:%g %s", request, wanted.name, wanted.coef, counts)


def steering_counts(worker: Any) -> dict[str, dict[str, int]]:
    """Of the last requests that were steered, by vLLM's ids for them: `llm.collective_rpc(steering_counts)`."""
    running = _RUNNING[worker.model_runner]
    ended = {request: counts for request, (_, counts) in running.told.items()}
    return {request: vars(counts) for request, counts in (ended | running.steering.counts()).items()}


def activate(sets: Sequence[VectorSet]) -> None:
    """Puts steering into the classes of vLLM, in one of its processes."""
    keys = {one.name: text_digest(one.digest) for one in sets}
    InputProcessor._validate_params = _checked(InputProcessor._validate_params, list(keys))
    kv_cache_utils.generate_block_hash_extra_keys = _keyed(kv_cache_utils.generate_block_hash_extra_keys, keys)
    Worker.load_model = _loaded(Worker.load_model, sets)
    GPUModelRunner._update_states = _updated(GPUModelRunner._update_states)
    GPUModelRunner._prepare_inputs = _prepared(GPUModelRunner._prepare_inputs)
    GPUModelRunner._dummy_run = _dummy(GPUModelRunner._dummy_run)


def _checked(original: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Refuses a request that asks for what there is not."""

    @wraps(original)
    def _validate_params(self: Any, params: Any, *rest: Any) -> Any:
        try:
            asked(getattr(params, "extra_args", None), names)  # parameters of pooling have none
        except SettingsError as error:
            raise VLLMValidationError(str(error)) from None
        return original(self, params, *rest)

    return _validate_params


def _keyed(original: Callable[..., Any], keys: Mapping[str, str]) -> Callable[..., Any]:
    """Adds the steering to the hash of a block that holds steered tokens."""

    @wraps(original)
    def generate_block_hash_extra_keys(request: Any, start: int, end: int, first_mm: int) -> Any:
        found, next_mm = original(request, start, end, first_mm)
        params = request.sampling_params
        wanted = asked(params.extra_args, keys) if params is not None else None
        if wanted is None or end <= request.num_prompt_tokens:
            return found, next_mm
        return (*(found or ()), keys[wanted.name], wanted.coef, request.num_prompt_tokens), next_mm

    return generate_block_hash_extra_keys


def _loaded(original: Callable[..., Any], sets: Sequence[VectorSet]) -> Callable[..., Any]:
    """Puts the op into the model."""

    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _RUNNING[self.model_runner] = RunningSteering(_installed(self.model_runner, sets))

    return load_model


def _updated(original: Callable[..., Any]) -> Callable[..., Any]:
    """Begins and ends requests, and goes back where one is read again."""

    @wraps(original)
    def _update_states(self: Any, scheduler_output: Any) -> Any:
        running = _RUNNING[self]
        for request in scheduler_output.finished_req_ids:
            running.end(request)
        for new in scheduler_output.scheduled_new_reqs:
            running.begin(new)
        cached = scheduler_output.scheduled_cached_reqs
        for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request in cached.resumed_req_ids:  # after preemption, from a block that is still kept or from the start
                running.steering.go_back(request, cached.all_token_ids[request][:computed])
        return original(self, scheduler_output)

    return _update_states


def _prepared(original: Callable[..., Any]) -> Callable[..., Any]:
    """Says which tokens of the pass are steered."""

    @wraps(original)
    def _prepare_inputs(self: Any, scheduler_output: Any, lengths: Any) -> Any:
        made = original(self, scheduler_output, lengths)
        num = scheduler_output.total_num_scheduled_tokens
        ids, positions = self.input_ids.gpu[:num], self.positions[:num]
        steering = _RUNNING[self].steering
        steering.fill(ids, positions, self.input_batch.req_ids, lengths)
        _PASS[0] = steering if steering.turns else None
        return made

    return _prepare_inputs


def _dummy(original: Callable[..., Any]) -> Callable[..., Any]:
    """Steers nothing in a pass without requests."""

    @wraps(original)
    def _dummy_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = _RUNNING[self].steering
        steering.clear()
        _PASS[0] = steering if steering.turns else None
        return original(self, *args, **kwargs)

    return _dummy_run


def _installed(runner: Any, sets: Sequence[VectorSet]) -> SteeringBuffers | HostSteering:
    """Puts the op behind the output projections of a model that has been loaded.

    Raises:
        EngineError: vLLM is set up in a way in which steering would not be right.
        CheckpointError: vectors of another model.
    """
    config = runner.vllm_config
    _check_setup(config)
    model = runner.model
    place = Path(config.model_config.model)
    named = any(one.vectors.model for one in sets)
    known = load(place) if named and (place / "config.json").is_file() else None
    projections = _projections(model)
    hidden = config.model_config.get_hidden_size()
    for one in sets:
        if known is not None:
            one.vectors.check_identity(known)
        for head in one.vectors.heads:
            if head.layer not in projections or one.vectors.hidden_size != hidden:
                raise CheckpointError(
                    f"the vectors are of layer {head.layer} and width {one.vectors.hidden_size}, and {place} has none",
                    where=f"steer {one.name}",
                )
    steering = _steering(runner, sets)
    for layer in steering.layers:
        projection = projections[layer][1]
        projection.__class__ = _behind(type(projection))
        projection.steered_layer = layer
    # What was compiled for other vectors, or for none, is not taken from vLLM's cache.
    config.additional_config["burnish_steer"] = text_digest([one.digest for one in sets])
    return steering


def _steering(runner: Any, sets: Sequence[VectorSet]) -> SteeringBuffers | HostSteering:
    """On CPUs the host knows every token; elsewhere it would have to wait for the device."""
    if runner.device.type == "cpu":
        return HostSteering(sets)
    config = runner.vllm_config
    return SteeringBuffers(
        sets,
        num_requests=4 * config.scheduler_config.max_num_seqs,
        num_tokens=len(runner.positions),
        vocab_size=config.model_config.get_vocab_size(),
        device=runner.device,
    )


def _check_setup(config: Any) -> None:
    parallel = config.parallel_config
    wrong = {
        "with speculative decoding, where tokens are read that may not stand": config.speculative_config is not None,
        "with vLLM's second model runner": config.use_v2_model_runner,
        "with pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "with two batches at once": parallel.use_ubatching,
        "with prompts of embeddings": config.model_config.enable_prompt_embeds,
        "with an additional_config that is no object": not isinstance(config.additional_config, dict),
    }
    for what, is_so in wrong.items():
        if is_so:
            fix = "set VLLM_USE_V2_MODEL_RUNNER=0" if "runner" in what else "start the server without"
            raise EngineError(f"vLLM does not steer {what}", where="BURNISH_STEER", fix=fix)


def _projections(model: nn.Module) -> dict[int, tuple[str, RowParallelLinear]]:
    """{layer: name and output projection of its attention}: the one row-parallel part beside an attention."""
    found: dict[int, tuple[str, RowParallelLinear]] = {}
    for name, part in model.named_modules():
        children = list(part.named_children())
        heads = [child for _, child in children if isinstance(child, Attention)]
        outs: list[tuple[str, Any]] = [
            (f"{name}.{own}", child) for own, child in children if isinstance(child, RowParallelLinear)
        ]
        if len(heads) == 1 and len(outs) == 1:
            path, projection = outs[0]
            if (projection.tp_size > 1 and not projection.reduce_results) or (
                projection.skip_bias_add and projection.bias is not None
            ):
                raise EngineError(f"{path} gives a part of the output alone, which steering cannot turn", where="steer")
            found[extract_layer_index(heads[0].layer_name)] = path, projection
    if not found:
        raise EngineError(f"{type(model).__name__} has no output projection behind its heads", where="steer")
    return found


def _behind(kind: type[nn.Module]) -> type[nn.Module]:
    """A projection whose output goes through the op."""

    class SteeredProjection(kind):
        steered_layer: int

        def forward(self, input_: Tensor) -> Any:
            output = super().forward(input_)
            torch.ops.burnish.steer(output[0] if isinstance(output, tuple) else output, self.steered_layer)
            return output

    return SteeredProjection


def _steer(x: Tensor, layer: int) -> None:
    if (steering := _PASS[0]) is not None:
        steering.apply(layer, x)


_LIBRARY.define("steer(Tensor(a!) x, int layer) -> ()")
_LIBRARY.impl("steer", _steer, dispatch_key="CompositeExplicitAutograd")
torch.library.register_fake("burnish::steer", lambda x, layer: None, lib=_LIBRARY)
