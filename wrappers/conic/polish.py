"""From a library's approximate solution to the exact one: Newton's method on F(x, z) = 0.

    P ẋ + Aᵀ g = −F₁        A ẋ − M g = −F₂        ż = g + F₂ + A ẋ

The projection has kinks only between cones' faces, so that the method finds the right face, and
converges on it quadratically.

L. Qi and J. Sun, "A nonsmooth version of Newton's method", Mathematical Programming 58 (1993); for
cone programs, A. Ali, E. Wong and J. Z. Kolter, "A semismooth Newton method for fast, generic
convex programming", ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kkt import System, system_of
from .point import Point

__all__ = ["Polished", "polish"]

_ROUNDS = 25
_HALVINGS = 6
_EXACT = 1e-13  # what is left of F beside its terms
_SETTLED = 1e-9
_DIRECTION = 1e-7  # of the system, beside its right-hand side, when a step is taken


@dataclass(frozen=True)
class Polished:
    """The end of polishing.

    Attributes:
        point: The best point.
        K: The system of the last step; None if none was taken.
        steps: How many steps were taken.
    """

    point: Point
    K: System | None
    steps: int

    @property
    def settled(self) -> bool:
        """Whether the point is a solution."""
        return self.point.off <= _SETTLED


def polish(point: Point) -> Polished:
    """Take Newton steps while they bring F down."""
    K = None
    for steps in range(_ROUNDS):
        if point.off <= _EXACT:
            return Polished(point, K, steps)
        K = system_of(point.program, point.projection, K)
        better = _step(point, K)
        # Near the end rounding is all that is left to move.
        if better is None or (point.off <= _SETTLED and better.off > 0.5 * point.off):
            return Polished(better or point, K, steps)
        point = better
    return Polished(point, K, _ROUNDS)


def _step(point: Point, K: System) -> Point | None:
    F1, F2 = point.F
    v, _ = K.solve(K.right_hand_side(-F1, -F2), enough=_DIRECTION)
    x, g = K.direction(v)
    z = g + F2 + point.program.product(np.concatenate([x, np.zeros_like(F2)]))[x.size :]
    if not (np.isfinite(x).all() and np.isfinite(z).all()):
        return None
    length, near = 1.0, (point.y, point.s)
    for _ in range(_HALVINGS):
        moved = Point(point.program, point.x + length * x, point.z + length * z, near)
        if moved.off < point.off:
            return moved
        length *= 0.5
    return None
