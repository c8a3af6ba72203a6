"""The KKT matrix of a quadratic program.

    K = [ P + μI    AᵀS ] = diag(I, S) B diag(I, S) + diag(μI, −D)        S² + D = I
        [ SA        −D  ]

D is one for an inactive constraint and zero for an active one, so that the pattern never changes
and the order of elimination is found once.
"""

from __future__ import annotations

import numpy as np

from ..quasidefinite.factored import Factored
from .program import Program

__all__ = ["FactoredKKT"]


class FactoredKKT(Factored):
    """The factored K of one program and one D.

    Args:
        program: The program.
        D: `(m,)`, from 0 to 1.
        smoothing: μ.
    """

    def __init__(self, program: Program, D: np.ndarray, smoothing: float = 0.0):
        n = program.structure.n
        self.program, self.D, self.S = program, D, np.sqrt(1.0 - D)
        self._diagonal = np.concatenate([np.full(n, smoothing), -D])
        self._sides = np.concatenate([np.ones(n), self.S])
        super().__init__(program.structure.K, program.norm)

    def values(self) -> np.ndarray:
        """Return the entries of K by rows."""
        s = self.program.structure
        parts = [self.program.P, self.program.A * self.S[s.A_rows], [0.0]]
        values = np.concatenate(parts)[s.K_source]
        values[s.K.diagonal] += self._diagonal
        return values

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        return self._sides * self.program.product(self._sides * v) + self._diagonal * v
