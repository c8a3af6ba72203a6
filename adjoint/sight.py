"""How long a change δλ of an adjoint is, seen from a few directions.

    Jᵀ λ = r,   (J + δJ)ᵀ (λ + δλ) = r        pᵀ δλ ≈ −λᵀ δJ J⁻¹ p

It takes products with δJ, and none with its transpose, which differences of F do not give. Of an
ill-conditioned system every solution lies along the vectors of the small singular values, that of a
random right-hand side too, which is the first p. The others have random signs: E (pᵀ δλ)² = ‖δλ‖².
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .norms import frobenius_norm
from .problem import Problem
from .store import Entry

__all__ = ["Sight", "corrected"]

_SIGNS = 2  # p with random signs, by a direct method
_SIGMAS = 3.0  # how many times as long as they see it δλ may be
_SIDE = 2.0  # the same of the one p, beside which δλ has other parts


def corrected(
    problem: Problem, entry: Entry, r: np.ndarray, *, transposed: bool = False
) -> np.ndarray | None:
    """Return J⁻¹ r, loosely by an iterative solver; None if it cannot be had."""
    with entry.lock:
        J = problem.operator.host(entry.operands)
        v = problem.linear.correct(J, r, entry.state, transposed=transposed)
    return v if v is not None and np.isfinite(v).all() else None


class Sight:
    """δJ J⁻¹ p for some p.

    Args:
        problem: The problem.
        entry: What is known of J.
        change: `w ↦ δJ w`.
    """

    def __init__(self, problem: Problem, entry: Entry, change: Callable[[np.ndarray], np.ndarray]):
        n = problem.operator.n
        rng = np.random.default_rng(n)
        direct = problem.linear.capabilities.multi_rhs
        z, *P = rng.choice((-1.0, 1.0), (1 + _SIGNS * direct, n))
        along = corrected(problem, entry, z, transposed=True)
        if along is not None:
            P.insert(0, along / frobenius_norm(along))
        solved = [corrected(problem, entry, p) for p in P]
        self._known = along is not None and all(w is not None for w in solved)
        self._moved = [change(w) for w in solved if w is not None]

    def length(self, λ: np.ndarray) -> float:
        """Return an estimate of ‖δλ‖ that is hardly ever too small; inf where it cannot be seen."""
        if not self._known:
            return math.inf
        along, *signs = (float(m @ λ) for m in self._moved)
        seen = _SIGMAS * frobenius_norm(np.array(signs)) / math.sqrt(max(len(signs), 1))
        return max(_SIDE * abs(along), seen)
