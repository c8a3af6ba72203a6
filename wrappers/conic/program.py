"""One cone program's numbers, on the host.

    minimise ½ xᵀP x + cᵀx  subject to  A x + s = b,  s in K

P and A are what all convex programs have, see `Matrices`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import Status
from backsolve.residuals.conic import Cone

from ..quasidefinite.matrices import ASYMMETRY, Matrices
from .blocks import blocks_of

__all__ = ["Program"]


class Program(Matrices):
    """The numbers of one program.

    Args:
        P: `(n, n)` array or `CSR`: symmetric, or the upper triangle alone; None for none.
        c: `(n,)`.
        A: `(m, n)` array or `CSR`.
        b: `(m,)`.
        cone: K.
    """

    def __init__(self, P: Any, c: np.ndarray, A: Any, b: np.ndarray, cone: Cone):
        n = c.size
        if P is None:
            P = CSR(np.zeros(0), np.zeros(0, np.int32), np.zeros(n + 1, np.int32), (n, n))
        super().__init__(P, A)
        self.c, self.b, self.cone, self.blocks = c, b, cone, blocks_of(cone)

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
        # SCS calls it c, Clarabel q.
        for name, array in (("b", self.b), ("the linear part of the objective", self.c)):
            if not np.isfinite(array).all():
                return Status.NONFINITE_INPUT, f"{name} is not finite"
        return None
