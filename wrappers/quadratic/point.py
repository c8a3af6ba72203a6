"""A point (x, y) of a quadratic program, and what follows from it.

    z = A x        lower:  z − l ≤ −σ y        upper:  u − z ≤ σ y        inactive: neither
    F = (P x + q + Aᵀ y,  z − l where lower, z − u where upper, −y where inactive)

    σ = a² ‖x‖ / max(‖q‖, ‖a y‖), a the row norms of A, all by largest entries

F is the declared residual, `residuals.quadratic_program`, in NumPy. With its σ, σ y follows A x
whatever the rows of A are multiplied by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.verdict import EPS

from .program import UNBOUNDED, Program

__all__ = ["Activity", "Point"]

_NOTHING = 1e-14  # what is left of zeros
_FLOOR = 1e-6  # share of the largest term that all count for


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
        # An equality is held whatever its y, whose sign says by which of its two bounds.
        equality = self.program.equality
        lower = np.where(equality, self.y <= 0, self.z - self.program.l <= -t)
        return Activity(lower, (equality | (self.program.u - self.z <= t)) & ~lower)

    @property
    def F(self) -> np.ndarray:
        """The residual of the optimality conditions."""
        lower, upper = self.activity.lower, self.activity.upper
        held = np.where(lower, self.z - self.program.l, -self.y)
        held[upper] = (self.z - self.program.u)[upper]
        return np.concatenate([self.stationarity, held])

    # What slacks, multipliers and stationarity are judged by: the terms that should balance, added
    # up without their signs, so that it does not matter in which units rows and columns are. Next
    # to the others' terms, those below a millionth count as rounding. Bounds of other rows are no
    # such terms: one may be large that nothing is near.

    @cached_property
    def _magnitudes(self) -> tuple[np.ndarray, np.ndarray]:
        """|P| |x| + |A|ᵀ |y| + |q| and |A| |x|."""
        n = self.x.size
        terms = self.program.magnitude(np.abs(np.concatenate([self.x, self.y])))
        return terms[:n] + np.abs(self.program.q), terms[n:]

    @cached_property
    def _bound(self) -> np.ndarray:
        """The size of the bound that is nearer, if there is one."""
        l, u, z = self.program.l, self.program.u, self.z
        bound = np.abs(np.where(z - l < u - z, l, u))
        return np.where(bound < UNBOUNDED, bound, 0.0)

    @cached_property
    def pull(self) -> np.ndarray:
        """The size of stationarity, `(n,)`."""
        pull = self._magnitudes[0]
        return np.maximum(pull, _FLOOR * _largest(pull) or 1.0)

    @cached_property
    def slack_scale(self) -> np.ndarray:
        """The size of slacks, `(m,)`: of A x and the bound that is nearer."""
        terms = self._magnitudes[1]
        scale = np.maximum(terms, self._bound)
        # Rows of A as if the largest entry of each were one.
        rows = self.program.row_norms
        length = float((terms / np.where(rows > 0, rows, 1.0)).max(initial=0.0))
        # At x = 0 there may be no length but those of the program.
        if length <= _NOTHING * self.program.length:
            length = self.program.length
        scale = np.maximum(scale, _FLOOR * length * rows)
        return np.where(scale > 0, scale, 1.0)

    @property
    def rounding(self) -> tuple[np.ndarray, np.ndarray]:
        """How far stationarity, and slacks, may be rounded."""
        pull, slack = self._magnitudes
        return EPS * pull, EPS * (slack + self._bound)

    @cached_property
    def influence(self) -> np.ndarray:
        """The largest part of stationarity that a multiplier of one makes up, `(m,)`."""
        return self.program.row_norms_beside(self.pull)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
