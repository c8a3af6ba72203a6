"""What may keep a solution from being differentiated: a kink nearby, or more than one solution."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from backsolve.adjoint.cached import cached_property

from .refined import CONSISTENT

__all__ = ["Null", "Regularity", "null_of"]

_WEAK = 1e-7  # a slack and its multiplier, both smaller than this, are at a kink
_MOVES = 1e-6  # share of the largest entry of a null vector
_EXACT = 1e-6  # a point with a larger residual is no solution


@dataclass(frozen=True)
class Regularity:
    """What the tests found.

    Attributes:
        margins: The distances from kinks, each relative to its scale.
        off: The largest residual of the optimality conditions, relative to its scale.
        noise: By how much margins may be off.
        solution: What solves the problem, in words.
        weakness: What is said of a number of kinks.
        ambiguity: What is not unique, or nothing.
        dependent: How many constraints depend on others.
        null: A random v with K v = 0, if K is singular.
    """

    margins: np.ndarray
    off: float
    noise: float
    solution: str
    weakness: Any
    ambiguity: str = ""
    dependent: int = 0
    null: np.ndarray | None = None

    @cached_property
    def margin(self) -> float:
        """The smallest distance from a kink; 1 if there is none."""
        return min(float(self.margins.min(initial=1.0)), 1.0)

    @cached_property
    def weak(self) -> int:
        """How many kinks are here."""
        # What is closer than the point is known may be a kink.
        return int((self.margins < max(_WEAK, self.noise)).sum())

    @property
    def stats(self) -> dict[str, float]:
        """The numbers, for records."""
        return {"margin": self.margin, "weak": self.weak, "dependent": self.dependent}

    @property
    def doubt(self) -> str:
        """Why there may be no derivative, apart from what is not unique; or nothing."""
        why = []
        if self.off > _EXACT:
            why.append(f"{self.solution} solve the problem up to {self.off:.1e} only")
        if self.weak:
            kinks = f"{self.weakness(self.weak)} (margin {self.margin:.1e})"
            why.append(f"{kinks}: the solution has a kink here")
        return " and ".join(why)


class Null(NamedTuple):
    """A vector with K v = 0, a random one if there are several.

    Attributes:
        vector: v.
        moves_x: Whether it moves x.
        moves_y: Whether it shifts multipliers.
    """

    vector: np.ndarray
    moves_x: bool
    moves_y: bool


@functools.lru_cache(maxsize=16)
def _random(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size)


def null_of(K: Any, n: int, held: np.ndarray | None = None) -> Null | None:
    """Return a null vector of K, if it is singular.

    K v = r with a random r has no solution if K is singular. The first n entries of a null vector
    move x, the others multipliers.

    Args:
        K: The system.
        n: Size of x.
        held: Which entries of r are not zero.
    """
    if not K.suspicious:
        return None
    r = _random(K.size) / K.sides
    if held is not None:
        r = r * held
    _, left = K.solve(r, enough=0.1 * CONSISTENT)
    if left <= CONSISTENT:
        return None
    # What is left over is a null vector to few digits; what a solution of K v = K r lacks of r is
    # one to as many as there are.
    null = r - K.solve(K.product(r))[0]
    size = _MOVES * float(np.abs(null).max(initial=0.0))
    moves = (float(np.abs(part).max(initial=0.0)) > size for part in (null[:n], null[n:]))
    return Null(null, *moves)
