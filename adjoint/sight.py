"""How long a change δλ of an adjoint is, seen from a few directions.

    Jᵀ λ = r,   (J + δJ)ᵀ (λ + δλ) = r        pᵀ δλ ≈ −λᵀ δJ J⁻¹ p

It takes products with δJ, and none with its transpose, which differences of F do not give. Of an
ill-conditioned system every solution lies along the vectors of the small singular values, that of a
random right-hand side too, which is the first p. The others have random signs: E (pᵀ δλ)² = ‖δλ‖².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .group import Group
from .norms import frobenius_norm
from .problem import Problem
from .store import Entry

__all__ = ["Change", "Sight", "corrected"]

Change = Callable[[float], np.ndarray]  # the share of a way ↦ δJ w, for one w

_LOOSE = 0.1  # residual up to which an iterative solver solves, if nobody asks for more
_SIGNS = 2  # p with random signs, where to solve for them is cheap or asked for
_SIGMAS = 3.0  # how many times as long as they see it δλ may be
_SIDE = 2.0  # the same of the one p, beside which δλ has other parts


def corrected(
    problem: Problem, entry: Entry, r: np.ndarray, *, transposed: bool = False, rtol: float = _LOOSE
) -> np.ndarray | None:
    """Return J⁻¹ r, by an iterative solver up to a residual; None if it cannot be had."""
    r = problem.operator.compatible(r, transposed=transposed)
    with entry.lock:
        J = problem.operator.host(entry.operands)
        v = problem.linear.correct(J, r, entry.state, transposed=transposed, rtol=rtol)
    found = problem.group.every(v is not None and np.isfinite(v).all())
    return v if found else None


class Sight:
    """What is known of a change δJ, at several points of a way.

    Args:
        along: For each p, the share of the way ↦ δJ J⁻¹ p.
        group: The processes that vectors are spread over.
    """

    def __init__(self, along: Sequence[Change], group: Group):
        self._along, self._group = along, group
        self._moved: dict[float, list[np.ndarray]] = {}

    @classmethod
    def of(
        cls,
        problem: Problem,
        entry: Entry,
        along: Callable[[np.ndarray], Change],
        *,
        rtol: float = _LOOSE,
    ) -> Sight | None:
        """Look at changes of the J of an entry; None if it cannot be solved with.

        Args:
            problem: The problem.
            entry: What is known of J.
            along: w ↦ the share of the way ↦ δJ w.
            rtol: Residual up to which an iterative solver solves.
        """
        group, able = problem.group, problem.linear.capabilities
        every = able.multi_rhs or (rtol < _LOOSE and able.probed)
        n = problem.operator.n - group.carried
        z, *P = group.rng(n).choice((-1.0, 1.0), (1 + _SIGNS * every, n))
        seen = corrected(problem, entry, z, transposed=True, rtol=rtol)
        if seen is None:
            return None
        looked = (seen / group.norm(seen), *P)
        solved = [corrected(problem, entry, p, rtol=rtol) for p in looked]
        if any(w is None for w in solved):
            return None
        return cls([along(w) for w in solved if w is not None], group)

    def length(self, λ: np.ndarray, share: float) -> float:
        """Return an estimate of ‖δλ‖ that is hardly ever too small."""
        if share not in self._moved:
            self._moved[share] = [change(share) for change in self._along]
        moved = self._moved[share]
        one, *signs = self._group.sum(np.array([m @ λ for m in moved])).tolist()
        seen = _SIGMAS * frobenius_norm(np.array(signs)) / math.sqrt(max(len(signs), 1))
        return float(np.maximum(_SIDE * abs(one), seen))  # of which NaN is the larger
