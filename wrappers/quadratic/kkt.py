"""The KKT matrix of a quadratic program, factored and solved with.

    K = [ P + μI    AᵀS ] = diag(I, S) B diag(I, S) + diag(μI, −D)        S² + D = I
        [ SA        −D  ]

D is one for an inactive constraint and zero for an active one, so that the pattern never changes
and the order of elimination is found once. QDLDL factors the equilibrated `E K E + δ diag(I, −I)`;
solutions are refined on K itself. Where that fails, SuperLU takes K as it is.

P. Gill, M. Saunders and J. Shinnerl, "On the stability of Cholesky factorization for symmetric
quasidefinite systems", SIAM J. Matrix Anal. Appl. 17 (1996).
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np

from backsolve.adjoint.operators import frobenius_norm
from backsolve.adjoint.pool import Pool, Workspace
from backsolve.adjoint.registry import require
from backsolve.adjoint.store import default_limit

from ..qdldl import LDL
from .program import Program
from .structure import Structure

__all__ = ["CONSISTENT", "Factored"]

_SHIFTS = (1e-9, 1e-8, 1e-7, 1e-6)  # δ, until the factor exists
_ROUNDS = 40  # of refinement
_ENOUGH = 1e-15  # backward error at which refinement ends
_SINGULAR = 1e7  # ‖v‖ / ‖r‖, both equilibrated
_DENSE = 1000  # size up to which least squares are dense
CONSISTENT = 1e-7  # ‖K v − r‖ / ‖r‖ up to which K v = r has a solution


class _Factor(Workspace):
    """QDLDL's factor of one pattern."""

    def __init__(self, structure: Structure):
        super().__init__()
        self.ldl = LDL(structure.U_indices, structure.U_indptr)


@functools.lru_cache(maxsize=64)
def _pool(structure: Structure) -> Pool[_Factor]:
    limit = max(4, default_limit() // _size(structure))
    return Pool(lambda: _Factor(structure), limit=min(limit, 1024))


def _size(structure: Structure) -> int:
    """Return the bytes of a factor, as far as they are known."""
    # A double and a 32-bit index for each entry: of K, and of L with as much again filled in.
    return 12 * 3 * structure.K_indices.size


class Factored:
    """The factored K of one program and one D.

    Args:
        program: The program.
        D: `(m,)`, from 0 to 1.
        smoothing: μ.

    Attributes:
        nbytes: Size of the factor.
        convex: Whether K has the inertia of a strict minimum, as far as its factor tells.
    """

    def __init__(self, program: Program, D: np.ndarray, smoothing: float = 0.0):
        self.program, self.D, self.S = program, D, np.sqrt(1.0 - D)
        self._diagonal = np.concatenate([np.full(program.structure.n, smoothing), -D])
        self._sides = np.concatenate([np.ones(program.structure.n), self.S])
        self._lu: Any = None
        self._pivots: np.ndarray | None = None
        self._load(robbed=False)
        self.nbytes = _size(program.structure)

    def _load(self, *, robbed: bool) -> None:
        s = self.program.structure
        parts = [self.program.P, self.program.A * self.S[s.A_rows], [0.0]]
        values = np.concatenate(parts)[s.K_source]
        values[s.K_diagonal] += self._diagonal
        self._scale = E = _equilibration(values, s)
        scaled = values[s.U_of_K] * E[s.U_indices] * E[s.U_columns]
        shift = np.ones(s.n + s.m)
        shift[s.n :] = -1.0
        self._factor = _pool(s).acquire(self, robbed=robbed)
        with self._factor.lock:
            for δ in _SHIFTS:
                shifted = scaled.copy()
                shifted[s.U_diagonal] += δ * shift
                self._pivots = self._factor.ldl.factor(shifted)
                if self._pivots is not None:
                    break

    @property
    def convex(self) -> bool:
        """Whether as many pivots are positive as there are unknowns."""
        return self._pivots is None or int((self._pivots > 0).sum()) == self.program.structure.n

    @property
    def suspicious(self) -> bool:
        """Whether a pivot is so small that K may be singular."""
        return self._pivots is None or bool(np.abs(self._pivots).min(initial=1.0) < 1e-6)

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        return self._sides * self.program.product(self._sides * v) + self._diagonal * v

    def solve(self, r: np.ndarray, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Solve K v = r, refining a start if there is one.

        Returns:
            v, and ‖K v − r‖ / ‖r‖.
        """
        v, left = self._refined(self._ldl_solve, r, start)
        size = frobenius_norm(r)
        # So large a solution says that K is singular, which no other factor would help.
        large = frobenius_norm(v / self._scale) > _SINGULAR * frobenius_norm(self._scale * r)
        if left > 1e-2 * CONSISTENT * size and not large:
            w, after = self._refined(self._lu_solve, r, start)
            if after < left:
                v, left = w, after
        return v, left / size if size else left

    def _refined(
        self, solve: Any, r: np.ndarray, start: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        v = np.zeros_like(r) if start is None else start
        defect = r if start is None else r - self.product(v)
        left, size = frobenius_norm(defect), frobenius_norm(r)
        for _ in range(_ROUNDS):
            if left <= _ENOUGH * (self.program.norm * frobenius_norm(v) + size):
                break
            step = solve(defect)
            if step is None:
                break
            w = v + step
            after = r - self.product(w)
            norm = frobenius_norm(after)
            # Slow progress is that of a nearly singular K, and comes to its end all the same.
            if not norm < 0.9 * left:
                if norm < left:
                    v, left = w, norm
                break
            v, defect, left = w, after, norm
        return v, left

    def _ldl_solve(self, r: np.ndarray) -> np.ndarray | None:
        while True:
            factor = self._factor
            with factor.lock:
                if factor.holder() is self:
                    if self._pivots is None:
                        return None
                    return self._scale * factor.ldl.solve(self._scale * r)
            self._load(robbed=True)

    def _lu_solve(self, r: np.ndarray) -> np.ndarray | None:
        if self._lu is None:
            K, self._lu = self._matrix().tocsc(), False
            # SuperLU reads beyond its arrays if K is singular by its pattern.
            if require("scipy.sparse.csgraph").structural_rank(K) == r.size:
                with contextlib.suppress(RuntimeError):  # exactly singular
                    self._lu = require("scipy.sparse.linalg").splu(K)
        return self._lu.solve(r) if self._lu else None

    def _matrix(self) -> Any:
        diags = require("scipy.sparse").diags_array
        sides = diags(self._sides)
        return sides @ self.program.B @ sides + diags(self._diagonal)

    def least_squares(self, r: np.ndarray) -> np.ndarray:
        """Return the shortest v of those that minimise ‖K v − r‖."""
        K = self._matrix()
        if r.size <= _DENSE:
            return np.linalg.lstsq(K.toarray(), r, rcond=1e-11)[0]
        lsmr = require("scipy.sparse.linalg").lsmr
        return lsmr(K, r, atol=1e-14, btol=1e-14, conlim=0.0, maxiter=20 * r.size)[0]

    def estimate(self, r: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return K⁻¹ r, for an estimate of ‖K⁻¹‖; K is symmetric."""
        del transposed
        return self.solve(r)[0]


def _equilibration(values: np.ndarray, s: Structure) -> np.ndarray:
    """Return E such that the largest entry of each row of `E K E` is near one.

    D. Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", RAL
    technical report RAL-TR-2001-034.
    """
    values, start = np.abs(values), s.K_indptr[:-1]
    largest = np.maximum.reduceat(values, start)
    E = 1.0 / np.sqrt(np.where(largest > 0, largest, 1.0))
    for _ in range(2):
        largest = np.maximum.reduceat(values * E[s.K_indices], start) * E
        E /= np.sqrt(np.where(largest > 0, largest, 1.0))
    return E
