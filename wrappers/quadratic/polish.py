"""From a library's approximate (x, y) to the exact solution on its active set, or on a better one.

    K [x; y] = [−q; b]    b the bounds of the active constraints, D = 1 for the others

The set is right if the solution is feasible and its multipliers have the right signs. If it is
not, constraints that are violated join, those with a wrong sign leave, and K is factored again:
Newton's method on the declared residual, which stops when the set does not change.

M. Hintermüller, K. Ito and K. Kunisch, "The primal-dual active set strategy as a semismooth Newton
method", SIAM J. Optim. 13 (2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activity import Activity, Scales, activity_at
from .kkt import CONSISTENT, Factored
from .program import Program

__all__ = ["Polished", "polish"]

_ROUNDS = 12
_FEASIBLE = 1e-9  # relative to the scales of slacks and multipliers


@dataclass(frozen=True)
class Polished:
    """The end of polishing.

    Attributes:
        x: Solution.
        y: Multipliers, zero where a constraint is inactive.
        factored: K of the active set.
        repairs: How often the set was changed.
        settled: Whether the set passed all tests; the others are of no use if not.
    """

    x: np.ndarray
    y: np.ndarray
    factored: Factored
    repairs: int
    settled: bool


def polish(program: Program, x: np.ndarray, y: np.ndarray) -> Polished:
    """Solve on the active set of (x, y), and repair the set in a bounded number of rounds."""
    n = program.structure.n
    z = program.residual(x, y)[1]
    activity = activity_at(program, z, y)
    seen = set()
    for repairs in range(_ROUNDS):
        D = activity.inactive
        factored = Factored(program, D)
        start = np.concatenate([x, np.where(D > 0, 0.0, y)])
        r = np.concatenate([-program.q, activity.bound(program)])
        v, left = factored.solve(r, start)
        x, y = v[:n], np.where(D > 0, 0.0, v[n:])
        z = program.residual(x, y)[1]
        repaired = _repaired(program, activity, x, y, z)
        if repaired.same(activity):
            return Polished(x, y, factored, repairs, settled=left <= CONSISTENT)
        seen.add(activity.key)
        if repaired.key in seen or not np.isfinite(v).all():
            break  # it goes in circles
        activity = repaired
    return Polished(x, y, factored, repairs, settled=False)


def _repaired(
    program: Program, activity: Activity, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> Activity:
    scales = Scales(program, x, y, z)
    slack, sign = _FEASIBLE * scales.slack, _FEASIBLE * scales.multiplier
    equality, inactive = program.l == program.u, activity.inactive > 0
    lower = (activity.lower & ((y <= sign) | equality)) | (inactive & (z < program.l - slack))
    upper = (activity.upper & ((y >= -sign) | equality)) | (inactive & (z > program.u + slack))
    return Activity(lower, upper)
