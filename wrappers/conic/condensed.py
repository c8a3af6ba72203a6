"""K condensed to a dense positive definite matrix of the size of x, and refined.

    H = P + Aᵀ W A        W = D ((I − D) e² + δ)⁻¹        H x = ρ₁ + Aᵀ W ρ₂

All operations are those of dense linear algebra, so that this is quick where the rows of A are
dense anyway. δ makes W finite where D is one; what it spoils, refinement on K mends. x and each
cone are scaled, the latter by a number e. To make H takes most of the time, so that the one of a
point nearby is tried first.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from backsolve.adjoint.buffers import buffers
from backsolve.adjoint.registry import require

from .program import Program
from .projection import Projection
from .square_root import SquareRoot
from .structure import cone_structure

__all__ = ["Condensed"]

_SHIFTS = (1e-6, 1e-5, 1e-4)  # δ, until H has a factor
_FULL = 0.05  # share of entries from which on dense products are quicker than sparse ones
_FLOOR = 1e-12  # added to the diagonal of H
_SOLVED = 1e-12  # ‖K v − r‖ / ‖r‖ up to which the H of a point nearby is good enough


class Condensed(SquareRoot):
    """K of one program and one projection, with the factor of H.

    Args:
        program: The program.
        projection: The projection.
        near: That of a point nearby.
    """

    suspicious = True  # H does not tell whether multipliers are unique

    def __init__(self, program: Program, projection: Projection, near: Condensed | None = None):
        super().__init__(program, projection)
        self._factor: Any = None
        # Of the two, the one that has an H: chains would keep every point alive.
        self._near = near if near is None or near._factor is not None else near._near

    def _factorize(self) -> None:
        self._scale()
        for δ in _SHIFTS:
            self._weights(δ)
            H = self._H()
            potrf = require("scipy.linalg.lapack").dpotrf
            factor, info = potrf(H.T, lower=True, clean=False, overwrite_a=True)
            if info == 0:
                self._factor = factor
                break

    @property
    def convex(self) -> bool:
        """Whether H has a factor."""
        return self._factor is not None

    @staticmethod
    def size_of(program: Program) -> int:
        """Return the bytes of H."""
        return 8 * program.c.size**2

    def _scale(self) -> None:
        s, program = self.program.structure, self.program
        largest = np.maximum.reduceat(np.abs(program.values), s.K.indptr[:-1])[: s.n]
        self._x_scale = 1.0 / np.sqrt(np.where(largest > 0, largest, 1.0))
        rows = program.row_norms_beside(1.0 / self._x_scale)
        blocks = program.blocks
        for triangles in blocks.triangles:
            rows[triangles.rows] = rows[triangles.rows].max(axis=1, keepdims=True)
        if blocks.starts.size:
            largest = np.maximum.reduceat(rows[blocks.coupled], blocks.starts)
            rows[blocks.coupled] = largest[blocks.block]
        self._e = 1.0 / np.where(rows > 0, rows, 1.0)

    def _weights(self, δ: float) -> None:
        """Set the ω, e² ω in all, of W: where D is d, one along u₁, zero along u₂."""
        d, rest, e2 = self.projection.d, self.projection.rest, self._e**2
        self._shift = δ
        self._ω = e2 * d / (e2 * rest + δ)
        self._first, self._second = e2 / δ - self._ω, -self._ω

    def _H(self) -> np.ndarray:
        program, projection = self.program, self.projection
        structure, blocks = program.structure, program.blocks
        s = cone_structure(structure, blocks)
        i, j, scale = structure.P_indices, structure.P_columns, self._x_scale
        H = buffers.zeros((structure.n, structure.n))
        H[i, j] = H[j, i] = scale[i] * program.P * scale[j]
        diags = require("scipy.sparse").diags_array
        values = program.A * scale[structure.A_columns]
        A = structure.A_csc(values)
        moving = np.unique(s.straight_rows[self._ω[s.straight_rows] > 0])
        held = diags(np.sqrt(self._ω[moving])) @ A[moving]
        if held.nnz > _FULL * moving.size * structure.n:
            held = held.toarray()
            H += held.T @ held
        else:
            _add(H, held.T @ held)
        if blocks.starts.size:
            indptr = np.append(blocks.starts, blocks.coupled.size)
            csr = require("scipy.sparse").csr_array
            for u, weights in ((projection.u1, self._first), (projection.u2, self._second)):
                U = csr((u, blocks.coupled, indptr), shape=(blocks.starts.size, structure.m))
                UA = U @ A
                _add(H, UA.T @ diags(weights[blocks.coupled[blocks.starts]]) @ UA)
        for which, rotation in s.rotations:
            weight = np.sqrt(self._ω[rotation.rows])
            moves = weight > 0
            A = weight[moves, None] * rotation.rotated(values, projection.frames, which)[moves]
            H[rotation.block] += A.T @ A
        H[np.diag_indices_from(H)] += _FLOOR * max(1.0, float(H.diagonal().max(initial=0.0)))
        return H

    def solve(self, r, *, enough=0.0):
        """Solve K v = r."""
        start = None
        if self._factor is None and self._near is not None:
            enough = max(enough, _SOLVED)
            near = self.refined(self._condensed_near, r, enough=enough)
            if near.left <= enough:
                return near.v, near.left
            start = near.v
        if self._factor is None:
            self._factorize()
        found = self.refined(self._condensed, r, start, enough)
        return found.v, max(found.left, found.backward)

    def _condensed_near(self, r: np.ndarray) -> np.ndarray | None:
        # w is rotated, by eigenvectors that need not be near those nearby.
        here, there = self.projection, self._near.projection  # type: ignore[union-attr]
        n = self.program.c.size
        turned = np.concatenate([r[:n], there.rotated(here.rotated_back(r[n:]))])
        v = self._near._condensed(turned)  # type: ignore[union-attr]
        if v is None:
            return None
        return np.concatenate([v[:n], here.rotated(there.rotated_back(v[n:]))])

    def _condensed(self, r: np.ndarray) -> np.ndarray | None:
        if self._factor is None:
            return None
        projection, n = self.projection, self.program.c.size
        e2 = self._e**2
        # (I − D̃ + δ / e²)⁻¹, one over δ along u₁, and e² / (e² + δ) along u₂.
        middle = e2 / (e2 * projection.rest + self._shift)
        inverse = functools.partial(
            projection.combined,
            d=middle,
            first=e2 / self._shift - middle,
            second=e2 / (e2 + self._shift) - middle,
        )
        w = inverse(r[n:])
        g = projection.rotated_back(self._rooted(w))
        pulled = self.program.product(np.concatenate([np.zeros(n), g]))[:n]
        right = self._x_scale * (r[:n] + pulled)
        trsv = require("scipy.linalg.blas").dtrsv  # of one column, in half the time of dpotrs
        x = trsv(self._factor, right, lower=True, overwrite_x=True)
        x = self._x_scale * trsv(self._factor, x, lower=True, trans=True, overwrite_x=True)
        moved = self.program.product(np.concatenate([x, np.zeros_like(w)]))[n:]
        return np.concatenate([x, inverse(self._rooted(projection.rotated(moved)) - r[n:])])


def _add(H: np.ndarray, part: Any) -> None:
    """Add a sparse matrix to a dense one, which most of its entries leave as it is."""
    part = part.tocoo()
    H[part.row, part.col] += part.data  # products have no entry twice
