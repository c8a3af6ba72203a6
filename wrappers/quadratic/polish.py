"""From a library's approximate (x, y) to the exact solution on its active set, or on a better one.

    K [x; y] = [−q; b]    b the bounds of the active constraints, D = 1 for the others

The set is right if the solution is feasible and its multipliers have the right signs. If it is
not, constraints that are violated join, those with a wrong sign leave, and K is factored again:
Newton's method on the declared residual, which stops when the set does not change. Should it go in
circles, only the worst constraint changes from there on.

M. Hintermüller, K. Ito and K. Kunisch, "The primal-dual active set strategy as a semismooth Newton
method", SIAM J. Optim. 13 (2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..quasidefinite.refined import CONSISTENT
from .kkt import FactoredKKT
from .point import Activity, Point

__all__ = ["Polished", "polish"]

_ROUNDS = 25
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
    factored: FactoredKKT
    repairs: int
    settled: bool


def polish(point: Point) -> Polished:
    """Solve on the active set of a point, and repair the set in a bounded number of rounds."""
    program, activity = point.program, point.activity
    n, seen, one_by_one = program.structure.n, set(), False
    for repairs in range(_ROUNDS):
        D = activity.inactive
        factored = FactoredKKT(program, D)
        bound = np.where(activity.lower, program.l, program.u)
        r = np.concatenate([-program.q, np.where(D > 0, 0.0, bound)])
        start = np.concatenate([point.x, np.where(D > 0, 0.0, point.y)])
        v, left = factored.solve(r, start)
        if not np.isfinite(v).all():
            break
        point = Point(program, v[:n], np.where(D > 0, 0.0, v[n:]))
        wrong = _wrong(point, activity)
        if not wrong.any():
            return Polished(point, factored, repairs, settled=left <= CONSISTENT)
        if activity.key in seen:
            if one_by_one:
                break
            seen, one_by_one = set(), True
        seen.add(activity.key)
        if one_by_one:
            wrong = np.where(np.arange(wrong.size) == np.argmax(wrong), wrong, 0.0)
        activity = _changed(point, activity, wrong > 0)
    return Polished(point, factored, repairs, settled=False)


def _wrong(point: Point, activity: Activity) -> np.ndarray:
    """Return how far each constraint is violated, or its sign is wrong; zero if it is right."""
    program, y, z = point.program, point.y, point.z
    violation = np.maximum(program.l - z, z - program.u) / point.slack_scale
    sign = np.where(activity.lower, y, -y) * point.influence
    wrong = np.where(activity.inactive > 0, violation, np.where(program.equality, 0.0, sign))
    return np.where(wrong > _FEASIBLE, wrong, 0.0)


def _changed(point: Point, activity: Activity, which: np.ndarray) -> Activity:
    """Drop active constraints from the set, and put violated ones into it."""
    joins = which & (activity.inactive > 0)
    low = point.z < point.program.l
    return Activity(
        (activity.lower & ~which) | (joins & low), (activity.upper & ~which) | (joins & ~low)
    )
