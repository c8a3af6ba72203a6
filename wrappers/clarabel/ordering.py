"""The rows of cone programs: in Clarabel's order, and in SCS's, which the others of the floor take.

Clarabel has cones in any order, and packs symmetric matrices by columns of the upper triangle; SCS
has the kinds of cones in a fixed order, and packs by columns of the lower one. Both multiply what
is off the diagonal by √2.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import InputError
from backsolve.residuals.conic import Cone

from ..conic.program import Program
from ..quasidefinite.structure import Structure

__all__ = ["Ordering", "as_cone", "native_cones", "ordering_of", "rows_of_matrix"]

_KINDS = {  # what `Cone` calls them, in SCS's order
    "ZeroConeT": "z",
    "NonnegativeConeT": "l",
    "SecondOrderConeT": "q",
    "PSDTriangleConeT": "s",
    "ExponentialConeT": "ep",
    "PowerConeT": "p",
}


def _upper(k: int) -> np.ndarray:
    """Return which of SCS's packed entries each of Clarabel's is, of a matrix of order k."""
    column, row = np.triu_indices(k)  # the lower triangle by columns
    place = np.zeros((k, k), int)
    place[row, column] = np.arange(row.size)
    return place[np.tril_indices(k)]  # the upper triangle by columns is the lower one by rows


def native_cones(cone: Cone) -> list[Any]:
    """Return Clarabel's cones, in SCS's order."""
    c = require("clarabel")
    return [
        c.ZeroConeT(cone.z),
        c.NonnegativeConeT(cone.l),
        *map(c.SecondOrderConeT, cone.q),
        *map(c.PSDTriangleConeT, cone.s),
        *(c.ExponentialConeT() for _ in range(cone.ep)),
        *map(c.PowerConeT, cone.p),
    ]


class Ordering:
    """Rows with symmetric matrices packed as Clarabel has them, the cones in SCS's order.

    Args:
        structure: Of the program.
        cone: K.

    Attributes:
        rows: SCS's row that each of Clarabel's is.
    """

    def __init__(self, structure: Structure, cone: Cone):
        self.rows = np.arange(cone.size)
        start = cone.z + cone.l + sum(cone.q)
        for k in cone.s:
            order = _upper(k)
            self.rows[start : start + order.size] = start + order
            start += order.size
        # The matrix whose entries are the places that their numbers come from.
        self._matrix = structure.A_csc(np.arange(structure.A_rows.size))[self.rows].tocsc()
        self._matrix.sort_indices()
        self._source = self._matrix.data

    def A(self, program: Program) -> Any:
        """Return the matrix, of SciPy."""
        matrix = copy.copy(self._matrix)
        matrix.data = program.A[self._source]
        return matrix

    def b(self, program: Program) -> np.ndarray:
        """Return the right-hand side."""
        return program.b[self.rows]

    def back(self, v: Any) -> np.ndarray:
        """Return a vector in SCS's order for one in Clarabel's."""
        found = np.empty(self.rows.size)
        found[self.rows] = v
        return found


@functools.lru_cache(maxsize=64)
def ordering_of(structure: Structure, cone: Cone) -> Ordering:
    """Return the rows of programs with this pattern and cone, made once."""
    return Ordering(structure, cone)


def as_cone(cones: Iterable[Any]) -> tuple[Cone, np.ndarray]:
    """Return a cone for a list of Clarabel's, and which of Clarabel's rows each row of it is.

    Raises:
        InputError: If one of them is none, or not supported.
    """
    try:
        given = list(cones)
    except TypeError:
        raise InputError(
            f"cones must be a list of Clarabel's cones, found {type(cones).__name__}"
        ) from None
    sizes: dict[str, Any] = {name: [] for name in _KINDS.values()}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in _KINDS.values()}
    start = 0
    for each in given:
        kind = _KINDS.get(type(each).__name__)
        if kind is None:
            raise InputError(f"cones holds {each!r}, but what is supported is {', '.join(_KINDS)}")
        size, order = _size_and_order(each, kind)
        sizes[kind].append(size)
        rows[kind].append(start + order)
        start += order.size
    for counted in ("z", "l", "ep"):
        sizes[counted] = sum(sizes[counted])
    parts = [part for kind in rows.values() for part in kind]
    return Cone(**sizes), np.concatenate([np.zeros(0, int), *parts])


def _size_and_order(cone: Any, kind: str) -> tuple[Any, np.ndarray]:
    """Return how `Cone` counts one of Clarabel's cones, and its rows in SCS's order."""
    if kind == "ep":
        return 1, np.arange(3)
    if kind == "p":
        return _exponent(cone.α), np.arange(3)
    return cone.dim, np.argsort(_upper(cone.dim)) if kind == "s" else np.arange(cone.dim)


def _exponent(α: float) -> float:
    if not 0 < α < 1:
        raise InputError(f"the α of PowerConeT must lie in (0, 1), found {α}")
    return α


@functools.lru_cache(maxsize=64)
def _rows_of_pattern(pattern: Pattern, rows: bytes) -> tuple[Pattern, np.ndarray]:
    chosen = np.frombuffer(rows, np.int64)
    starts, counts = pattern.indptr[chosen], np.diff(pattern.indptr)[chosen]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    order = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
    return Pattern.of(pattern.indices[order], indptr, pattern.shape), order


def rows_of_matrix(matrix: Any, rows: np.ndarray) -> Any:
    """Return the rows of an array or `CSR` in another order."""
    if not isinstance(matrix, CSR):
        return matrix[rows]
    pattern, order = _rows_of_pattern(matrix.pattern, rows.tobytes())
    return CSR.of(matrix.data[order], pattern)
