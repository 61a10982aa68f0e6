"""Every weight matrix of a model, each as an (out, in) view of the live parameter that holds it.

Checkpoints name one matrix per weight (`model.layers.0.mlp.experts.3.w1.weight`); in memory transformers keeps all
experts of a layer in one 3-D parameter, some models keep q, k and v in one, and GPT-2 stores (in, out). A `MatrixView`
is the matrix a method works on, whatever holds it: it has the name on disk, reads and writes the parameter in place,
and cuts the same block out of anything shaped like the parameter (a gradient, a momentum).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from burnish.arch.describe import Architecture, describe
from burnish.arch.expert_calls import is_registered
from burnish.arch.row import ExpertsPart, MatrixPart, NormPart, OpaquePart, Part, VectorPart
from burnish.arch.wrappers import plain_name
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MatrixView:
    """One weight matrix.

    Attributes:
        name: unique; the weight's key on disk, or `KEY[q]` for one block of rows of a tensor that is one on disk too,
            and `KEY[3 gate]` for one of the matrices of an expert in a tensor of all of them.
        disk: the key on disk that holds it (several views may share one: q, k and v of GPT-2).
        parameter: the state_dict name of the parameter that holds it in memory.
        expert: number of the routed expert, None otherwise.
        rows: first and last + 1 of its output rows inside the parameter.
        step: from one of these rows to the next; 2 where those of gate and up alternate.
        role: q, k, v, o, gate, up, down, router, shared_expert_gate, attention_gate, q_a, q_b, kv_a, kv_b, embedding,
            position_embedding, lm_head, score, latent_in, latent_out.
        part: embedding, attention, mlp, router, latent (projections around experts), experts, shared_expert or head.
        layer: number of the decoder layer, None outside.
        fused_group: name of what vLLM joins it into; equal for its siblings (a quantizer must treat them alike), "" for
            a matrix that stays alone.
        reads: name of the tensor it takes its inputs from ("model.layers.0.mlp_input"), as in `VectorView.feeds`.
        input_group: equal for matrices that multiply exactly the same rows. It is `reads`, but for routed experts, each
            of which gets its own rows of that tensor.
        transposed: the parameter stores (in, out).
        tied: names of state_dict entries that are this same parameter (an output head tied to the embedding).
        output: place of the product among what its module returns, where that is several things.

    Row numbers hold for the shapes that `matrices` saw: after surgery that changes a parameter's shape, ask again.
    """

    name: str
    disk: str
    parameter: str
    expert: int | None
    rows: tuple[int, int]
    role: str
    part: Part
    layer: int | None
    fused_group: str
    reads: str
    input_group: str
    transposed: bool
    tied: tuple[str, ...]
    owner: nn.Module = field(repr=False, compare=False)
    step: int = 1
    output: int = 0

    @property
    def block(self) -> slice:
        """Its output rows inside the parameter."""
        return slice(*self.rows, self.step)

    @property
    def stacked(self) -> bool:
        """Whether the experts of a layer are one tensor on disk too."""
        return self.expert is not None and self.name != self.disk

    @property
    def attribute(self) -> str:
        """Name of the parameter inside `owner`, the module that holds it."""
        return self.parameter.rpartition(".")[2]

    @property
    def tensor(self) -> Float[Tensor, "out in"]:
        """The live weights, detached: writing into it changes the model."""
        return self.of(getattr(self.owner, self.attribute).detach())

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out_features, in_features = self.tensor.shape
        return out_features, in_features

    @property
    def format_group(self) -> str:
        """Name of what vLLM gives one quantization format: all experts of a layer, the fused group, or the matrix."""
        if self.expert is not None:
            return self.parameter.rpartition(".")[0]
        return self.fused_group or self.disk

    @property
    def multiplies(self) -> bool:
        """Whether it is multiplied with activations. Embeddings are only looked up, unless a head is tied to them."""
        return self.part != "embedding" or bool(self.tied)

    def of(self, like_parameter: Tensor) -> Shaped[Tensor, "out in"]:
        """This matrix's block, as (out, in), of a tensor shaped like the parameter: a gradient, a momentum, a mask."""
        block = like_parameter if self.expert is None else like_parameter[self.expert]
        block = block.T if self.transposed else block
        return block[self.block]

    def write_(self, new: Float[Tensor, "out in"]) -> None:
        """Replaces the weights in place, casting to the parameter's dtype and device.

        Raises:
            ValueError: `new` has another shape.
        """
        current = self.tensor
        if new.shape != current.shape:
            raise ValueError(f"{self.name} is {tuple(current.shape)}, but is given {tuple(new.shape)}")
        with torch.no_grad():
            current.copy_(new)


@dataclass(frozen=True)
class VectorView:
    """A parameter, or a buffer that is saved, that is not a weight matrix.

    Attributes:
        name: key on disk.
        parameter: state_dict name.
        role: norm, norm_bias, bias, router_correction (its last axis is of experts), per_head (an entry for each query
            head), expert_bias (of all experts of a layer, beside the parameter whose name it continues), or opaque: a
            tensor of any shape in a part that methods leave as it is.
        layer: number of the decoder layer, None outside.
        feeds: for a norm, the tensor that it produces ("" where no matrix takes it in unchanged): what is multiplied
            into the norm must be divided out of exactly the matrices whose `reads` has this name.
    """

    name: str
    parameter: str
    role: str
    layer: int | None
    feeds: str
    owner: nn.Module = field(repr=False, compare=False)

    @property
    def tensor(self) -> Tensor:
        """The live values, detached."""
        return getattr(self.owner, self.parameter.rpartition(".")[2]).detach()


def layers(module: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The decoder layers in order, with their paths ("model.layers.0")."""
    architecture = describe(module)
    path = architecture.row.layers
    modules = {plain_name(name): part for name, part in module.named_modules()}
    if path not in modules:
        raise CheckpointError(
            f"{type(module).__name__} has no decoder layers at {path}",
            fix="load it with a head (AutoModelForCausalLM), not as a base model",
        )
    return [(f"{path}.{index}", layer) for index, layer in enumerate(modules[path].children())]


def matrices(module: PreTrainedModel, *, complete: bool = True) -> list[MatrixView]:
    """Every weight matrix, embeddings first, then layer by layer, heads last. Works on the meta device too.

    Args:
        module: also with layers that are compiled or checkpointed; names are those of the model without.
        complete: refuse parameters that the row of the model type does not describe; else they are left out.

    Raises:
        CheckpointError: the model type is unknown, or a parameter is not described by its row.
    """
    return _Inventory(module, complete=complete).matrices


def vectors(module: PreTrainedModel) -> list[VectorView]:
    """Everything else that is saved: norms, biases, router corrections. Raises as `matrices` does."""
    return _Inventory(module).vectors


def by_input(views: Sequence[MatrixView]) -> dict[str, list[MatrixView]]:
    """Views by the tensor they read. Input statistics need only the first view of each group."""
    groups: dict[str, list[MatrixView]] = {}
    for view in views:
        groups.setdefault(view.input_group, []).append(view)
    return groups


def by_parameter(views: Sequence[MatrixView]) -> dict[str, list[MatrixView]]:
    """Views by the parameter that holds them (an optimizer updates a parameter, and routes its matrices)."""
    groups: dict[str, list[MatrixView]] = {}
    for view in views:
        groups.setdefault(view.parameter, []).append(view)
    return groups


class _Inventory:
    """Walks the row of a model type over a module and checks that nothing is left over."""

    def __init__(self, module: PreTrainedModel, *, complete: bool = True) -> None:
        self.architecture: Architecture = describe(module)
        self.modules = {plain_name(name): part for name, part in module.named_modules()}
        self.state = {plain_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
        self.tied = _tied_names(self.state)
        self.matrices: list[MatrixView] = []
        self.vectors: list[VectorView] = []
        row = self.row = self.architecture.row
        decoder_layers = layers(module)
        self._embedding(row.embedding, "embedding")
        if row.position_embedding:
            self._embedding(row.position_embedding, "position_embedding")
        for number, (path, _) in enumerate(decoder_layers):
            for part in row.parts:
                match part:
                    case MatrixPart():
                        self._matrix(part, path, number)
                    case ExpertsPart():
                        self._experts(part, path, number)
                    case NormPart():
                        feeds = f"{path}.{part.feeds}" if part.feeds else ""
                        self._norm(f"{path}.{part.module}", number, feeds)
                    case VectorPart():
                        disk = f"{path}.{part.on_disk}" if part.on_disk else ""
                        self._vector(f"{path}.{part.parameter}", part.role, number, disk)
                    case OpaquePart():
                        self._opaque(f"{path}.{part.module}", number)
        self._norm(row.final_norm, None, "head_input")
        for path in row.beside:
            self._opaque(path, None)
        for head, role in row.heads.items():
            self._head(head, role)
        self._drop_groups_of_one()
        self._name_readers()
        if complete:
            self._check_complete()

    def _has(self, parameter: str) -> bool:
        return parameter in self.state and parameter not in self.tied

    def _embedding(self, path: str, role: str) -> None:
        parameter = f"{path}.weight"
        # A tied head reads what any head reads; a plain table is looked up and reads nothing.
        tied = tuple(name for name, first in self.tied.items() if first == parameter)
        self._add(parameter, parameter, role, "embedding", None, "head_input" if tied else "", tied=tied)

    def _matrix(self, part: MatrixPart, path: str, layer: int) -> None:
        parameter = f"{path}.{part.module}.weight"
        if not self._has(parameter):
            return
        module = part.on_disk or part.module
        disk = f"{path}.{module}.weight"
        fused = f"{path}.{module.rpartition('.')[0]}.{part.fused}" if part.fused else ""
        reads = f"{path}.{part.reads}"
        sizes = self._row_sizes(part, self.state[parameter].shape[1 if part.transposed else 0])
        start = 0
        for role, size in zip(part.roles, sizes, strict=True):
            name = disk if len(part.roles) == 1 else f"{disk}[{role}]"
            rows = (start, start + size)
            self._add(
                parameter,
                disk,
                role,
                part.part,
                layer,
                reads,
                name,
                rows,
                fused=fused,
                transposed=part.transposed,
                output=part.output,
            )
            start += size
        self._vector(f"{path}.{part.module}.bias", "bias", layer, f"{path}.{module}.bias")

    def _row_sizes(self, part: MatrixPart, num_rows: int) -> list[int]:
        facts = self.architecture
        match part.roles:
            case ("q", "k", "v"):
                key_value = facts.num_key_value_heads * facts.head_dim
                return [facts.num_attention_heads * facts.head_dim, key_value, key_value]
            case _:
                return [num_rows // len(part.roles)] * len(part.roles)

    def _experts(self, part: ExpertsPart, path: str, layer: int) -> None:
        first = f"{path}.{part.module}.{'gate_up_proj' if part.gate else 'up_proj'}"
        down = f"{path}.{part.module}.down_proj"
        if not self._has(first):
            return
        owner: Any = self.modules[f"{path}.{part.module}"]
        transposed = not is_registered(owner) or owner.is_transposed
        alternate = is_registered(owner) and not owner.is_concatenated
        wide, hidden_size = (self.state[name].shape[2 if transposed else 1] for name in (first, down))
        blocks = {"up": (0, wide, 1)}
        if part.gate:
            gate, up = ((0, wide, 2), (1, wide, 2)) if alternate else ((0, wide // 2, 1), (wide // 2, wide, 1))
            blocks = {"gate": gate, "up": up}
        blocks["down"] = (0, hidden_size, 1)
        through = part.through if part.through and self._has(f"{path}.{part.through}.weight") else part.reads
        for expert in range(len(self.state[first])):
            for role, (start, stop, step) in blocks.items():
                template = {"gate": part.gate, "up": part.up, "down": part.down}[role]
                disk = f"{path}.{template.format(expert=expert)}"
                stacked, inward = "{expert}" not in template, role != "down"
                fused = f"{disk.removesuffix('.weight').rpartition('.')[0]}.gate_up_proj"
                hidden = f"{path}.expert_hidden.{expert}"
                self._add(
                    first if inward else down,
                    disk,
                    role,
                    "experts",
                    layer,
                    f"{path}.{through}" if inward else hidden,
                    f"{disk}[{expert} {role}]" if stacked else "",
                    (start, stop),
                    step=step,
                    expert=expert,
                    fused=fused if inward and not stacked else "",
                    transposed=transposed,
                    input_group=f"{path}.expert_input.{expert}" if inward else hidden,
                )
        for parameter in (first, down):
            self._vector(f"{parameter}_bias", "expert_bias", layer)

    def _opaque(self, path: str, layer: int | None) -> None:
        """Everything that is saved below a path."""
        for parameter in self.state:
            if parameter.startswith(f"{path}."):
                self._vector(parameter, "opaque", layer)

    def _head(self, path: str, role: str) -> None:
        parameter = f"{path}.weight"
        if self._has(parameter):
            self._add(parameter, parameter, role, "head", None, "head_input")
        self._vector(f"{path}.bias", "bias", None)

    def _norm(self, path: str, layer: int | None, feeds: str) -> None:
        self._vector(f"{path}.weight", "norm", layer, feeds=feeds)
        self._vector(f"{path}.bias", "norm_bias", layer, feeds=feeds)

    def _vector(self, parameter: str, role: str, layer: int | None, name: str = "", feeds: str = "") -> None:
        if self._has(parameter):
            owner = self.modules[parameter.rpartition(".")[0]]
            disk = self._on_disk(name or parameter)
            self.vectors.append(VectorView(disk, parameter, role, layer, feeds, owner))

    def _on_disk(self, name: str) -> str:
        """A name with the start that it has in published checkpoints."""
        for start, stored in self.row.on_disk.items():
            if name.startswith(start):
                return stored + name.removeprefix(start)
        return name

    def _add(
        self,
        parameter: str,
        disk: str,
        role: str,
        part: Part,
        layer: int | None,
        reads: str,
        name: str = "",
        rows: tuple[int, int] | None = None,
        *,
        expert: int | None = None,
        fused: str = "",
        transposed: bool = False,
        tied: tuple[str, ...] = (),
        input_group: str = "",
        step: int = 1,
        output: int = 0,
    ) -> None:
        shape = self.state[parameter].shape if expert is None else self.state[parameter].shape[1:]
        self.matrices.append(
            MatrixView(
                name=self._on_disk(name or disk),
                disk=self._on_disk(disk),
                parameter=parameter,
                expert=expert,
                rows=rows or (0, shape[1] if transposed else shape[0]),
                role=role,
                part=part,
                layer=layer,
                fused_group=self._on_disk(fused),
                reads=reads,
                input_group=input_group or reads,
                transposed=transposed,
                tied=tied,
                owner=self.modules[parameter.rpartition(".")[0]],
                step=step,
                output=output,
            )
        )

    def _drop_groups_of_one(self) -> None:
        """A sibling may be absent: without low-rank queries nothing joins `kv_a_proj_with_mqa`."""
        sizes = Counter(view.fused_group for view in self.matrices)
        self.matrices = [
            replace(view, fused_group="") if sizes[view.fused_group] == 1 else view for view in self.matrices
        ]

    def _name_readers(self) -> None:
        """In a layer with an opaque mixer no matrix may read what a norm feeds in others."""
        read = {view.reads for view in self.matrices}
        self.vectors = [vector if vector.feeds in read else replace(vector, feeds="") for vector in self.vectors]

    def _check_complete(self) -> None:
        claimed = {view.parameter for view in (*self.matrices, *self.vectors)}
        for parameter in self.state:
            if parameter not in claimed and parameter not in self.tied:
                raise CheckpointError(
                    f"the row of model_type {self.architecture.model_type!r} says nothing about {parameter}",
                    fix='complete the row in src/burnish/arch/table.py, see the docs page "add an architecture"',
                )


def _tied_names(state: dict[str, Tensor]) -> dict[str, str]:
    """{state_dict name: the earlier name of the same parameter}."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in state.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return tied
