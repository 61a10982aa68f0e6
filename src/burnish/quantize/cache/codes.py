"""What is stored of a key or value: three families of codes, each a function of one vector alone.

    rotated:B       less the mean, rotated, B bits a number by the normal's best levels, and a scale in float16
    intB[:GROUP]    B bits a number between the least and the largest of its group, both stored in float16
    lexico:S[:packed]   S atoms of a learned dictionary: their numbers (int16, or packed), coefficients in float8

Bytes of a vector of 64 numbers: rotated:2 18, rotated:3 26, rotated:4 34; int2 (groups of 32) 24, int3 and int4 (one
group) 28 and 36; lexico:S 3 S + 2. Dense float16 is 128. A code never looks at another vector, so what is stored of a
token depends neither on the batch nor on how a text was cut into calls.

What is stored is a dictionary of tensors of the batch shape of the vectors; all that the cache does with them (join,
select, cut) it does along these dimensions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.quantize.maths.bits import pack_bits, unpack_bits
from burnish.quantize.maths.lloyd_max import lloyd_max_levels
from burnish.quantize.maths.pursuit import combine, pursue
from burnish.quantize.maths.rotation import rotate, rotate_back

Vectors = Float[Tensor, "*batch heads tokens dim"]
Stored = dict[str, Tensor]
LARGEST_HALF = torch.finfo(torch.float16).max
LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
PURSUED = 2048
"""Vectors that are pursued at once: their correlations with 4,096 atoms are 32 MB."""


@dataclass(frozen=True)
class LayerFit:
    """What codes know of the keys, or of the values, of one layer.

    Attributes:
        mean: of every channel of every head.
        signs: of the rotation.
        dictionary: atoms of unit length; None where no code asked for them.
    """

    mean: Float[Tensor, "heads 1 dim"]
    signs: Float[Tensor, " dim"]
    dictionary: Float[Tensor, "atoms dim"] | None = None


class CacheCode(Protocol):
    """How a vector is stored; `name` is what the user types, `needs` the parts of `LayerFit` beside mean and signs."""

    @property
    def name(self) -> str: ...

    needs: ClassVar[frozenset[str]]

    def encode(self, vectors: Vectors, fitted: LayerFit) -> Stored: ...

    def decode(self, stored: Stored, fitted: LayerFit) -> Vectors: ...

    def parts(self, fitted: LayerFit) -> dict[str, int]:
        """{tensor: its bytes for one vector}."""
        ...


@dataclass(frozen=True)
class Rotated:
    """Less the mean, rotated, B bits a number.

    The mean stays where taking it off would make the vector longer. The first token of a text is such a one: its values
    are nearly zero and a large part of the attention goes there, so that an error of the size of the mean would be in
    every output. That the mean stays is said by the sign of the scale, which needs none.

    The scale is the one with the smallest error for the chosen levels, <z, q> / <q, q> of the rotated vector z. For
    levels of a normal number its mean is |z| / √dim.
    """

    bits: int
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        return f"rotated:{self.bits}"

    def encode(self, vectors: Vectors, fitted: LayerFit) -> Stored:
        whole, less = vectors.float(), vectors.float() - fitted.mean
        stays = less.norm(dim=-1, keepdim=True) >= whole.norm(dim=-1, keepdim=True)
        rotated = rotate(torch.where(stays, whole, less), fitted.signs)
        size = rotated.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        levels = self._levels(vectors)
        codes = torch.bucketize(rotated / size, (levels[1:] + levels[:-1]) / 2)
        chosen = levels[codes]
        scale = (rotated * chosen).sum(dim=-1, keepdim=True) / chosen.square().sum(dim=-1, keepdim=True)
        return {"codes": pack_bits(codes, self.bits), "scale": _half(torch.where(stays, -scale, scale))}

    def decode(self, stored: Stored, fitted: LayerFit) -> Vectors:
        codes = unpack_bits(stored["codes"], self.bits, len(fitted.signs))
        vectors = rotate_back(self._levels(codes)[codes] * stored["scale"].float().abs(), fitted.signs)
        return torch.where(stored["scale"].signbit(), vectors, vectors + fitted.mean)

    def parts(self, fitted: LayerFit) -> dict[str, int]:
        return {"codes": -(-len(fitted.signs) * self.bits // 8), "scale": 2}

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(lloyd_max_levels(self.bits), dtype=torch.float32, device=like.device)


@dataclass(frozen=True)
class MinMax:
    """B bits a number between the least and the largest of its group."""

    bits: int
    group: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        return f"int{self.bits}" + (f":{self.group}" if self.group else "")

    def encode(self, vectors: Vectors, fitted: LayerFit) -> Stored:
        grouped = vectors.float().unflatten(-1, (-1, self._group(vectors.shape[-1])))
        low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
        zero, scale = _half(low), _half((high - low) / (2**self.bits - 1))
        steps = (grouped - zero.float()[..., None]) / _divisor(scale)[..., None]
        codes = steps.round().clamp(0, 2**self.bits - 1)
        return {"codes": pack_bits(codes.flatten(-2).int(), self.bits), "scale": scale, "zero": zero}

    def decode(self, stored: Stored, fitted: LayerFit) -> Vectors:
        dim = len(fitted.signs)
        codes = unpack_bits(stored["codes"], self.bits, dim).unflatten(-1, (-1, self._group(dim)))
        return (codes * stored["scale"].float()[..., None] + stored["zero"].float()[..., None]).flatten(-2)

    def parts(self, fitted: LayerFit) -> dict[str, int]:
        dim = len(fitted.signs)
        halves = 2 * dim // self._group(dim)
        return {"codes": -(-dim * self.bits // 8), "scale": halves, "zero": halves}

    def _group(self, dim: int) -> int:
        group = self.group or (32 if self.bits <= 2 else dim)
        if dim % (group := min(group, dim)):
            raise SettingsError(
                f"heads of {dim} numbers do not fall into groups of {group}", where=self.name, fix="give a divisor"
            )
        return group


@dataclass(frozen=True)
class Lexico:
    """S atoms of the dictionary of the layer by orthogonal matching pursuit.

    Coefficients are stored in float8 (e4m3) as shares of the largest, 448 being the whole, and that one in float16:
    keys may be larger than float8 reaches, and small ones would lose their digits.
    """

    sparsity: int
    packed: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"dictionary"})

    @property
    def name(self) -> str:
        return f"lexico:{self.sparsity}" + (":packed" if self.packed else "")

    def encode(self, vectors: Vectors, fitted: LayerFit) -> Stored:
        dictionary = self._dictionary(fitted)
        flat = vectors.float().flatten(0, -2)
        found = [pursue(some, dictionary, self.sparsity) for some in flat.split(PURSUED)]
        atoms, coefficients = (torch.cat(parts).unflatten(0, vectors.shape[:-1]) for parts in zip(*found, strict=True))
        scale = _half(coefficients.abs().amax(dim=-1, keepdim=True))
        shares = (coefficients / _divisor(scale)).clamp(-1, 1)
        eighths = (shares * LARGEST_FLOAT8).to(torch.float8_e4m3fn)
        numbers = pack_bits(atoms, self._index_bits(dictionary)) if self.packed else atoms.short()
        return {"atoms": numbers, "coefficients": eighths.view(torch.uint8), "scale": scale}

    def decode(self, stored: Stored, fitted: LayerFit) -> Vectors:
        atoms, coefficients = self.sparse(stored, fitted)
        flat = combine(atoms.flatten(0, -2), coefficients.flatten(0, -2), self._dictionary(fitted))
        return flat.unflatten(0, atoms.shape[:-1])

    def sparse(self, stored: Stored, fitted: LayerFit) -> tuple[Tensor, Tensor]:
        """(numbers of atoms, coefficients) as decoded."""
        dictionary = self._dictionary(fitted)
        if self.packed:
            atoms = unpack_bits(stored["atoms"], self._index_bits(dictionary), self.sparsity)
        else:
            atoms = stored["atoms"]
        shares = stored["coefficients"].view(torch.float8_e4m3fn).float() / LARGEST_FLOAT8
        return atoms.long(), shares * stored["scale"].float()

    def parts(self, fitted: LayerFit) -> dict[str, int]:
        dictionary = self._dictionary(fitted)
        bits = self._index_bits(dictionary) if self.packed else 16
        return {"atoms": -(-self.sparsity * bits // 8), "coefficients": self.sparsity, "scale": 2}

    def _dictionary(self, fitted: LayerFit) -> Tensor:
        if fitted.dictionary is None:
            raise SettingsError(
                "needs dictionaries, and none were learned", where=self.name, fix="fit with a lexico code among --codes"
            )
        if self.sparsity > len(fitted.dictionary):
            raise SettingsError(f"asks for more atoms than {len(fitted.dictionary)}", where=self.name)
        return fitted.dictionary

    def _index_bits(self, dictionary: Tensor) -> int:
        return max((len(dictionary) - 1).bit_length(), 1)


_FORMS = {
    r"rotated:([1-6])": lambda bits: Rotated(int(bits)),
    r"int([2-8])(?::([1-9]\d*))?": lambda bits, group: MinMax(int(bits), int(group) if group else None),
    r"lexico:([1-9]\d*)(:packed)?": lambda sparsity, packed: Lexico(int(sparsity), bool(packed)),
}


def code_of(name: str) -> CacheCode:
    """The code that a name stands for.

    Raises:
        SettingsError: there is none of this name.
    """
    for form, make in _FORMS.items():
        if found := re.fullmatch(form, name.strip()):
            return make(*found.groups())
    raise SettingsError(
        f"there is no code {name!r}",
        where="codes",
        fix="use rotated:BITS (1 to 6), intBITS (2 to 8) or lexico:ATOMS, with :packed for packed numbers of atoms",
    )


def codes_of(names: str) -> dict[str, CacheCode]:
    """{name: code} of names with commas between.

    Raises:
        SettingsError: one is unknown or occurs twice.
    """
    found: dict[str, CacheCode] = {}
    for name in names.split(","):
        code = code_of(name)
        if code.name in found:
            raise SettingsError(f"{code.name} occurs twice", where="codes")
        found[code.name] = code
    return found


def _half(numbers: Tensor) -> Tensor:
    return numbers.clamp(-LARGEST_HALF, LARGEST_HALF).half()


def _divisor(scale: Tensor) -> Tensor:
    """A stored scale to divide by; what has none, a group that is all the same or a vector of zeros, is zero anyway."""
    return torch.where(scale > 0, scale, 1).float()
