"""An estimate of the 1-norm condition number from a few solves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["inverse_norm"]


def inverse_norm(solve: Callable[..., np.ndarray], n: int, *, iterations: int = 5) -> float:
    """Estimate ‖J⁻¹‖₁ from below, usually within a factor of three.

    Hager's method as Higham improved it: N. J. Higham, "FORTRAN codes for estimating the one-norm
    of a real or complex matrix, with applications to condition estimation", ACM Trans. Math.
    Softw. 14 (1988), algorithm 4.1.

    Args:
        solve: `solve(r, transposed=...)` returns `J⁻¹ r` or `J⁻ᵀ r`.
        n: Size of J.
        iterations: At most so many pairs of solves.
    """
    v = solve(np.full(n, 1.0 / n), transposed=False)
    estimate = float(np.abs(v).sum())
    if n == 1 or not np.isfinite(estimate):
        return estimate
    signs = _signs(v)
    x = solve(signs, transposed=True)
    j = int(np.argmax(np.abs(x)))
    for _ in range(iterations - 1):
        v = np.zeros(n)
        v[j] = 1.0
        v = solve(v, transposed=False)
        previous, estimate = estimate, float(np.abs(v).sum())
        if not estimate > previous or np.array_equal(_signs(v), signs):
            estimate = max(estimate, previous)
            break
        signs = _signs(v)
        x = solve(signs, transposed=True)
        last, j = j, int(np.argmax(np.abs(x)))
        if abs(x[last]) == abs(x[j]):
            break
    # A vector that defeats the cancellations which fool the iteration.
    alternating = (1.0 + np.arange(n) / max(n - 1, 1)) * np.where(np.arange(n) % 2, -1.0, 1.0)
    v = solve(alternating, transposed=False)
    return max(estimate, 2.0 * float(np.abs(v).sum()) / (3.0 * n))


def _signs(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0, -1.0, 1.0)
