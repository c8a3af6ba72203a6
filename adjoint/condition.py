"""An estimate of the 1-norm condition number from a few solves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .group import ALONE, Group

__all__ = ["inverse_norm"]


def inverse_norm(
    solve: Callable[..., np.ndarray], n: int, *, group: Group = ALONE, iterations: int = 5
) -> float:
    """Estimate ‖J⁻¹‖₁ from below, usually within a factor of three.

    Hager's method as Higham improved it: N. J. Higham, "FORTRAN codes for estimating the one-norm
    of a real or complex matrix, with applications to condition estimation", ACM Trans. Math.
    Softw. 14 (1988), algorithm 4.1.

    Args:
        solve: `solve(r, transposed=...)` returns `J⁻¹ r` or `J⁻ᵀ r`.
        n: Size of J, or how many of its rows this process has.
        group: The processes that have the rows.
        iterations: At most so many pairs of solves.
    """
    total = int(group.sum(np.array([n]))[0])
    v = solve(np.full(n, 1.0 / total), transposed=False)
    estimate = _one_norm(v, group)
    if total == 1 or not np.isfinite(estimate):
        return estimate
    signs = _signs(v)
    x = np.abs(solve(signs, transposed=True))
    j = _Largest(x, group)
    for _ in range(iterations - 1):
        v = np.zeros(n)
        if j.here:
            v[j.index] = 1.0
        v = solve(v, transposed=False)
        previous, estimate = estimate, _one_norm(v, group)
        if not estimate > previous or group.every(np.array_equal(_signs(v), signs)):
            estimate = max(estimate, previous)
            break
        signs = _signs(v)
        x = np.abs(solve(signs, transposed=True))
        last, j = j, _Largest(x, group)
        if last.of(x, group) == j.value:
            break
    # A vector that defeats the cancellations which fool the iteration.
    i = group.before(n) + np.arange(n)
    alternating = (1.0 + i / max(total - 1, 1)) * np.where(i % 2, -1.0, 1.0)
    v = solve(alternating, transposed=False)
    return max(estimate, 2.0 * _one_norm(v, group) / (3.0 * total))


class _Largest:
    """Where the largest entry is: the first of them, on the first process that has it."""

    def __init__(self, x: np.ndarray, group: Group):
        self.index = int(np.argmax(x)) if x.size else 0
        own = x[self.index] if x.size else -1.0
        self.value = float(group.largest(np.array([own]))[0])
        rank = group.rank if own == self.value else group.size
        self.here = -int(group.largest(np.array([-rank]))[0]) == group.rank

    def of(self, x: np.ndarray, group: Group) -> float:
        """Return the entry of another vector in this place."""
        return float(group.largest(np.array([x[self.index] if self.here else -1.0]))[0])


def _one_norm(v: np.ndarray, group: Group) -> float:
    return float(group.sum(np.array([np.abs(v).sum()]))[0])


def _signs(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0, -1.0, 1.0)
