"""F near a computed solution, and on the way from there to the true one, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .buffers import buffers
from .group import Group
from .problem import Problem, residual_on_host
from .store import store
from .verdict import ratio

__all__ = ["Nearby", "Way", "nearby", "remembered"]

# By how much of its size a leaf of θ is moved for B, and x̂ for δJ.
_MOVE = 1e-4
_SIDE = 1e-6

_NONE = np.zeros(0)
_OBJECTS = 1024  # bytes of what holds few numbers


class Nearby:
    """F near a computed solution; of several processes, all ask for the same at once.

    Args:
        problem: Whose F it is.
        x: x̂, a vector, with what is carried at its end.
        θ: The leaves of θ; they are copied.

    Attributes:
        group: The processes that x is spread over.
        x: x̂, the own entries.
        size: The length of all of x̂, or what stands for that.
    """

    def __init__(self, problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray]):
        self._problem, self._θ = problem, [buffers.copy(leaf) for leaf in θ]
        self.group = group = problem.group
        self.x, self._carried = np.split(x.copy(), [x.size - group.carried])
        self.size = group.norm(self.x)
        self.nbytes = _OBJECTS + x.nbytes + sum(leaf.nbytes for leaf in self._θ)

    def F(self, d: np.ndarray, θ: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return F at x̂ − d, for these θ or the own ones."""
        x = np.concatenate([self.x - d, self._carried]) if self.group.carried else self.x - d
        return residual_on_host(self._problem, x, self._θ if θ is None else θ)

    def share(self, F: np.ndarray) -> float:
        """Return how much θ brings into F, which is about ‖∂F/∂θ‖ ‖θ‖."""
        zero = np.zeros_like(self.x)
        moved = [self.group.norm(self.F(zero, θ) - F) for θ in self.moved()]
        return max([size for size in moved if math.isfinite(size)], default=0.0) / _MOVE

    def moved(self) -> Iterator[list[np.ndarray]]:
        """Return θ with one leaf after the other moved by random signs, infinite bounds aside."""
        group, rng = self.group, self.group.rng(self.x.size)
        # Each process may have a θ of its own.
        for i in range(int(group.largest(np.array([len(self._θ)]))[0])):
            leaf = self._θ[i] if i < len(self._θ) and self._θ[i].dtype.kind == "f" else _NONE
            finite = np.isfinite(leaf)
            squares, count = group.sum(np.array([np.sum(leaf[finite] ** 2), finite.sum()]))
            if not count:
                continue
            size = math.sqrt(squares / count) or 1.0
            step = _MOVE * size * (2.0 * rng.integers(2, size=leaf.shape, dtype=np.int8) - 1.0)
            θ = self._θ.copy()
            if leaf is not _NONE:
                θ[i] = np.where(finite, leaf + step, leaf)
            yield θ


def nearby(
    problem: Problem, x: np.ndarray, θ: Sequence[np.ndarray], relative: float
) -> Nearby | None:
    """Return F near a solution with this relative residual, if the derivative may ask for it."""
    # What is rounding in F depends on its units: only nothing is nothing in all of them.
    exact = relative == 0.0 and problem.unknown.dtype == np.float64
    if exact or not problem.group.on_host:
        return None
    return Nearby(problem, x, θ)


def remembered(group: Group, ticket: np.ndarray) -> tuple[Nearby | None, np.ndarray | None]:
    """Return F near x̂ and at x̂, of the solve that a ticket names: all processes do, or none."""
    near, F = store.nearby(ticket), store.residual(ticket)
    return (
        near if group.every(near is not None) else None,
        F if group.every(F is not None) else None,
    )


class Way:
    """F from x̂ to x̂ − d, evaluated once at most at each share of the way.

    Args:
        near: F near x̂.
        F: F at x̂.
        d: The step.
    """

    def __init__(self, near: Nearby, F: np.ndarray, d: np.ndarray):
        self.near, self._d, self._F = near, d, {0.0: F}
        self._length = near.group.norm(d)

    def at(self, share: float) -> np.ndarray:
        """Return F at a share of the way."""
        if share not in self._F:
            self._F[share] = self.near.F(share * self._d)
        return self._F[share]

    def moved(self, share: float, θ: Sequence[np.ndarray]) -> np.ndarray:
        """Return by how much F changes there with other θ."""
        return self.near.F(share * self._d, θ) - self.at(share)

    def along(self, w: np.ndarray) -> Callable[[float], np.ndarray]:
        """Return the share of the way ↦ δJ w, by differences along w."""
        # A short way would drown in rounding, were the other side of the parallelogram as short.
        h = ratio(max(self._length, _SIDE * self.near.size), self.near.group.norm(w))
        if not 0.0 < h < math.inf:
            return lambda share: np.zeros_like(w)
        side = self.near.F(-h * w) - self.at(0.0)

        def change(share: float) -> np.ndarray:
            return (self.near.F(share * self._d - h * w) - self.at(share) - side) / h

        return change
