"""How long a decoding step takes under tensor parallelism, with standard residuals and with ladders.

A model of 2 L sub-blocks (attention and MLP of L layers), hidden size d, and W bytes of weights, on p ranks that read B
bytes a second, with n sequences of one token each:

    computation    c = W / (p B) + 2 L (a + n s 8 / p)    a: to start a sub-block; s: of a sequence, on 8 ranks
    all-reduce     r = u + v (p - 1) + 2 (p - 1) / p  2 n d / b    2 n d: bytes of 16-bit outputs; b: of a link
    communication  m = 2 L r
    standard       c + m
    ladder         c + m - o min(c, m)    o: the share of the shorter one that runs under the longer one

so the speed-up is at most 1 + o min(m / c, c / m), and 2 at the very most. With a share f of the layers in ladders, the
last term is f of that. Latencies, not bytes, decide while n d is small: all-reduces of a decoding step are short.

Source: Ladder-Residual (2025, arXiv:2501.06589), whose figures for a model of 70 billion parameters on H100s `H100`,
`NVLINK` and `NO_P2P` are fitted to: five columns of six rows by nine numbers, each within 17 % (18 of 30 within 6 %).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A rank.

    Attributes:
        bytes_per_second: that it reads weights at.
        seconds_per_block: to start a sub-block, whatever is in it.
        seconds_per_sequence: of a sub-block for every sequence, where there are 8 ranks.
    """

    bytes_per_second: float
    seconds_per_block: float
    seconds_per_sequence: float


@dataclass(frozen=True)
class Link:
    """What ranks talk over.

    Attributes:
        seconds, seconds_per_rank: of an all-reduce of nothing: for two ranks and less one, and for each further rank.
        bytes_per_second: of one rank.
        overlap: share of the shorter of computation and communication that runs under the other.
    """

    seconds: float
    seconds_per_rank: float
    bytes_per_second: float
    overlap: float


H100 = Device(3.41e12, 2.69e-5, 1.76e-6)
NVLINK = Link(4.2e-6, 2.86e-6, 1.25e11, 0.78)
NO_P2P = Link(0.0, 8.66e-6, 2.79e10, 0.63)
"""GPUs of one machine that talk through its memory."""


@dataclass(frozen=True)
class Step:
    """Seconds of a decoding step.

    Attributes:
        computation: of all sub-blocks; the step without any communication.
        communication: of all all-reduces.
        overlap: share of the shorter of the two that runs under the longer one, in ladders.
        share: of layers in ladders.
    """

    computation: float
    communication: float
    overlap: float
    share: float

    @property
    def standard(self) -> float:
        return self.computation + self.communication

    @property
    def ladder(self) -> float:
        return self.standard - self.share * self.overlap * min(self.computation, self.communication)

    @property
    def speed_up(self) -> float:
        """Of the ladder, over the standard step."""
        return self.standard / self.ladder


def all_reduce_seconds(num_bytes: int, ranks: int, link: Link) -> float:
    """Of a tensor of so many bytes; nothing for one rank."""
    if ranks == 1:
        return 0.0
    moved = 2 * (ranks - 1) / ranks * num_bytes
    return link.seconds + link.seconds_per_rank * (ranks - 1) + moved / link.bytes_per_second


def decoding_step(
    *,
    num_layers: int,
    hidden_size: int,
    weight_bytes: int,
    ranks: int,
    batch: int,
    device: Device = H100,
    link: Link = NVLINK,
    share: float = 1.0,
) -> Step:
    """The step of a model.

    Args:
        num_layers, hidden_size, weight_bytes: of the model; the bytes that a token reads.
        ranks: of tensor parallelism.
        batch: sequences, of which each gets one token.
        device, link: what it runs on.
        share: of its layers that are in ladders.
    """
    blocks = 2 * num_layers
    per_block = device.seconds_per_block + batch * device.seconds_per_sequence * 8 / ranks
    computation = weight_bytes / (ranks * device.bytes_per_second) + blocks * per_block
    communication = blocks * all_reduce_seconds(2 * batch * hidden_size, ranks, link)
    return Step(computation, communication, link.overlap, share)
