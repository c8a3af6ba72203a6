"""A point (x, z) of a cone program, and what follows from it.

    y = Π*(z),  s = y − z        F = (P x + Aᵀ y + c,  A x + s − b)

Where F vanishes, x, y and s are a solution.
"""

from __future__ import annotations

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.verdict import EPS

from .program import Program
from .projection import Projection, project

__all__ = ["Point"]

_FLOOR = 1e-4  # share of the largest term that all count for


class Point:
    """A point of a program.

    Args:
        program: The program.
        x: `(n,)`.
        z: y − s, `(m,)`.
        near: y and s of a point nearby, which save steps.
    """

    def __init__(
        self,
        program: Program,
        x: np.ndarray,
        z: np.ndarray,
        near: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.program, self.x, self.z, self._near = program, x, z, near

    @cached_property
    def projection(self) -> Projection:
        """Π* at z, and its derivative."""
        return project(self.program.cone, self.z, self._near)

    @property
    def y(self) -> np.ndarray:
        """The multipliers, in the dual cone."""
        return self.projection.y

    @property
    def s(self) -> np.ndarray:
        """The slacks, in the cone."""
        return self.projection.s

    @cached_property
    def F(self) -> tuple[np.ndarray, np.ndarray]:
        """The two residuals."""
        n = self.x.size
        product = self.program.product(np.concatenate([self.x, self.y]))
        return product[:n] + self.program.c, product[n:] + self.s - self.program.b

    # What F, y and s are judged by: the terms that should balance, added up without their signs,
    # so that it does not matter in which units rows and columns are. What is left over of F is
    # small beside the largest terms only, so that the others count for a share of these.

    @cached_property
    def _terms(self) -> tuple[np.ndarray, np.ndarray]:
        """|P| |x| + |A|ᵀ |y| + |c| and |A| |x| + |s| + |b|."""
        n, c, b = self.x.size, np.abs(self.program.c), np.abs(self.program.b)
        terms = self.program.magnitude(np.abs(np.concatenate([self.x, self.y])))
        return terms[:n] + c, terms[n:] + np.abs(self.s) + b

    @cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """The size of stationarity, and of slacks."""
        pull, slack = self._terms
        # Of a fit without residuals all of pull is rounding, that of the equations of residuals.
        least = self.program.magnitude(np.concatenate([self._lengths, np.zeros_like(slack)]))
        largest = float(max(pull.max(initial=0.0), least[: pull.size].max(initial=0.0)))
        return _floored(pull, largest), _floored(slack, float(slack.max(initial=0.0)))

    @property
    def _lengths(self) -> np.ndarray:
        """The size of x, and of what makes it up in equations: of |A| |x| / |A[i, j]|."""
        s, count = self.program.structure, self.program.cone.z
        slack, lengths = self._terms[1], np.abs(self.x)
        entries = np.flatnonzero((s.A_rows < count) & (self.program.A != 0))
        sizes = slack[s.A_rows[entries]] / np.abs(self.program.A[entries])
        np.maximum.at(lengths, s.A_columns[entries], sizes)
        return lengths

    @property
    def rounding(self) -> tuple[np.ndarray, np.ndarray]:
        """How far F may be rounded."""
        pull, slack = self._terms
        return EPS * pull, EPS * slack

    @property
    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """How far F may be off: what is left over of it, or rounding."""
        F1, F2 = (np.maximum(np.abs(F), δ) for F, δ in zip(self.F, self.rounding, strict=True))
        return F1, F2

    @cached_property
    def influence(self) -> np.ndarray:
        """The largest part of stationarity that a multiplier of one makes up, `(m,)`."""
        return self.program.row_norms_beside(self.scales[0])

    @cached_property
    def off(self) -> float:
        """The largest residual, beside the largest terms that should have balanced."""
        return max(
            float(np.abs(F).max(initial=0.0) / size.max(initial=1e-300))
            for F, size in zip(self.F, self.scales, strict=True)
        )


def _floored(size: np.ndarray, largest: float) -> np.ndarray:
    return np.maximum(size, _FLOOR * largest or 1.0)
