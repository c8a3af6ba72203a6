"""A point (x, y) of a quadratic program, and what follows from it.

    z = A x        lower:  z − l ≤ −σ y        upper:  u − z ≤ σ y        inactive: neither
    F = (P x + q + Aᵀ y,  z − l where lower, z − u where upper, −y where inactive)

    σ = a² ‖x‖ / max(‖q‖, ‖a y‖), a the row norms of A, all by largest entries

F is the declared residual, `residuals.quadratic_program`, in NumPy. With its σ, σ y follows A x
whatever the rows of A are multiplied by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .program import Program

__all__ = ["Activity", "Point"]


@dataclass(frozen=True)
class Activity:
    """The constraints that are active, `(m,) bool` each."""

    lower: np.ndarray
    upper: np.ndarray

    @cached_property
    def inactive(self) -> np.ndarray:
        """Those that are not, as numbers: the D of the KKT matrix."""
        return 1.0 - (self.lower | self.upper)

    @property
    def key(self) -> bytes:
        """What tells two of them apart."""
        return self.lower.tobytes() + self.upper.tobytes()


class Point:
    """A point of a program.

    Args:
        program: The program.
        x: `(n,)`.
        y: Multipliers, `(m,)`.

    Attributes:
        stationarity: P x + q + Aᵀ y.
        z: A x.
    """

    def __init__(self, program: Program, x: np.ndarray, y: np.ndarray):
        self.program, self.x, self.y = program, x, y
        product = program.product(np.concatenate([x, y]))
        self.stationarity, self.z = product[: x.size] + program.q, product[x.size :]

    @cached_property
    def activity(self) -> Activity:
        """Which constraints the projection of z + σ y holds."""
        rows = self.program.row_norms
        length = _largest(self.x) or 1.0
        pull = max(_largest(self.program.q), _largest(rows * self.y)) or 1.0
        t = rows**2 * (length / pull) * self.y
        lower = self.z - self.program.l <= -t
        return Activity(lower, (self.program.u - self.z <= t) & ~lower)

    @property
    def F(self) -> np.ndarray:
        """The residual of the optimality conditions."""
        lower, upper = self.activity.lower, self.activity.upper
        held = np.where(lower, self.z - self.program.l, -self.y)
        held[upper] = (self.z - self.program.u)[upper]
        return np.concatenate([self.stationarity, held])

    # What slacks, multipliers and stationarity are judged by: the terms that should balance. A
    # slack is small beside A x and the bounds, a multiplier where it pulls less than q and the
    # others do. At x = 0 the length is that of a Newton step.

    @cached_property
    def pull(self) -> float:
        """Of stationarity."""
        program = self.program
        others = _largest(program.row_norms * self.y)
        curved = _largest(program.P) * _largest(self.x)
        return max(_largest(program.q), others, curved) or 1.0

    @cached_property
    def slack_scale(self) -> np.ndarray:
        """Of slacks, `(m,)`."""
        program = self.program
        curvature, length = _largest(program.P), _largest(self.x)
        if curvature > 0:
            length = max(length, min(self.pull / curvature, 1.0))
        scale = np.maximum(np.abs(self.z), program.row_norms * length)
        scale = np.maximum(scale, program.bound_size)
        return scale if (scale > 0).all() else np.where(scale > 0, scale, _largest(scale) or 1.0)

    @cached_property
    def multiplier_scale(self) -> np.ndarray:
        """Of multipliers, `(m,)`."""
        rows = self.program.row_norms
        return self.pull / np.where(rows > 0, rows, 1.0)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
