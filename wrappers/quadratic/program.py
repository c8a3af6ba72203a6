"""One quadratic program's numbers, on the host.

    minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u

P and A are what all convex programs have, see `Matrices`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.status import Status

from ..quasidefinite.matrices import ASYMMETRY, Matrices

__all__ = ["UNBOUNDED", "Program"]

UNBOUNDED = 1e15  # a bound that is larger stands for none


class Program(Matrices):
    """The numbers of one program.

    Args:
        P: `(n, n)` array or `CSR`: symmetric, or the upper triangle alone.
        q: `(n,)`.
        A: `(m, n)` array or `CSR`.
        l: `(m,)`.
        u: `(m,)`.
    """

    def __init__(self, P: Any, q: np.ndarray, A: Any, l: np.ndarray, u: np.ndarray):
        super().__init__(P, A)
        self.q, self.l, self.u = q, l, u

    def wrong(self, asymmetry: float = ASYMMETRY) -> tuple[Status, str] | None:
        """Return what makes the program unfit for a solver, if anything.

        Args:
            asymmetry: What of P may be rounding, relative to its largest entry.

        Raises:
            InputError: If P is not symmetric.
        """
        found = super().wrong(asymmetry)
        if found is not None:
            return found
        if not np.isfinite(self.q).all():
            return Status.NONFINITE_INPUT, "q is not finite"
        for name, array in (("l", self.l), ("u", self.u)):
            if np.isnan(array).any():
                return Status.NONFINITE_INPUT, f"{name} is NaN"
        crossed = (self.l > self.u) | (self.l == np.inf) | (self.u == -np.inf)
        if crossed.any():
            i = int(np.argmax(crossed))
            return Status.INFEASIBLE, f"l[{i}]={self.l[i]:.6g} and u[{i}]={self.u[i]:.6g}"
        return None

    @cached_property
    def equality(self) -> np.ndarray:
        """Which constraints are equalities, `(m,) bool`."""
        return self.l == self.u

    @cached_property
    def length(self) -> float:
        """What x is judged by where it is zero: the smallest bound, or max |q| / max |P|."""
        bounds, rows = np.abs([self.l, self.u]), self.row_norms
        given = (bounds > 0) & (bounds < UNBOUNDED) & (rows > 0)
        found = (bounds / np.where(rows > 0, rows, 1.0))[given].min(initial=np.inf)
        P, q = (float(np.abs(a).max(initial=0.0)) for a in (self.P, self.q))
        if P > 0 and q > 0:
            found = min(found, q / P)
        return float(found) if np.isfinite(found) else 1.0
