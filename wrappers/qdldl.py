"""QDLDL: `L D Lᵀ` of sparse symmetric quasidefinite matrices on a fixed pattern.

It is the factorisation inside OSQP and SCS. Quirks: it does not pivot, so the signs of D are the
caller's business; a zero pivot is a RuntimeError the first time, and later on is to be seen in D
only. It holds Python's lock.

"QDLDL: a free LDL factorisation routine for quasi-definite linear systems", P. Goulart et al.,
https://github.com/osqp/qdldl; quasidefinite: R. J. Vanderbei, SIAM J. Optim. 5 (1995).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backsolve.adjoint.registry import require

__all__ = ["LDL"]


class LDL:
    """A factor whose values are replaced in place; its order of elimination is found once.

    Args:
        indices: Row of each entry of the upper triangle, by columns, the diagonal included.
        indptr: First entry of each column.
    """

    def __init__(self, indices: np.ndarray, indptr: np.ndarray):
        n = indptr.size - 1
        arrays = np.zeros(indices.size), indices, indptr
        self._matrix = require("scipy.sparse").csc_matrix(arrays, shape=(n, n))
        self._solver: Any = None

    def factor(self, values: np.ndarray) -> np.ndarray | None:
        """Factor the matrix with these values of its upper triangle.

        Returns:
            D, in the order of elimination; None if there is no factor.
        """
        self._matrix.data[:] = values
        try:
            if self._solver is None:
                self._solver = require("qdldl").Solver(self._matrix, upper=True)
            else:
                self._solver.update(self._matrix, upper=True)
        except RuntimeError:
            return None
        D = self._solver.factors()[1]
        return D if np.isfinite(D).all() and D.all() else None

    def solve(self, rhs: np.ndarray) -> np.ndarray:
        """Return K⁻¹ rhs for a vector."""
        return self._solver.solve(rhs)
