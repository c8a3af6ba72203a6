"""K factored and solved with.

QDLDL factors the equilibrated `e K e + δ diag(signs)`; solutions are refined on K itself. Where
that fails, SuperLU takes `e K e`.

P. Gill, M. Saunders and J. Shinnerl, "On the stability of Cholesky factorization for symmetric
quasidefinite systems", SIAM J. Matrix Anal. Appl. 17 (1996).
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import numpy as np

from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.pool import Pool, Workspace
from backsolve.adjoint.registry import require
from backsolve.adjoint.store import default_limit

from ..qdldl import LDL
from .layout import Layout
from .refined import ROUNDED, Refined

__all__ = ["Factored"]

_SHIFTS = (1e-9, 1e-8, 1e-7, 1e-6)  # δ, until the factor exists
_SINGULAR = 1e7  # ‖v‖ / ‖r‖, both equilibrated
_DENSE = 1000  # size up to which least squares are dense


class _Factor(Workspace):
    """QDLDL's factor of one pattern."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.ldl = LDL(layout.upper_indices, layout.upper_indptr)


@functools.lru_cache(maxsize=64)
def _pool(layout: Layout) -> Pool[_Factor]:
    limit = max(4, default_limit() // layout.nbytes)
    return Pool(lambda: _Factor(layout), limit=min(limit, 1024))


class Factored(Refined):
    """The factored K of one set of values; subclasses know where these come from.

    Args:
        layout: The pattern of K.
        norm: ‖K‖, or what comes near it.

    Attributes:
        size: Of K.
        nbytes: Size of the factor.
    """

    def __init__(self, layout: Layout, norm: float):
        self.layout, self.norm = layout, norm
        self.size, self.nbytes = layout.size, layout.nbytes
        self._lu: Any = None
        self._pivots: np.ndarray | None = None
        self._load(robbed=False)

    def values(self) -> np.ndarray:
        """Return the entries of K by rows."""
        raise NotImplementedError

    @property
    def equilibrated_norm(self) -> float:
        """‖e K e‖, or what comes near it."""
        return self._equilibrated_norm

    def _load(self, *, robbed: bool) -> None:
        layout, values = self.layout, self.values()
        self.sides = e = layout.equilibration(values)
        scaled = values[layout.upper] * e[layout.upper_rows] * e[layout.upper_columns]
        self._equilibrated_norm = math.sqrt(2.0 * scaled.dot(scaled))
        self._factor = _pool(layout).acquire(self, robbed=robbed)
        with self._factor.lock:
            for δ in _SHIFTS:
                shifted = scaled.copy()
                shifted[layout.upper_diagonal] += δ * layout.signs
                self._pivots = self._factor.ldl.factor(shifted)
                if self._pivots is not None:
                    break

    @property
    def convex(self) -> bool:
        """Whether as many pivots are positive as should be, as far as the factor tells."""
        if self._pivots is None:
            return True
        return int((self._pivots > 0).sum()) == int((self.layout.signs > 0).sum())

    @property
    def suspicious(self) -> bool:
        """Whether a pivot is so small that K may be singular."""
        # Growth in the factor may hide the zero: a test that is not needed costs less than one.
        return self._pivots is None or bool(np.abs(self._pivots).min(initial=1.0) < 1e-2)

    def solve(
        self, r: np.ndarray, start: np.ndarray | None = None, enough: float = 0.0
    ) -> tuple[np.ndarray, float]:
        """Solve K v = r, refining a start if there is one, until enough is reached or all there is.

        Returns:
            v, and ‖K v − r‖ / ‖r‖.
        """
        found = self.refined(self._ldl_solve, r, start, enough)
        done = found.backward <= ROUNDED or found.left <= enough
        if not done and not self._blown_up(found.v, r):
            other = self.refined(self._lu_solve, r, start)
            if other.backward < found.backward:
                found = other
        return found.v, max(found.left, found.backward)

    def _blown_up(self, v: np.ndarray, r: np.ndarray) -> bool:
        """Tell whether v is so large that K is singular, which no other factor would help."""
        return frobenius_norm(v / self.sides) > _SINGULAR * frobenius_norm(self.sides * r)

    def _ldl_solve(self, r: np.ndarray) -> np.ndarray | None:
        while True:
            factor = self._factor
            with factor.lock:
                if factor.holder() is self:
                    if self._pivots is None:
                        return None
                    return self.sides * factor.ldl.solve(self.sides * r)
            self._load(robbed=True)

    def _lu_solve(self, r: np.ndarray) -> np.ndarray | None:
        if self._lu is None:
            diagonal = require("scipy.sparse").diags_array(self.sides)
            K, self._lu = (diagonal @ self.matrix() @ diagonal).tocsc(), False
            # SuperLU reads beyond its arrays if K is singular by its pattern.
            if require("scipy.sparse.csgraph").structural_rank(K) == r.size:
                with contextlib.suppress(RuntimeError):  # exactly singular
                    self._lu = require("scipy.sparse.linalg").splu(K)
        return self.sides * self._lu.solve(self.sides * r) if self._lu else None

    def matrix(self) -> Any:
        """Return K, of SciPy."""
        return self.layout.matrix(self.values())

    def least_squares(self, r: np.ndarray) -> np.ndarray:
        """Return the shortest v of those that minimise ‖K v − r‖."""
        K = self.matrix()
        if r.size <= _DENSE:
            return np.linalg.lstsq(K.toarray(), r, rcond=1e-11)[0]
        lsmr = require("scipy.sparse.linalg").lsmr
        return lsmr(K, r, atol=1e-14, btol=1e-14, conlim=0.0, maxiter=20 * r.size)[0]

    def estimate(self, r: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return K⁻¹ r, for an estimate of ‖K⁻¹‖; K is symmetric."""
        del transposed
        return self.solve(r)[0]
