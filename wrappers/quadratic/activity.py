"""Which constraints hold with equality, and how clearly.

    z = A x        lower:  z − l ≤ −y        upper:  u − z ≤ y        inactive: neither

At a solution with strict complementarity either the slack or the multiplier of an inequality is
away from zero; the smaller that is, relative to its scale, the closer is a kink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .program import Program

__all__ = ["WEAK", "Activity", "Scales", "activity_at", "margins"]

# An inequality whose slack and multiplier are both below this is weakly active.
WEAK = 1e-6


@dataclass(frozen=True)
class Activity:
    """The constraints that are active, `(m,) bool` each."""

    lower: np.ndarray
    upper: np.ndarray

    @property
    def inactive(self) -> np.ndarray:
        """Those that are not, as numbers: the D of the KKT matrix."""
        return 1.0 - (self.lower | self.upper)

    def bound(self, program: Program) -> np.ndarray:
        """Return the bound that each active constraint is at, zero for the others."""
        return np.where(self.lower, program.l, np.where(self.upper, program.u, 0.0))

    def same(self, other: Activity) -> bool:
        """Tell whether the same constraints are active on the same sides."""
        return bool((self.lower == other.lower).all() and (self.upper == other.upper).all())

    @property
    def key(self) -> bytes:
        """What tells two of them apart."""
        return np.packbits(self.lower).tobytes() + np.packbits(self.upper).tobytes()


def activity_at(program: Program, z: np.ndarray, y: np.ndarray) -> Activity:
    """Return which constraints the projection of z + y holds."""
    lower = z - program.l <= -y
    return Activity(lower, (program.u - z <= y) & ~lower)


class Scales:
    """By what slacks and multipliers are judged, `(m,)` each, and stationarity, a number.

    They are the terms that should balance: a slack is small beside A x and the bounds, a
    multiplier where it pulls less than q, P x and Aᵀ y do. At x = 0 the length is that of a Newton
    step.

    Args:
        program: The program.
        x: The point.
        y: Multipliers.
        z: A x.
    """

    def __init__(self, program: Program, x: np.ndarray, y: np.ndarray, z: np.ndarray):
        n, rows = program.structure.n, program.row_norms
        Aty = (program.B @ np.concatenate([np.zeros(n), y]))[:n]
        curvature, length = _largest(program.P), _largest(x)
        pull = max(_largest(program.q), _largest(Aty), curvature * length) or 1.0
        if curvature > 0:
            length = max(length, min(pull / curvature, 1.0))
        bounds = np.maximum(_finite(program.l), _finite(program.u))
        slack = np.maximum(np.maximum(np.abs(z), rows * length), bounds)
        self.pull = pull
        self.slack = np.where(slack > 0, slack, _largest(slack) or 1.0)
        self.multiplier = pull / np.where(rows > 0, rows, 1.0)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _finite(bound: np.ndarray) -> np.ndarray:
    size = np.abs(bound)
    return np.where(size < 1e15, size, 0.0)  # beyond that there is no bound


def margins(
    program: Program, activity: Activity, scales: Scales, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Return how far each inequality is from becoming active or inactive; inf for equalities."""
    slack = np.minimum(z - program.l, program.u - z)
    active = activity.lower | activity.upper
    margin = np.where(active, np.abs(y) / scales.multiplier, slack / scales.slack)
    return np.where(program.l == program.u, np.inf, margin)
