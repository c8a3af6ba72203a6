"""Whether a solution can be differentiated: strict complementarity, independence, uniqueness.

Each pair of y and s is on one ray or none: of a row, or of an eigenvalue, either y or s is zero,
and a kink is where both are. For a cone whose boundary is curved the kinks are where z leaves the
part beside it, y = 0 or s = 0; for one inside of its cone, where it reaches the boundary.

A. Shapiro, "Perturbation analysis of optimization problems in Banach spaces", Numer. Funct. Anal.
Optim. 13 (1992); J. F. Bonnans and A. Shapiro, "Perturbation Analysis of Optimization Problems",
Springer, 2000.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..quasidefinite.refined import CONSISTENT
from .kkt import System
from .point import Point

__all__ = ["Regularity"]

_WEAK = 1e-7  # a pair of y and s that are both below this is weakly complementary
_EXACT = 1e-6  # a point with a larger residual is no solution


@dataclass(frozen=True)
class Regularity:
    """What the tests found.

    Attributes:
        margin: The smallest distance from a kink, relative to the scale of y or s; 1 if there is
            none.
        weak: How many are closer than 1e-7.
        dependent: Whether multipliers are not unique.
        unique: Whether x is unique.
        null: A random v with K v = 0, if K is singular.
        off: The largest residual of the optimality conditions, relative to its scale.
    """

    margin: float
    weak: int
    dependent: bool
    unique: bool
    null: np.ndarray | None
    off: float

    @classmethod
    def of(cls, point: Point, K: System) -> Regularity:
        """Examine a point, with the K of its projection."""
        margins = np.concatenate(list(_margins(point)))
        off = point.off
        weak = int((margins < max(_WEAK, off)).sum())
        deficiency = _deficiency(K) if K.suspicious else (False, True, None)
        return cls(min(float(margins.min(initial=1.0)), 1.0), weak, *deficiency, off)

    @property
    def stats(self) -> dict[str, float]:
        """The numbers, for records."""
        return {"margin": self.margin, "weak": self.weak, "dependent": int(self.dependent)}

    @property
    def doubt(self) -> str:
        """Why there may be no derivative, or nothing."""
        why = []
        if self.off > _EXACT:
            why.append(f"x, y and s solve the problem up to {self.off:.1e} only")
        if self.weak:
            why.append(
                f"complementarity is not strict in {self.weak} places (margin {self.margin:.1e}): "
                "the solution has a kink here"
            )
        return " and ".join(why)

    @property
    def ambiguity(self) -> str:
        """What is not unique here, or nothing."""
        if not self.unique:
            return "x is not unique"
        if self.dependent:
            return "y is not unique: the derivatives of y, and those in A and b, may not exist"
        return ""


def _margins(point: Point) -> Iterator[np.ndarray]:
    """Yield distances from kinks, those of y relative to its influence, those of s to its scale."""
    blocks, projection = point.program.blocks, point.projection
    influence, size = point.influence, point.scales[1]
    yield np.maximum(point.y * influence, point.s / size)[blocks.nonnegative]
    if blocks.box is not None:
        yield _box_margins(point)

    def spectral(λ: np.ndarray, influence: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.where(λ > 0, λ * influence, -λ / size)

    if blocks.q_rows.size:
        x, starts = point.z[blocks.q_rows], blocks.q_starts
        t, x[starts] = x[starts], 0.0
        r = np.sqrt(np.add.reduceat(x * x, starts))
        scales = (np.maximum.reduceat(a[blocks.q_rows], starts) for a in (influence, size))
        yield spectral(np.stack([t + r, t - r]), *scales).ravel()
    for triangles, w in zip(blocks.triangles, projection.eigenvalues, strict=True):
        scales = (a[triangles.rows].max(axis=1, keepdims=True) for a in (influence, size))
        yield spectral(w, *scales).ravel()
    for rows in (blocks.exponential, blocks.power):
        if rows.size:
            y, s = (np.abs(a[rows]).max(axis=1) for a in (point.y, point.s))
            y, s = y * influence[rows].max(axis=1), s / size[rows].max(axis=1)
            whole = np.maximum(np.abs(point.z[rows]).max(axis=1), 1e-300)
            flat = projection.depth[rows[:, 0]]
            yield np.where(flat > 0, np.maximum(y, s) * flat / whole, np.minimum(y, s))


def _box_margins(point: Point) -> np.ndarray:
    """Return how far each bound is from being reached or left, and t from zero."""
    blocks = point.program.blocks
    rows, l, u = blocks.box_rows, blocks.bl, blocks.bu
    y, s = point.y[rows] * point.influence[rows], point.s[rows]
    size = point.scales[1][rows]
    if s[0] == 0:  # the tip: all of y but what has no bound is held
        return np.array([abs(y[0])])
    with np.errstate(invalid="ignore"):
        slack = np.fmin(s[0] * u - s[1:], s[1:] - s[0] * l)
    held = point.projection.d[rows[1:]] > 0
    return np.append(np.where(held, np.abs(y[1:]), slack / size[1:]), s[0] / size[0])


@functools.lru_cache(maxsize=16)
def _random(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size)


def _deficiency(K: System) -> tuple[bool, bool, np.ndarray | None]:
    """Return whether multipliers are dependent, whether x is unique, and a null vector.

    K v = r with a random r has no solution if K is singular, and what is left over lies in the
    null space: its upper part moves x, its lower part shifts multipliers.
    """
    n = K.program.c.size
    r = _random(K.size)
    v, left = K.solve(r, enough=0.1 * CONSISTENT)
    if left <= CONSISTENT:
        return False, True, None
    null = K.product(v) - r
    defect, size = np.abs(null), CONSISTENT * float(np.linalg.norm(r))
    moves_y, moves_x = (float(part.max(initial=0.0)) > size for part in (defect[n:], defect[:n]))
    return moves_y, not moves_x, null
