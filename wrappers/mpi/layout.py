"""Which rank owns which entries: consecutive ones, in the order of the ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from .ranks import Ranks

__all__ = ["Layout", "layout_of", "own_share"]

Plan = TypeVar("Plan")

_PLANS = 256


class Layout:
    """The distribution of N entries over ranks. Compared by identity, made once for equal starts.

    Attributes:
        ranks: The ranks.
        starts: First entry of each rank, and N.
    """

    def __init__(self, ranks: Ranks, starts: tuple[int, ...]):
        self.ranks, self.starts = ranks, np.array(starts)
        # By the number of the occasion on which all ranks made one.
        self._plans: dict[Hashable, dict[int, Any]] = {}
        self._keys: dict[int, Hashable] = {}

    def plan(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """Return what was made for this layout when all ranks had these keys; collective.

        Otherwise all of them make it, which may be collective. One rank's key does not tell: what
        it is to send depends on the keys of the others. The latest are kept.
        """
        occasion = self.ranks.common(list(self._plans.get(key, {})))
        if occasion is None:
            made, occasion = make(), self.ranks.next_serial()
            self._plans.setdefault(key, {})[occasion] = made
            self._keys[occasion] = key
            while len(self._keys) > _PLANS:
                oldest = next(iter(self._keys))
                its = self._keys.pop(oldest)
                del self._plans[its][oldest]
                if not self._plans[its]:
                    del self._plans[its]
            return made
        return self._plans[key][occasion]

    @property
    def start(self) -> int:
        """First entry of this rank."""
        return int(self.starts[self.ranks.rank])

    @property
    def count(self) -> int:
        """How many entries this rank has."""
        return int(self.starts[self.ranks.rank + 1]) - self.start

    @property
    def total(self) -> int:
        """N."""
        return int(self.starts[-1])


def layout_of(ranks: Ranks, count: int) -> Layout:
    """Return the layout in which this rank has so many entries; collective."""
    counts = ranks.comm.allgather(count)
    return _layout(ranks, (0, *np.cumsum(counts).tolist()))


def own_share(ranks: Ranks, total: int) -> int:
    """Return how many of N entries are this rank's, if it is nobody's choice: as many as others'.

    The first ranks have one more where that does not come out even, as in PETSc.
    """
    return total // ranks.size + (ranks.rank < total % ranks.size)


@functools.lru_cache(maxsize=256)
def _layout(ranks: Ranks, starts: tuple[int, ...]) -> Layout:
    return Layout(ranks, starts)
