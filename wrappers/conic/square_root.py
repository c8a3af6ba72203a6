"""K known by its products, for cones of which a sparse K would be dense.

    K = [ P     ÃᵀS       ]        Ã = Rᵀ A,  S² = D̃ = Rᵀ D R        g = R S w
        [ SÃ   −(I − D̃)  ]

Its unknowns are x and w.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require

from ..quasidefinite.refined import Refined
from .program import Program
from .projection import Projection

__all__ = ["SquareRoot"]

_DENSE = 1000  # size up to which least squares are dense


class SquareRoot(Refined):
    """K of one program and one projection.

    Args:
        program: The program.
        projection: The projection.
    """

    def __init__(self, program: Program, projection: Projection):
        self.program, self.projection = program, projection
        self.size = program.c.size + program.b.size
        self.norm = math.hypot(program.norm, math.sqrt(program.b.size))
        self._root = np.sqrt(projection.d)

    def solve(self, r: np.ndarray, *, enough: float = 0.0) -> tuple[np.ndarray, float]:
        """Solve K v = r, until `‖K v − r‖ ≤ enough ‖r‖`, or as well as can be.

        Returns:
            v, and ‖K v − r‖ / ‖r‖.
        """
        raise NotImplementedError

    def _rooted(self, w: np.ndarray) -> np.ndarray:
        return self.projection.combined(w, self._root, 1.0 - self._root, -self._root)

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        projection, n = self.projection, self.program.c.size
        x, w = v[:n], v[n:]
        g = projection.rotated_back(self._rooted(w))
        product = self.program.product(np.concatenate([x, g]))
        held = projection.combined(w, projection.rest, -projection.rest, projection.d)
        product[n:] = self._rooted(projection.rotated(product[n:])) - held
        return product

    def right_hand_side(self, ρ1: np.ndarray, ρ2: np.ndarray) -> np.ndarray:
        """Return (ρ₁, S Rᵀ ρ₂)."""
        return np.concatenate([ρ1, self._rooted(self.projection.rotated(ρ2))])

    def direction(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and g of a solution of K."""
        n = self.program.c.size
        return v[:n], self.projection.rotated_back(self._rooted(v[n:]))

    @property
    def linear_operator(self) -> Any:
        """K, of SciPy."""
        return require("scipy.sparse.linalg").LinearOperator(
            (self.size, self.size), matvec=self.product, rmatvec=self.product, dtype=np.float64
        )

    @property
    def one_norm(self) -> float:
        """A bound of ‖K‖₁."""
        return float(abs(self.program.B).sum(axis=0).max(initial=0.0)) + 1.0

    def least_squares(self, r: np.ndarray) -> np.ndarray:
        """Return the shortest v of those that minimise ‖K v − r‖."""
        if self.size <= _DENSE:
            K = np.stack([self.product(unit) for unit in np.eye(self.size)], axis=1)
            return np.linalg.lstsq(K, r, rcond=1e-11)[0]
        lsmr = require("scipy.sparse.linalg").lsmr
        options = {"atol": 1e-14, "btol": 1e-14, "conlim": 0.0, "maxiter": 20 * self.size}
        return lsmr(self.linear_operator, r, **options)[0]

    def estimate(self, r: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return K⁻¹ r, for an estimate of ‖K⁻¹‖; K is symmetric."""
        del transposed
        return self.solve(r)[0]
