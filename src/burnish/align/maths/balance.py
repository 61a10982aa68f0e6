"""Rows of a step cut into forward passes and dealt to processes, so that none waits long for another.

A forward pass is padded to its longest row, so it costs rows * longest tokens, and not the tokens that are in it. Cut
the rows in order of length into consecutive pieces: whatever pieces there were, giving the longest rows to the piece
with the longest row, as many as it had, makes none of them dearer. So among all ways to make so many pieces a
consecutive one has the least largest piece, and with it the least memory; it is found by bisection over that cost.
Pieces go to processes dearest first, each to the one with the least so far (longest processing time first, Graham,
Bounds on Multiprocessing Timing Anomalies, 1969), as many to each, since all take part in every pass.

Packed, a pass costs the tokens that are in it, whichever rows these are. Then rows go longest first, each to the piece
with the least so far; and within a pass to as many lines as that keeps full, since attention costs the square of a
line's length.

The sum of shares of `burnish.align.maths.reduction` does not depend on the cut, so only cost changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Pieces = list[list[int]]
"""Numbers of rows."""

FULL = 0.95
"""Tokens of lines over their places, at least."""


def cost(lengths: Sequence[int], piece: Sequence[int]) -> int:
    """Tokens of a forward pass, padding included."""
    return len(piece) * max((lengths[row] for row in piece), default=0)


def tokens(lengths: Sequence[int], piece: Sequence[int]) -> int:
    """Tokens of a forward pass without any padding."""
    return sum(lengths[row] for row in piece)


def pieces_by_length(lengths: Sequence[int], pieces: int) -> Pieces:
    """All rows in so many pieces, none of them empty, of which the dearest is as cheap as it can be.

    Args:
        lengths: tokens of each row, 1 or more.
        pieces: how many, at most as many as rows.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    low, high = 1, len(lengths) * max(lengths, default=1)
    while low < high:
        middle = (low + high) // 2
        if _needed(lengths, order, middle) <= pieces:
            high = middle
        else:
            low = middle + 1
    found, at = Pieces(), 0
    for left in range(pieces - 1, -1, -1):
        most = len(order) - at - left  # one at least for each piece to come
        size = most if left == 0 else min(low // lengths[order[at]], most)
        found.append(order[at : at + size])
        at += size
    return found


def pieces_by_tokens(lengths: Sequence[int], pieces: int) -> Pieces:
    """All rows in so many pieces of nearly as many tokens; none is empty where there are as many rows."""
    found = [list[int]() for _ in range(pieces)]
    loads = [(0, piece) for piece in range(pieces)]
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        load, piece = loads[0]
        found[piece].append(row)
        heapq.heapreplace(loads, (load + lengths[row], piece))
    return found


def lines(lengths: Sequence[int], full: float = FULL) -> Pieces:
    """Rows one after the other in lines of one length: as many lines as hold this share of tokens, 1 at least.

    Args:
        lengths: tokens of each row.
        full: share of the places of all lines that must hold a token; one line always does.
    """
    total, most = sum(lengths), max(lengths)
    for number in range(int(total / (full * most)), 1, -1):  # with more, the longest row alone leaves too much free
        found = pieces_by_tokens(lengths, number)
        if total >= full * number * max(tokens(lengths, line) for line in found):
            return found
    return [list(range(len(lengths)))]


def _needed(lengths: Sequence[int], order: Sequence[int], most: int) -> int:
    """Pieces that there must be where none may cost more; more than there are rows where a row alone does."""
    at, count = 0, 0
    while at < len(order):
        size = most // lengths[order[at]]
        if not size:
            return len(order) + 1
        at, count = at + size, count + 1
    return count


def cut(lengths: Sequence[int], processes: int, passes: int, packing: bool = False) -> list[Pieces]:
    """The rows of each pass of each process; every pass has one at least.

    Args:
        lengths: tokens of each row; 0 for a row that is not forwarded, which goes where fewest are.
        processes: that share the step.
        passes: of each of them; processes * passes are at most as many as rows.
        packing: whether a pass costs its tokens alone.

    Returns:
        Pieces of each process.
    """
    moved = [row for row, length in enumerate(lengths) if length]
    number = processes * passes
    divided, price = (pieces_by_tokens, tokens) if packing else (pieces_by_length, cost)
    of_moved = divided([lengths[row] for row in moved], min(number, len(moved))) if moved else []
    pieces = [[moved[row] for row in piece] for piece in of_moved]
    pieces += [list[int]() for _ in range(number - len(pieces))]
    for row, length in enumerate(lengths):
        if not length:
            min(pieces, key=len).append(row)
    found, loads = [Pieces() for _ in range(processes)], [0] * processes
    for piece in sorted(pieces, key=lambda piece: -price(lengths, piece)):
        free = [one for one in range(processes) if len(found[one]) < passes]
        chosen = min(free, key=lambda one: loads[one])
        found[chosen].append(piece)
        loads[chosen] += price(lengths, piece)
    return found
