"""One quadratic program's numbers, on the host.

    minimise ½ xᵀP x + qᵀx  subject to  l ≤ A x ≤ u        B = [ P  Aᵀ ]
                                                               [ A  0  ]

B multiplies x and y at once.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError, Status

from .structure import Structure, pattern_of, structure_of

__all__ = ["Program"]

_SYMMETRIC = 1e-9  # of the largest entry of P
_DENSE = 100  # size up to which a dense B is multiplied faster than a sparse one
_UNBOUNDED = 1e15
_ZERO = np.zeros(1)


class Program:
    """The numbers of one program.

    Args:
        P: `(n, n)` array or `CSR`: symmetric, or the upper triangle alone.
        q: `(n,)`.
        A: `(m, n)` array or `CSR`.
        l: `(m,)`.
        u: `(m,)`.

    Attributes:
        structure: Where the numbers of P and A go.
        P: Those of the upper triangle of P, by columns.
        A: Those of A, by rows.
    """

    def __init__(self, P: Any, q: np.ndarray, A: Any, l: np.ndarray, u: np.ndarray):
        self.structure: Structure = structure_of(pattern_of(P), pattern_of(A))
        self._P_data = P.data if isinstance(P, CSR) else P.ravel()
        self.P = self._P_data[self.structure.upper]
        self.A = A.data if isinstance(A, CSR) else A.ravel()
        self.q, self.l, self.u = q, l, u

    def wrong(self) -> tuple[Status, str] | None:
        """Return what makes the program unfit for a solver, if anything.

        Raises:
            InputError: If P is not symmetric.
        """
        for name, array in (("P", self._P_data), ("q", self.q), ("A", self.A)):
            if not np.isfinite(array).all():
                return Status.NONFINITE_INPUT, f"{name} is not finite"
        for name, array in (("l", self.l), ("u", self.u)):
            if np.isnan(array).any():
                return Status.NONFINITE_INPUT, f"{name} is NaN"
        mirror = self._P_data[self.structure.mirror]
        asymmetry = np.abs(self.P - mirror).max(initial=0.0)
        if asymmetry > _SYMMETRIC * np.abs(self.P).max(initial=0.0):
            raise InputError(
                f"P is not symmetric: P and its transpose differ by up to {asymmetry:.3g}; give "
                "both triangles, (P + P.T) / 2, or a sparse matrix of the upper one alone"
            )
        crossed = (self.l > self.u) | (self.l == np.inf) | (self.u == -np.inf)
        if crossed.any():
            i = int(np.argmax(crossed))
            return Status.INFEASIBLE, f"l[{i}]={self.l[i]:.6g} and u[{i}]={self.u[i]:.6g}"
        return None

    @cached_property
    def values(self) -> np.ndarray:
        """The entries of B, on the pattern of K."""
        return np.concatenate([self.P, self.A, _ZERO])[self.structure.K_source]

    @property
    def B(self) -> Any:
        """B, of SciPy."""
        return self.structure.K.matrix(self.values)

    @cached_property
    def _multiplied(self) -> Any:
        s = self.structure
        size = s.n + s.m
        if size > _DENSE:
            return self.B
        dense = np.zeros((size, size))
        dense[s.K.rows, s.K.indices] = self.values
        return dense

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return B v."""
        return self._multiplied @ v

    @cached_property
    def _magnitudes(self) -> Any:
        return abs(self._multiplied)

    def magnitude(self, v: np.ndarray) -> np.ndarray:
        """Return |B| v."""
        return self._magnitudes @ v

    @cached_property
    def norm(self) -> float:
        """‖B‖, Frobenius'."""
        return math.sqrt(self.values.dot(self.values))

    @cached_property
    def equality(self) -> np.ndarray:
        """Which constraints are equalities, `(m,) bool`."""
        return self.l == self.u

    @cached_property
    def largest_bound(self) -> float:
        """The largest |l| or |u|, but for what stands for no bound."""
        bounds = np.abs(np.concatenate([self.l, self.u]))
        return float(bounds[bounds < _UNBOUNDED].max(initial=0.0))

    @cached_property
    def row_norms(self) -> np.ndarray:
        """The largest |A[i, j]| of each row."""
        return self.row_norms_beside(np.ones(self.structure.n))

    def row_norms_beside(self, size: np.ndarray) -> np.ndarray:
        """Return the largest |A[i, j]| / size[j] of each row."""
        s = self.structure
        if not s.m:
            return np.zeros(0)
        first = s.K.indptr[s.n]  # K's lower rows: those of A, and a zero on the diagonal
        weights = np.concatenate([1.0 / size, np.zeros(s.m)])
        entries = np.abs(self.values[first:]) * weights[s.K.indices[first:]]
        return np.maximum.reduceat(entries, s.K.indptr[s.n : -1] - first)
