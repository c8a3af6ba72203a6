"""The linear system behind every tangent and adjoint of a cone program, in three forms.

    P x + Aᵀ g = ρ₁        A x − M g = ρ₂,  M = D⁻¹ − I on the range of D

g is a direction in which y may move, x one of x. Each form is a symmetric K of its own: sparse and
factored, condensed to a dense matrix, or iterated with.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .condensed import Condensed
from .extended import Extended
from .iterative import Iterative
from .program import Program
from .projection import Projection

__all__ = ["System", "form_of", "system_of"]

# A sparse factorisation makes some twenty times fewer operations a second than dense algebra.
_SPARSE = 20.0
_FEW = 2e6  # operations of dense algebra that a sparse factorisation may stand for in any case
_TOO_MANY = 8e9  # operations of dense algebra, from which on to iterate is quicker


class System(Protocol):
    """K of one program and one projection."""

    program: Program
    size: int

    @property
    def suspicious(self) -> bool:
        """Whether K may be singular."""
        ...

    @property
    def convex(self) -> bool:
        """Whether K shows that P is positive where x may move."""
        ...

    @property
    def one_norm(self) -> float:
        """‖K‖₁, or a bound of it."""
        ...

    def right_hand_side(self, ρ1: np.ndarray, ρ2: np.ndarray) -> np.ndarray:
        """Return r, so that K v = r solves the system."""
        ...

    def direction(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and g."""
        ...

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        ...

    def solve(self, r: np.ndarray, *, enough: float = 0.0) -> tuple[np.ndarray, float]:
        """Return v, and ‖K v − r‖ / ‖r‖, which need be no less than enough."""
        ...

    def least_squares(self, r: np.ndarray) -> np.ndarray:
        """Return the shortest v of those that minimise ‖K v − r‖."""
        ...

    def estimate(self, r: np.ndarray, *, transposed: bool) -> np.ndarray:
        """Return K⁻¹ r, for an estimate of ‖K⁻¹‖."""
        ...


def form_of(program: Program) -> type[Extended | Condensed | Iterative]:
    """Choose a form by the number of operations, in those of dense algebra."""
    n, structure = program.c.size, program.structure
    row_sizes = np.bincount(structure.A_rows, minlength=structure.m).astype(float)
    filled = _SPARSE * float(row_sizes @ row_sizes)  # of A, the rows of cones apart
    sparse, rotated = filled, 0.0
    for triangles in program.blocks.triangles:
        count, rows = triangles.rows.shape
        sparse += _SPARSE * count * rows**3
        rotated += count * rows * n**2
    dense = n**3 / 3 + rotated + min(filled, float(structure.m) * n**2)
    if min(sparse, dense) > _TOO_MANY and rotated:
        return Iterative
    return Condensed if dense < sparse and sparse > _FEW else Extended


def system_of(program: Program, projection: Projection, near: System | None = None) -> System:
    """Return K; that of a point nearby may save work."""
    form = form_of(program)
    if form is Condensed and isinstance(near, Condensed):
        return Condensed(program, projection, near)
    return form(program, projection)
