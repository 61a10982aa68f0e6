"""The pool of KV blocks: references, what is cached, and who goes first, as vLLM V1 keeps them.

A block is in use, or free. A free block may still hold the keys and values of a known piece of text (it is cached) and
is found again by its key. Room is made from blocks that hold nothing first, then from cached ones, those that were
freed longest ago first; the blocks of a request are freed from its tail on, so that beginnings live longest. A second
copy of a piece that is already cached is not found again, and is freed as a block that holds nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """`num` blocks; keys say which piece of which text a block holds.

    Attributes:
        num: of blocks.
        used: blocks in use.
        evicted: cached blocks that were taken for something else, so far.
    """

    def __init__(self, num: int) -> None:
        self.num, self.used, self.evicted = num, 0, 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        return self.num - self.used

    @property
    def num_cached(self) -> int:
        """Free blocks whose content is known."""
        return len(self._idle)

    def known(self, key: int) -> bool:
        return key in self._users or key in self._idle

    def is_idle(self, key: int) -> bool:
        """Whether it is cached and not in use, so that using it takes a free block."""
        return key in self._idle

    def use(self, key: int) -> None:
        """Takes one more reference of a cached block."""
        users = self._users.get(key)
        if users is None:
            del self._idle[key]
            self._users[key] = 1
            self.used += 1
        else:
            self._users[key] = users + 1

    def take(self, num: int) -> None:
        """So many blocks for new content; the caller has seen that they are free."""
        self.used += num
        for _ in range(self.used + len(self._idle) - self.num):
            self._idle.popitem(last=False)
            self.evicted += 1

    def name(self, key: int) -> bool:
        """Says what a block in use holds; False where another block holds that already."""
        if key in self._users or key in self._idle:
            return False
        self._users[key] = 1
        return True

    def give_back(self, keys: Sequence[int], unnamed: int) -> None:
        """Frees blocks of one request: those without a name, then the named ones from the tail on."""
        self.used -= unnamed
        users, idle = self._users, self._idle
        for key in reversed(keys):
            left = users[key] - 1
            if left:
                users[key] = left
            else:
                del users[key]
                idle[key] = None
                self.used -= 1
