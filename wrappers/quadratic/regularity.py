"""Whether a solution can be differentiated: strict complementarity, independence, uniqueness.

S. M. Robinson, "Strongly regular generalized equations", Math. Oper. Res. 5 (1980); A. V. Fiacco,
"Introduction to Sensitivity and Stability Analysis in Nonlinear Programming", Academic Press, 1983.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..quasidefinite.refined import CONSISTENT
from .kkt import FactoredKKT
from .point import Point

__all__ = ["Regularity"]

# An inequality whose slack and multiplier are both below this is weakly active.
_WEAK = 1e-7
# A point with a larger residual is no solution.
_EXACT = 1e-6
_COUNTED = 4_000_000  # entries up to which the rank of the active rows is found by their SVD


@dataclass(frozen=True)
class Regularity:
    """What the tests found.

    Attributes:
        margin: The smallest slack or multiplier of an inequality, relative to its scale; 1 if
            there is no inequality.
        weak: How many inequalities have less than 1e-7 of both.
        dependent: How many active constraints depend on others (LICQ fails).
        unique: Whether x is unique.
        null: A random v with K v = 0, if K is singular.
        off: The largest residual of the optimality conditions, relative to its scale.
    """

    margin: float
    weak: int
    dependent: int
    unique: bool
    null: np.ndarray | None
    off: float

    @classmethod
    def of(cls, point: Point, factored: FactoredKKT) -> Regularity:
        """Examine a point, with K of its active set."""
        active = factored.D < 0.5
        margin, off = _margins(point, active), _off(point, active)
        # The point is known no better than its residual: what is closer than that may be a kink.
        weak = int((margin < max(_WEAK, off)).sum())
        deficiency = _deficiency(factored) if factored.suspicious else (0, True, None)
        return cls(min(float(margin.min(initial=1.0)), 1.0), weak, *deficiency, off)

    @property
    def stats(self) -> dict[str, float]:
        """The numbers, for records."""
        return {"margin": self.margin, "weak": self.weak, "dependent": self.dependent}

    @property
    def doubt(self) -> str:
        """Why there may be no derivative, or nothing."""
        why = []
        if self.off > _EXACT:
            why.append(f"x and y solve the problem up to {self.off:.1e} only")
        if self.weak:
            why.append(
                f"{_plural(self.weak, 'constraint')} weakly active (margin {self.margin:.1e}): the "
                "solution has a kink here"
            )
        return " and ".join(why)

    @property
    def ambiguity(self) -> str:
        """What is not unique here, or nothing."""
        if not self.unique:
            return "x is not unique"
        if self.dependent:
            return (
                f"{_plural(self.dependent, 'active constraint')} linearly dependent on others: the "
                "derivatives of y, and those in A, l and u, may not exist"
            )
        return ""


def _margins(point: Point, active: np.ndarray) -> np.ndarray:
    """Return how far each inequality is from becoming active or inactive; inf for equalities."""
    program, z = point.program, point.z
    slack = np.minimum(z - program.l, program.u - z) / point.slack_scale
    margin = np.where(active, np.abs(point.y) * point.influence, slack)
    margin[program.equality] = np.inf
    return margin


def _off(point: Point, active: np.ndarray) -> float:
    """Return the largest residual beside the largest terms that should have balanced."""
    # Refinement makes the largest entries of a defect small, not each beside its own terms.
    n, F = point.x.size, np.abs(point.F)
    slack = np.where(active, F[n:], 0.0).max(initial=0.0) / point.slack_scale.max(initial=1e-300)
    pull = np.where(active, 0.0, F[n:] * point.influence).max(initial=0.0)
    return float(max(F[:n].max(initial=0.0) / point.pull.max(initial=1e-300), slack, pull))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


@functools.lru_cache(maxsize=16)
def _random(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size)


def _deficiency(factored: FactoredKKT) -> tuple[int, bool, np.ndarray | None]:
    """Return how many active rows are dependent, whether x is unique, and a null vector.

    K v = r with a random r has no solution if K is singular, and what is left over lies in the
    null space: its upper part moves x, its lower part shifts multipliers.
    """
    program, active = factored.program, factored.D < 0.5
    n = program.structure.n
    r = _random(active.size + n) * np.concatenate([np.ones(n), active])
    v, left = factored.solve(r)
    if left <= CONSISTENT:
        return 0, True, None
    null = factored.product(v) - r
    defect = np.abs(null)
    size = CONSISTENT * float(np.linalg.norm(r))
    dependent = 0
    if defect[n:].max(initial=0.0) > size:
        dependent = _dependent_rows(program, active)
    return dependent, bool(defect[:n].max(initial=0.0) <= size), null


def _dependent_rows(program: Any, active: np.ndarray) -> int:
    rows = program.B[program.structure.n :][active]
    if rows.shape[0] * rows.shape[1] > _COUNTED:
        return 1  # at least
    return max(1, rows.shape[0] - int(np.linalg.matrix_rank(rows.toarray())))
