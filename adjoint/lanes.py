"""Batches on the host: which lanes of a batch share an operator.

A batched operand has size one along an axis that it does not vary over: that is how a shared
matrix shows itself.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

__all__ = ["each_lane", "each_system", "mapped"]

Index = tuple[int | slice, ...]
Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH = 5e-3  # seconds of an item from which on threads gain


def each_lane(
    batch: tuple[int, ...], arrays: Sequence[np.ndarray]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the number of every lane with its slices of the arrays."""
    spread = [_spread(a, batch) for a in arrays]
    for lane, index in enumerate(itertools.product(*map(range, batch))):
        yield lane, [a[index] for a in spread]


def each_system(
    batch: tuple[int, ...], operands: Sequence[np.ndarray]
) -> Iterator[tuple[Index, list[int], list[np.ndarray]]]:
    """Yield every distinct operator, with the index and the numbers of the lanes that share it.

    The index holds a slice along the axes over which no operand varies: right-hand sides there are
    columns of one system.
    """
    if not batch:
        yield (), [0], list(operands)
        return
    lanes = np.arange(math.prod(batch)).reshape(batch)
    shared = [all(a.shape[axis] == 1 for a in operands) for axis in range(len(batch))]
    axes = list(zip(shared, batch, strict=True))
    first = tuple(0 if alike else slice(None) for alike in shared)
    varying = tuple(size for alike, size in axes if not alike)
    spread = [_spread(a[first], varying) for a in operands]
    indices = itertools.product(*((slice(None),) if alike else range(size) for alike, size in axes))
    for index, position in zip(indices, np.ndindex(varying), strict=True):
        yield index, lanes[index].reshape(-1).tolist(), [a[position] for a in spread]


def mapped(
    function: Callable[[Item], Result], items: Sequence[Item], *, parallel: bool
) -> list[Result]:
    """Return the function of each item; if parallel, by as many threads as there are processors.

    The first item tells whether they are worth it: quick ones wait for each other, since little of
    their time goes by without Python's lock.
    """
    workers = min(len(items), len(os.sched_getaffinity(0))) if parallel else 1
    if workers <= 1:
        return [function(item) for item in items]
    start = time.perf_counter()
    results = {0: function(items[0])}
    if time.perf_counter() - start < _WORTH:
        return [results[0], *map(function, items[1:])]
    # Threads take one item after another from one iterator; threads of its own, lest a fork or
    # another call find the pool busy.
    jobs = enumerate(items[1:], 1)

    def work() -> None:
        for i, item in jobs:
            results[i] = function(item)

    with ThreadPoolExecutor(workers) as pool:
        for job in [pool.submit(work) for _ in range(workers)]:
            job.result()
    return [results[i] for i in range(len(items))]


def _spread(array: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """Return a view with all lanes along the axes along which the array does not vary."""
    shape = (*batch, *array.shape[len(batch) :])
    return array if array.shape == shape else np.broadcast_to(array, shape)
