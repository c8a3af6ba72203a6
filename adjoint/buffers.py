"""Large arrays in memory that was used before.

The pages of fresh memory are zeroed by the kernel when they are first touched, and in a loop with a
new matrix in every step that takes as long as all checks together. So what a dead array leaves is
handed to the next one of its size.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import numpy as np

__all__ = ["buffers"]

_LEAST = 1 << 20  # bytes from which on memory is fresh, and not what malloc has at hand
_MOST = 1 << 27  # bytes of a buffer that is kept
_KEPT = 2  # buffers: a matrix, and its factor


class _Owner:
    """What NumPy keeps alive for as long as an array in its memory."""

    def __init__(self, memory: np.ndarray, idle: deque[np.ndarray]):
        self._memory, self._idle = memory, idle
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._idle.append(self._memory)  # at the cost of the oldest


class Buffers:
    """Makes arrays of what others have left."""

    def __init__(self):
        self._idle: deque[np.ndarray] = deque(maxlen=_KEPT)

    def copy(self, array: np.ndarray, order: Literal["C", "F"] = "C") -> np.ndarray:
        """Return a copy in C or Fortran order."""
        copy = self._empty(array.shape, array.dtype, order)
        copy[...] = array
        return copy

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return zeros in double precision."""
        zeros = self._empty(shape, np.dtype(np.float64), "C")
        zeros[...] = 0.0
        return zeros

    def clear(self) -> None:
        """Give back what is not used."""
        self._idle.clear()

    def _empty(self, shape, dtype, order):
        nbytes = math.prod(shape) * dtype.itemsize
        if not _LEAST <= nbytes <= _MOST:
            return np.empty(shape, dtype, order)
        memory = np.asarray(_Owner(self._find(nbytes), self._idle))
        return np.ndarray(shape, dtype, memory, order=order)

    def _find(self, nbytes: int) -> np.ndarray:
        for _ in range(len(self._idle)):
            try:
                memory = self._idle.popleft()
            except IndexError:  # another thread has it
                break
            if memory.nbytes == nbytes:
                return memory
            self._idle.append(memory)
        return np.empty(nbytes, np.uint8)


buffers = Buffers()
