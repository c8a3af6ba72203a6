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

    Args:
        program: The program.
        x: The point.
        y: Multipliers.
        z: A x.
    """

    def __init__(self, program: Program, x: np.ndarray, y: np.ndarray, z: np.ndarray):
        n, norms = program.structure.n, program.row_norms
        # The terms of stationarity, of which multipliers times rows are one.
        Aty = (program.B @ np.concatenate([np.zeros(n), y]))[:n]
        pull = max(np.abs(program.q).max(initial=0.0), np.abs(Aty).max(initial=0.0))
        self.pull = pull
        self.slack = np.maximum(np.abs(z), norms * np.abs(x).max(initial=0.0))
        self.multiplier = pull / np.where(norms > 0, norms, 1.0)


def margins(
    program: Program, activity: Activity, scales: Scales, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Return how far each inequality is from becoming active or inactive; inf for equalities."""
    slack = np.minimum(z - program.l, program.u - z)
    active = activity.lower | activity.upper
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.where(active, np.abs(y) / scales.multiplier, slack / scales.slack)
    margin = np.where(np.isnan(margin), 0.0, margin)
    return np.where(program.l == program.u, np.inf, margin)
