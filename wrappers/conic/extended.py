"""K written out with two more unknowns for each curved cone, so that it stays sparse, and factored.

See `structure` for what it looks like. E = √d makes its entries bounded however small d is, and τ
and σ keep it sparse: u₂ᵀ ĝ = 0, and σ = √(1−d) u₁ᵀ ĝ takes M's zero out of the diagonal.
"""

from __future__ import annotations

import math

import numpy as np

from ..quasidefinite.factored import Factored
from .program import Program
from .projection import Projection
from .structure import cone_structure

__all__ = ["Extended"]

_SMALLEST = 1e-14  # d in a curved cone: u₁ must not vanish with it


class Extended(Factored):
    """K of one program and one projection.

    Args:
        program: The program.
        projection: The projection.
    """

    def __init__(self, program: Program, projection: Projection):
        self.program, self.projection = program, projection
        self._structure = cone_structure(program.structure, program.blocks)
        blocks = program.blocks
        d = projection.d
        if blocks.coupled.size:
            d = d.copy()
            curved = blocks.coupled[(blocks.sums(projection.u1**2) > 0)[blocks.block]]
            d[curved] = np.maximum(d[curved], _SMALLEST)
        self.E = np.sqrt(d)
        super().__init__(self._structure.K, math.hypot(program.norm, math.sqrt(d.size)))

    @staticmethod
    def size_of(program: Program) -> int:
        """Return the bytes of a factor."""
        return cone_structure(program.structure, program.blocks).K.nbytes

    def values(self) -> np.ndarray:
        """Return the entries of K by rows."""
        program, projection, s = self.program, self.projection, self._structure
        blocks, E = program.blocks, self.E
        parts = [program.P, program.A[s.straight] * E[s.straight_rows]]
        for which, rotation in s.rotations:
            A = rotation.rotated(program.A, projection.frames, which)
            parts.append((E[rotation.rows, None] * A).ravel())
        u1 = np.sqrt(projection.rest[blocks.coupled]) * projection.u1
        values = np.concatenate([*parts, projection.u2, u1, [0.0]])[s.source]
        alone = blocks.sums(projection.u2**2) == 0  # a τ without a u₂
        diagonal = [np.zeros(program.c.size), -projection.rest, alone, np.full(alone.size, -1.0)]
        values[s.K.diagonal] += np.concatenate(diagonal)
        self._K = s.K.matrix(values)  # for the products that follow
        return values

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        return self._K @ v

    @property
    def one_norm(self) -> float:
        """‖K‖₁."""
        return float(abs(self._K).sum(axis=0).max(initial=0.0))

    def right_hand_side(self, ρ1: np.ndarray, ρ2: np.ndarray) -> np.ndarray:
        """Return (ρ₁, E Rᵀ ρ₂, 0, 0)."""
        n, m = ρ1.size, ρ2.size
        r = np.zeros(self.layout.size)
        r[:n], r[n : n + m] = ρ1, self.E * self.projection.rotated(ρ2)
        return r

    def direction(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and g of a solution of K."""
        n, m = self.program.c.size, self.E.size
        return v[:n], self.projection.rotated_back(self.E * v[n : n + m])
