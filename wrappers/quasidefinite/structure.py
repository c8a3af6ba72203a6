"""Where the numbers of P and A go: into the matrices of the libraries, and into the KKT matrix.

    K = [ P     AᵀS ]        S² + D = I, both diagonal
        [ SA    −D  ]

Everything here depends on the patterns of P and A only, and is found once for each pair.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import InputError

from .layout import Layout

__all__ = ["Structure", "is_triangle", "pattern_of", "structure_of"]


@functools.lru_cache(maxsize=64)
def _full(m: int, n: int) -> Pattern:
    return Pattern.of(np.tile(np.arange(n), m), n * np.arange(m + 1), (m, n))


def pattern_of(matrix: Any) -> Pattern:
    """Return the pattern of a `CSR` or of a dense matrix."""
    return matrix.pattern if isinstance(matrix, CSR) else _full(*matrix.shape)


@functools.lru_cache(maxsize=256)
def is_triangle(pattern: Pattern) -> bool:
    """Tell whether P is given by its upper triangle, as OSQP takes it.

    Raises:
        InputError: If it is neither that nor a symmetric pattern.
    """
    rows, columns = pattern.rows, pattern.indices
    if not (columns < rows).any():
        return True
    transposed, _ = pattern.transposition
    if transposed is not pattern:
        raise InputError("P has an asymmetric pattern: give both triangles, or the upper one alone")
    return False


class Structure:
    """Index maps for one pair of patterns; hashed by identity.

    Attributes:
        n: Number of unknowns.
        m: Number of constraints.
        upper: Where in P's data the entries of its upper triangle are, by columns.
        mirror: Where their mirror images are.
        P_indices, P_indptr: The upper triangle of P by columns.
        P_rows, P_columns: Row and column of each of its entries.
        A_order: Where in A's data its entries are, by columns.
        A_indices, A_indptr: A by columns.
        A_rows, A_columns: Row and column of each entry of A, by rows.
        K: The pattern of K.
        K_source: Which of `(upper triangle of P, A, 0)` each entry of K is.
    """

    def __init__(self, P: Pattern, A: Pattern):
        self.m, self.n = A.shape
        n, m = self.n, self.m
        self._upper_triangle_of(P)
        A_csc, A_order = A.transposition
        self.A_indices, self.A_indptr = A_csc.indices, A_csc.indptr
        self.A_order, self.A_rows, self.A_columns = map(_places, (A_order, A.rows, A.indices))
        # K as coordinates, each with the place that its number comes from.
        i, j = self.P_rows, self.P_columns
        off, a = i != j, n + A.rows
        from_P = np.arange(i.size)
        from_A = i.size + np.arange(A.nnz)
        zero = i.size + A.nnz
        bare = np.setdiff1d(np.arange(n), i[~off])  # diagonal entries that P lacks
        rows = [i, j[off], bare, a, A.indices, n + np.arange(m)]
        columns = [j, i[off], bare, A.indices, a, n + np.arange(m)]
        source = [from_P, from_P[off], np.full(bare.size, zero), from_A, from_A]
        source.append(np.full(m, zero))
        rows, columns, source = map(np.concatenate, (rows, columns, source))
        self.K = Layout(rows, columns, np.arange(n + m) < n, n)
        self.K_source = source[self.K.order]

    def _upper_triangle_of(self, P: Pattern) -> None:
        transposed, order = P.transposition
        rows, columns = transposed.indices, transposed.rows  # of P's entries, by columns
        keep = rows <= columns
        self.upper = _places(order[keep])
        # A symmetric pattern is its own transpose: entry k by rows mirrors entry k by columns.
        self.mirror = self.upper if is_triangle(P) else np.flatnonzero(keep)
        self.P_indices = rows[keep]
        self.P_rows, self.P_columns = map(_places, (rows[keep], columns[keep]))
        counts = np.bincount(columns[keep], minlength=self.n)
        self.P_indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def P_csc(self, upper: np.ndarray) -> Any:
        """Return the upper triangle of P, of SciPy."""
        arrays = upper, self.P_indices, self.P_indptr
        return require("scipy.sparse").csc_matrix(arrays, shape=(self.n, self.n))

    def A_csc(self, data: np.ndarray) -> Any:
        """Return A by columns, of SciPy."""
        arrays = data[self.A_order], self.A_indices, self.A_indptr
        return require("scipy.sparse").csc_matrix(arrays, shape=(self.m, self.n))


def _places(indices: np.ndarray) -> np.ndarray:
    """Return indices as NumPy looks entries up by fastest."""
    return indices.astype(np.intp)


@functools.lru_cache(maxsize=64)
def structure_of(P: Pattern, A: Pattern) -> Structure:
    """Return the structure of problems with these patterns, made once."""
    return Structure(P, A)
