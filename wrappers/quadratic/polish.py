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

from .kkt import CONSISTENT, Factored
from .point import Activity, Point

__all__ = ["Polished", "polish"]

_ROUNDS = 12
_FEASIBLE = 1e-9  # relative to the scales of slacks and multipliers


@dataclass(frozen=True)
class Polished:
    """The end of polishing.

    Attributes:
        point: The solution; y is zero where a constraint is inactive.
        factored: K of the active set.
        repairs: How often the set was changed.
        settled: Whether the set passed all tests; the point is of no use if not.
    """

    point: Point
    factored: Factored
    repairs: int
    settled: bool


def polish(point: Point) -> Polished:
    """Solve on the active set of a point, and repair the set in a bounded number of rounds."""
    program, activity, seen = point.program, point.activity, set()
    n = program.structure.n
    for repairs in range(_ROUNDS):
        D = activity.inactive
        factored = Factored(program, D)
        bound = np.where(activity.lower, program.l, program.u)
        r = np.concatenate([-program.q, np.where(D > 0, 0.0, bound)])
        start = np.concatenate([point.x, np.where(D > 0, 0.0, point.y)])
        v, left = factored.solve(r, start)
        if not np.isfinite(v).all():
            break
        point = Point(program, v[:n], np.where(D > 0, 0.0, v[n:]))
        repaired = _repaired(point, activity)
        if repaired.key == activity.key:
            return Polished(point, factored, repairs, settled=left <= CONSISTENT)
        seen.add(activity.key)
        if repaired.key in seen:
            break  # it goes in circles
        activity = repaired
    return Polished(point, factored, repairs, settled=False)


def _repaired(point: Point, activity: Activity) -> Activity:
    program, y, z = point.program, point.y, point.z
    slack, sign = _FEASIBLE * point.slack_scale, _FEASIBLE * point.multiplier_scale
    equality, inactive = program.equality, activity.inactive > 0
    lower = (activity.lower & ((y <= sign) | equality)) | (inactive & (z < program.l - slack))
    upper = (activity.upper & ((y >= -sign) | equality)) | (inactive & (z > program.u + slack))
    return Activity(lower, upper)
