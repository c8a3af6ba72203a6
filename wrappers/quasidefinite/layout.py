"""Where the entries of a symmetric matrix K are: by rows for products, and by its upper triangle.

Everything here depends on the pattern of K only, and is found once for each.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.registry import require

__all__ = ["Layout"]


class Layout:
    """The pattern of a symmetric K with its whole diagonal; hashed by identity.

    Args:
        rows: Row of each entry, both triangles, in any order.
        columns: Column of each.
        positive: `(size,) bool`, which unknowns belong to the positive part, E.
        n: How many unknowns P, the first block of K, has.

    Attributes:
        order: Brings what was given in the order of rows and columns into that by rows.
        indices, indptr: K by rows.
        rows, columns: Row and column of each entry.
        diagonal: Which entries are on the diagonal.
        upper: Which entries make the upper triangle, by columns.
        upper_indices, upper_indptr: That triangle by columns.
        upper_rows, upper_columns: Row and column of each of its entries.
        upper_diagonal: Which of its entries are on the diagonal.
        signs: 1 where an unknown belongs to E, −1 elsewhere.
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray, positive: np.ndarray, n: int):
        self.size = positive.size
        self.signs = np.where(positive, 1.0, -1.0)
        self.order = np.lexsort((columns, rows))
        # NumPy looks entries up by such integers three times as fast as by those of the libraries.
        rows, columns = (a[self.order].astype(np.intp) for a in (rows, columns))
        ends = np.arange(self.size + 1)
        self.rows, self.columns, self.indices = rows, columns, columns.astype(np.int32)
        self.indptr = np.searchsorted(rows, ends).astype(np.int32)
        self.diagonal = np.flatnonzero(columns == rows)
        # By symmetry column j of the upper triangle is row j of the lower one.
        self.upper = np.flatnonzero(columns <= rows)
        self.upper_indices = self.indices[self.upper]
        self.upper_rows, self.upper_columns = columns[self.upper], rows[self.upper]
        self.upper_indptr = np.searchsorted(self.upper_columns, ends).astype(np.int32)
        self.upper_diagonal = self.upper_indptr[1:] - 1
        self._in_P = np.flatnonzero((rows < n) & (columns < n))

    @property
    def nbytes(self) -> int:
        """Bytes of a factor, as far as they are known."""
        # A double and a 32-bit index for each entry: of K, and of L with as much again filled in.
        return 12 * 3 * self.indices.size

    @cached_property
    def _K(self) -> Any:
        arrays = np.zeros(self.indices.size), self.indices, self.indptr
        return require("scipy.sparse").csr_array(arrays, shape=(self.size, self.size))

    def matrix(self, values: np.ndarray) -> Any:
        """Return K with these values, of SciPy."""
        matrix = copy.copy(self._K)  # SciPy's checks take ten times as long
        matrix.data = values
        return matrix

    def equilibration(self, values: np.ndarray) -> np.ndarray:
        """Return e such that in `diag(e) K diag(e)` the largest entry of each row, and of P, is 1.

        As far as can be: to multiply the objective by a number should change nothing but e.

        D. Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", RAL
        technical report RAL-TR-2001-034; for P, sec. 5.1 of "OSQP: an operator splitting solver for
        quadratic programs", B. Stellato et al., Mathematical Programming Computation 12 (2020).
        """
        values, start = np.abs(values), self.indptr[:-1]
        largest = np.maximum.reduceat(values, start)
        e = 1.0 / np.sqrt(np.where(largest > 0, largest, 1.0))
        for k in range(3):
            largest = np.maximum.reduceat(values * e[self.columns], start) * e
            e /= np.sqrt(np.where(largest > 0, largest, 1.0))
            if k == 0:
                P = self._in_P
                size = (values[P] * e[self.rows[P]] * e[self.columns[P]]).max(initial=0.0)
                if size > 0:
                    e *= size ** (-0.5 * self.signs)
        return e
