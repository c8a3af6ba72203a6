"""K solved with by MINRES, for cones too large to factor anything.

C. C. Paige and M. A. Saunders, "Solution of sparse indefinite systems of linear equations", SIAM J.
Numer. Anal. 12 (1975); D. C.-L. Fong and M. A. Saunders, "LSMR: an iterative algorithm for sparse
least-squares problems", SIAM J. Sci. Comput. 33 (2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.registry import require

from ..quasidefinite.refined import CONSISTENT
from .program import Program
from .projection import Projection
from .square_root import SquareRoot

__all__ = ["Iterative"]

_TOLERANCE = 1e-8  # of one pass; refinement goes on from there
_LIMIT = 5000  # of iterations in one pass


class Iterative(SquareRoot):
    """K of one program and one projection.

    Args:
        program: The program.
        projection: The projection.

    Attributes:
        iterations: How many the last solve took.
        stop: Why it ended: 0 as `‖K v − r‖` is small, 1 at the limit of MINRES, and 2 if LSMR
            had to take over, which solves what has no solution as well as can be.
    """

    suspicious = True
    convex = False  # MINRES does not tell

    def __init__(self, program: Program, projection: Projection):
        super().__init__(program, projection)
        self.iterations, self.stop = 0, 0

    @staticmethod
    def size_of(program: Program) -> int:
        """Return the bytes that are kept."""
        return 8 * (program.c.size + program.b.size)

    @property
    def stats(self) -> dict[str, float]:
        """Numbers for records."""
        return {"iterations": self.iterations, "stop": self.stop}

    def solve(self, r, *, enough=0.0):
        """Solve K v = r."""
        self.iterations, self.stop = 0, 0
        found = self.refined(self._minres, r, enough=enough)
        if found.left > CONSISTENT:
            self.stop = 2
            found = self.refined(self._lsmr, r, found.v)
        return found.v, found.left

    def _count(self, _: Any) -> None:
        self.iterations += 1

    def _minres(self, r: np.ndarray) -> np.ndarray:
        minres = require("scipy.sparse.linalg").minres
        options = {"rtol": _TOLERANCE, "maxiter": _LIMIT, "callback": self._count}
        v, info = minres(self.linear_operator, r, **options)
        self.stop = max(self.stop, int(info != 0))
        return v

    def _lsmr(self, r: np.ndarray) -> np.ndarray:
        lsmr = require("scipy.sparse.linalg").lsmr
        options = {"atol": _TOLERANCE, "btol": _TOLERANCE, "conlim": 0.0, "maxiter": _LIMIT}
        v, _, iterations, *_ = lsmr(self.linear_operator, r, **options)
        self.iterations += iterations
        return v
