"""How badly a system magnifies an error: bounded for free, and looked into when in doubt.

For a direct method the condition number is estimated from the factor. For an iterative one each
solve is dear, and what matters is the error that is there: solving loosely for the defect d gives
the correction J⁻¹ d, and ‖J‖ ‖J⁻¹ d‖ / ‖d‖ is the magnification of just this defect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .call import checked
from .condition import inverse_norm
from .contract import Solver
from .operators import Operator, frobenius_norm
from .policy import Policy
from .status import Status
from .store import Entry
from .verdict import Conditioning, in_doubt, ratio

__all__ = ["Defect", "by_correction", "by_estimate"]


@dataclass(frozen=True)
class Defect:
    """What a computed solution leaves over.

    Attributes:
        vector: F(x̂, θ), or J v − r.
        eta: Its backward error.
        transposed: Whether it belongs to Jᵀ.
    """

    vector: np.ndarray
    eta: float
    transposed: bool


def by_estimate(
    policy: Policy, solver: Solver, operator: Operator, entry: Entry, bound: float, eta: float
) -> Conditioning:
    """Take the free lower bound of the condition number, or estimate it where that leaves doubt."""
    if entry.condition is not None:
        return Conditioning(entry.condition, "estimate")
    bound = max(bound, entry.probe or 0.0)
    if not in_doubt(policy, bound, eta):
        return Conditioning(bound, "bound")
    estimate = _estimate(solver, operator, entry)
    if estimate is None:
        return Conditioning(bound, "bound")
    entry.condition = max(estimate, bound)  # both are below the truth
    return Conditioning(entry.condition, "estimate")


def _estimate(solver: Solver, operator: Operator, entry: Entry) -> float | None:
    J = operator.host(entry.operands)
    own = solver.condition(J, entry.state)
    if own is not None:
        return own
    failed: list[Status] = []

    def solve(r: np.ndarray, *, transposed: bool) -> np.ndarray:
        solution = checked(solver, J, r, entry.state, transposed=transposed)
        if solution.status is not Status.SUCCESS:
            failed.append(solution.status)
            return np.zeros_like(r)
        return solution.value

    estimate = inverse_norm(solve, operator.n) * entry.norm  # type: ignore[operator]
    return None if failed else estimate


def by_correction(
    policy: Policy,
    solver: Solver,
    operator: Operator,
    entry: Entry,
    bound: float,
    defects: Sequence[Defect],
) -> Conditioning:
    """Raise the free lower bound by the magnifications of the defects that leave doubt."""
    J = operator.host(entry.operands)
    bound = max(bound, entry.probe or 0.0)
    for defect in defects:
        d = defect.vector
        size = frobenius_norm(d)
        if not (0.0 < size < math.inf and in_doubt(policy, bound, defect.eta)):
            continue
        correction = solver.correct(J, d, entry.state, transposed=defect.transposed)
        if correction is None:
            return Conditioning(math.inf, "bound")
        magnified = ratio(entry.norm * frobenius_norm(np.asarray(correction)), size)  # type: ignore[operator]
        bound = max(bound, magnified if math.isfinite(magnified) else math.inf)
    entry.probe = bound
    return Conditioning(bound, "bound")
