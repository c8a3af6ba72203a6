"""Whether a solution can be differentiated: strict complementarity, independence, uniqueness.

S. M. Robinson, "Strongly regular generalized equations", Math. Oper. Res. 5 (1980); A. V. Fiacco,
"Introduction to Sensitivity and Stability Analysis in Nonlinear Programming", Academic Press, 1983.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from .activity import WEAK, Scales, margins
from .kkt import CONSISTENT, Factored

__all__ = ["Regularity"]

_COUNTED = 4_000_000  # entries up to which the rank of the active rows is found by their SVD


@dataclass(frozen=True)
class Regularity:
    """What the tests found.

    Attributes:
        margin: The smallest slack or multiplier of an inequality, relative to its scale; 1 if
            there is no inequality.
        weak: How many inequalities have less than `WEAK` of both.
        dependent: How many active constraints depend on others (LICQ fails).
        unique: Whether x is unique.
        off: The largest residual of the optimality conditions, relative to its scale.
    """

    margin: float
    weak: int
    dependent: int
    unique: bool
    off: float

    @classmethod
    def of(cls, J: Any, factored: Factored) -> Regularity:
        """Examine a linearised program."""
        program, x, y, z = J.program, J.x, J.y, J.z
        scales = Scales(program, x, y, z)
        margin = margins(program, J.activity, scales, y, z)
        off = _off(J, scales)
        # The point is known no better than its residual: what is closer than that may be a kink.
        weak = int((margin < max(WEAK, off)).sum())
        dependent, unique = 0, True
        if factored.suspicious:
            dependent, unique = _deficiency(J, factored)
        return cls(min(float(margin.min(initial=1.0)), 1.0), weak, dependent, unique, off)

    @property
    def stats(self) -> dict[str, float]:
        """The numbers, for records."""
        return {"margin": self.margin, "weak": self.weak, "dependent": self.dependent}

    @property
    def doubt(self) -> str:
        """Why there may be no derivative, or nothing."""
        if not self.unique:
            return "x is not unique"
        why = []
        if self.off > WEAK:
            why.append(f"x and y solve the problem up to {self.off:.1e} only")
        if self.weak:
            why.append(
                f"{_plural(self.weak, 'constraint')} weakly active (margin {self.margin:.1e}): the "
                "solution has a kink here"
            )
        if self.dependent:
            why.append(
                f"{_plural(self.dependent, 'active constraint')} linearly dependent on others: the "
                "derivatives of y, and those in A, l and u, may not exist"
            )
        return " and ".join(why)


def _off(J: Any, scales: Scales) -> float:
    n, F = J.x.size, np.abs(J.F)
    scale = np.where(J.activity.inactive > 0, scales.multiplier, scales.slack)
    off = F / np.concatenate([np.full(n, scales.pull), scale])
    return float(off.max(initial=0.0))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


@functools.lru_cache(maxsize=16)
def _random(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size)


def _deficiency(J: Any, factored: Factored) -> tuple[int, bool]:
    """Return how many active rows are dependent, and whether x is unique.

    K v = r with a random r has no solution if K is singular, and what is left over lies in the
    null space: its upper part moves x, its lower part shifts multipliers.
    """
    program, D = J.program, J.D
    n = program.structure.n
    r = _random(D.size + n) * np.concatenate([np.ones(n), D < 0.5])
    v, left = factored.solve(r)
    if left <= CONSISTENT:
        return 0, True
    defect = np.abs(factored.product(v) - r)
    size = CONSISTENT * float(np.linalg.norm(r))
    dependent = 0
    if defect[n:].max(initial=0.0) > size:
        dependent = _dependent_rows(program, D < 0.5)
    return dependent, bool(defect[:n].max(initial=0.0) <= size)


def _dependent_rows(program: Any, active: np.ndarray) -> int:
    rows = program.B[program.structure.n :][active]
    if rows.shape[0] * rows.shape[1] > _COUNTED:
        return 1  # at least
    return max(1, rows.shape[0] - int(np.linalg.matrix_rank(rows.toarray())))
