"""Batches on the host: which lanes of a batch share an operator.

A batched operand has size one along an axis that it does not vary over: that is how a shared
matrix shows itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["each_lane", "each_system"]

Index = tuple[int | slice, ...]


def each_lane(
    batch: tuple[int, ...], arrays: Sequence[np.ndarray]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the number of every lane with its slices of the arrays."""
    for lane, index in enumerate(itertools.product(*map(range, batch))):
        yield lane, _slices(arrays, index)


def each_system(
    batch: tuple[int, ...], operands: Sequence[np.ndarray]
) -> Iterator[tuple[Index, Sequence[int], list[np.ndarray]]]:
    """Yield every distinct operator, with the index and the numbers of the lanes that share it.

    The index holds a slice along the axes over which no operand varies: right-hand sides there are
    columns of one system.
    """
    if not batch:
        yield (), (0,), list(operands)
        return
    lanes = np.arange(math.prod(batch)).reshape(batch)
    shared = [all(a.shape[axis] == 1 for a in operands) for axis in range(len(batch))]
    ranges = [range(1) if alike else range(size) for alike, size in zip(shared, batch, strict=True)]
    for position in itertools.product(*ranges):
        index = tuple(
            slice(None) if alike else i for alike, i in zip(shared, position, strict=True)
        )
        yield index, lanes[index].reshape(-1).tolist(), _slices(operands, position)


def _slices(arrays: Sequence[np.ndarray], position: Sequence[int]) -> list[np.ndarray]:
    return [
        a[tuple(0 if a.shape[axis] == 1 else i for axis, i in enumerate(position))] for a in arrays
    ]
