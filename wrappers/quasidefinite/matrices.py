"""The numbers of P and A of one program, on the host.

    B = [ P  Aᵀ ]
        [ A  0  ]

B multiplies primal and dual unknowns at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError, Status

from .structure import Structure, pattern_of, structure_of

__all__ = ["ASYMMETRY", "Matrices"]

ASYMMETRY = 1e-9  # of the largest entry of P, that may be rounding
_DENSE = 100  # size up to which a dense B is multiplied faster than a sparse one
_ZERO = np.zeros(1)


class Matrices:
    """P and A.

    Args:
        P: `(n, n)` array or `CSR`: symmetric, or the upper triangle alone.
        A: `(m, n)` array or `CSR`.

    Attributes:
        structure: Where the numbers of P and A go.
        P: Those of the upper triangle of P, by columns: means of both halves, if both are given.
        A: Those of A, by rows.
    """

    def __init__(self, P: Any, A: Any):
        self.structure: Structure = structure_of(pattern_of(P), pattern_of(A))
        self._P_data = P.data if isinstance(P, CSR) else P.ravel()
        upper, mirror = self.structure.upper, self.structure.mirror
        self.P = self._P_data[upper]
        if mirror is not upper:
            self.P = 0.5 * self.P + 0.5 * self._P_data[mirror]
        self.A = A.data if isinstance(A, CSR) else A.ravel()

    def wrong(self, asymmetry: float = ASYMMETRY) -> tuple[Status, str] | None:
        """Return what makes the matrices unfit for a solver, if anything.

        Args:
            asymmetry: What of P may be rounding, relative to its largest entry.

        Raises:
            InputError: If P is not symmetric.
        """
        for name, array in (("P", self._P_data), ("A", self.A)):
            if not np.isfinite(array).all():
                return Status.NONFINITE_INPUT, f"{name} is not finite"
        halves = (self._P_data[s] for s in (self.structure.upper, self.structure.mirror))
        apart = np.abs(np.subtract(*halves)).max(initial=0.0)
        if apart > asymmetry * np.abs(self._P_data).max(initial=0.0):
            raise InputError(
                f"P is not symmetric: P and its transpose differ by up to {apart:.3g}; give "
                "both triangles, (P + P.T) / 2, or a sparse matrix of the upper one alone"
            )
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
        dense[s.K.rows, s.K.columns] = self.values
        return dense

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return B v."""
        return self._multiplied @ v

    @cached_property
    def _magnitudes(self) -> Any:
        if isinstance(self._multiplied, np.ndarray):
            return np.abs(self._multiplied)
        return self.structure.K.matrix(np.abs(self.values))

    def magnitude(self, v: np.ndarray) -> np.ndarray:
        """Return |B| v."""
        return self._magnitudes @ v

    @cached_property
    def norm(self) -> float:
        """‖B‖, Frobenius'."""
        return math.sqrt(self.values.dot(self.values))

    def cotangents(
        self, x: np.ndarray, y: np.ndarray, ℓ: np.ndarray, held: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the derivatives of `ℓᵀ (P x + Aᵀ y) + heldᵀ A x` in the values of P and A."""
        s = self.structure
        i, j = s.P_rows, s.P_columns
        P = np.empty(self._P_data.size)
        P[s.upper] = np.where(i == j, ℓ[i] * x[i], ℓ[i] * x[j] + ℓ[j] * x[i])
        if s.mirror is not s.upper:  # both triangles are given, and share it
            P[s.upper] = P[s.mirror] = np.where(i == j, 1.0, 0.5) * P[s.upper]
        return {"P": P, "A": y[s.A_rows] * ℓ[s.A_columns] + held[s.A_rows] * x[s.A_columns]}

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
        entries = np.abs(self.values[first:]) * weights[s.K.columns[first:]]
        return np.maximum.reduceat(entries, s.K.indptr[s.n : -1] - first)
