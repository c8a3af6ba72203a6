"""Whether P is positive semidefinite, and a program so convex, for libraries that do not ask.

    P + δ diag(r) = L D Lᵀ,  r[i] the largest entry of row i        D > 0 if P is semidefinite

By default δ is what OSQP lets pass for rounding: σ, added to a P with rows of the size of one.
"""

from __future__ import annotations

import functools

import numpy as np

from backsolve.adjoint.pool import Pool, Workspace

from ..qdldl import LDL
from .matrices import Matrices
from .structure import Structure

__all__ = ["is_convex"]

_ROUNDING = 1e-6  # δ
_EPS = 1e-14  # of the largest entry of P: a row may consist of nothing but rounding


class _Factor(Workspace):
    """QDLDL's factor of P, whose upper triangle is the first columns of that of K."""

    def __init__(self, structure: Structure):
        super().__init__()
        s = structure
        count = s.K.upper_indptr[s.n]
        # A diagonal entry that P lacks is a zero behind the others.
        self.source = np.minimum(s.K_source[s.K.upper[:count]], s.P_indices.size)
        self.rows, self.columns = s.K.upper_rows[:count], s.K.upper_columns[:count]
        self.diagonal = s.K.upper_diagonal[: s.n]
        self.ldl = LDL(s.K.upper_indices[:count], s.K.upper_indptr[: s.n + 1])


@functools.lru_cache(maxsize=64)
def _pool(structure: Structure) -> Pool[_Factor]:
    return Pool(lambda: _Factor(structure))


def is_convex(matrices: Matrices, rounding: float = _ROUNDING) -> bool:
    """Tell whether P is positive semidefinite, but for a relative rounding of its rows."""
    largest = np.abs(matrices.P).max(initial=0.0)
    if largest == 0:
        return True
    factor = _pool(matrices.structure).acquire(matrices)
    with factor.lock:
        values = np.append(matrices.P, 0.0)[factor.source]
        r = np.zeros(matrices.structure.n)
        np.maximum.at(r, factor.rows, np.abs(values))
        np.maximum.at(r, factor.columns, np.abs(values))
        values[factor.diagonal] += rounding * r + _EPS * largest
        D = factor.ldl.factor(values)
    return D is not None and bool((D > 0).all())
