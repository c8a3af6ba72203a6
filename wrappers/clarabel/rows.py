"""Constraints as Clarabel has them: `A x + s = b`, each slack s zero, or not negative.

l = u gives the row `A x + s = u`, s = 0; otherwise each bound gives a row with s ≥ 0: `A x + s = u`
or `−A x + s = −l`. A multiplier y is the sum of those of its rows, each with the row's sign.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require

from ..quadratic.program import UNBOUNDED, Program
from ..quasidefinite.structure import Structure

__all__ = ["Rows", "rows_of"]

_LOWER, _UPPER, _EQUAL = 1, 2, 4


class Rows:
    """Clarabel's rows: the constraint that each is of, and its sign.

    Args:
        structure: Of the program.
        kinds: Which bounds each constraint has: one byte for each.

    Attributes:
        of: The constraint that each row is of; the equalities come first.
        signs: 1 or −1 for each.
    """

    def __init__(self, structure: Structure, kinds: bytes):
        kind = np.frombuffer(kinds, np.uint8)
        equal, upper, lower = (np.flatnonzero(kind & bit) for bit in (_EQUAL, _UPPER, _LOWER))
        self._m, self._sizes = kind.size, (equal.size, upper.size + lower.size)
        self.of = np.concatenate([equal, upper, lower])
        self.signs = np.repeat([1.0, -1.0], [equal.size + upper.size, lower.size])
        # The matrix whose entries are the places that their numbers come from.
        self._matrix = structure.A_csc(np.arange(structure.A_rows.size))[self.of].tocsc()
        self._matrix.sort_indices()
        self._source = self._matrix.data
        self._entry_signs = self.signs[self._matrix.indices]

    def A(self, program: Program) -> Any:
        """Return the matrix, of SciPy."""
        matrix = copy.copy(self._matrix)
        matrix.data = program.A[self._source] * self._entry_signs
        return matrix

    def b(self, program: Program) -> np.ndarray:
        """Return the right-hand side."""
        return np.where(self.signs > 0, program.u[self.of], -program.l[self.of])

    def cones(self) -> list[Any]:
        """Return what the slacks must be."""
        clarabel = require("clarabel")
        equal, unequal = self._sizes
        return [clarabel.ZeroConeT(equal), clarabel.NonnegativeConeT(unequal)]

    def y(self, z: Any) -> np.ndarray:
        """Return the multipliers of the constraints for those of the rows."""
        return np.bincount(self.of, self.signs * z, minlength=self._m)


@functools.lru_cache(maxsize=64)
def _rows(structure: Structure, kinds: bytes) -> Rows:
    return Rows(structure, kinds)


def rows_of(program: Program) -> Rows:
    """Return the rows of a program, made once for all with the same kinds of bounds."""
    l, u = program.l, program.u
    kinds = np.where(l == u, _EQUAL, _LOWER * (l > -UNBOUNDED) + _UPPER * (u < UNBOUNDED))
    return _rows(program.structure, kinds.astype(np.uint8).tobytes())
