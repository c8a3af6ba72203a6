"""What may keep a solution from being differentiated: a kink nearby, or more than one solution.

    K d = ξ δ        δ the larger of a residual and of the rounding of its terms, ξ random

Where d, how far the solution may be off, reaches beyond a kink, nobody knows on which side it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from backsolve.adjoint.cached import cached_property

from .refined import CONSISTENT

__all__ = ["SAFE", "Null", "Regularity", "moved", "null_of", "random"]

_WEAK = 1e-7  # a slack and its multiplier, both smaller than this, are at a kink
_MOVES = 1e-6  # share of the largest entry of a null vector
_NOISE = 100.0  # times that an entry of a null vector is larger than what it is known to
_LEAST = 1e-10  # share of the largest entry, in any case
_EXACT = 1e-6  # a point with a larger residual is no solution
_ENOUGH = 1e-3  # of a system that is solved for the size of its solution
SAFE = 30.0  # how many times a solution may be further off than by all of the random δ
_SAMPLES = 3  # one may be small by chance


@dataclass(frozen=True)
class Regularity:
    """What the tests found.

    Attributes:
        margins: The distances from kinks, each relative to its scale.
        off: The largest residual of the optimality conditions, relative to its scale.
        noise: By how much each margin may be off.
        solution: What solves the problem, in words.
        weakness: What is said of a number of kinks.
        ambiguity: What is not unique, or nothing.
        dependent: How many constraints depend on others.
        null: A random v with K v = 0, if K is singular.
    """

    margins: np.ndarray
    off: float
    noise: np.ndarray
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
        return int((self.margins < np.maximum(_WEAK, self.noise)).sum())

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


@functools.lru_cache(maxsize=16)
def random(size: int) -> np.ndarray:
    """Return the ξ, `(samples, size)`."""
    return np.random.default_rng(size).standard_normal((_SAMPLES, size))


def moved(K: Any, sides: Iterable[np.ndarray], null: Null | None) -> list[np.ndarray]:
    """Return the solutions d of K d = r for each r, but for null vectors.

    Args:
        K: The system.
        sides: The right-hand sides r.
        null: What `null_of` found.
    """
    found = []
    for r in sides:
        d, _ = K.solve(r, enough=_ENOUGH)
        if null is not None:  # K d is what K reaches of r
            d, _ = K.solve(K.product(d), enough=_ENOUGH)
        found.append(np.where(np.isfinite(d), d, 0.0))
    return found


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
    # one to as many as there are, and what a solution of K d = K v is tells how many. Entries are
    # large or small beside the others in the units of K's equations.
    null = r - K.solve(K.product(r))[0]
    size = np.abs(null) / K.sides
    off = float((np.abs(K.solve(K.product(null))[0]) / K.sides).max(initial=0.0))
    largest = float(size.max(initial=0.0))
    null = np.where(size > max(_NOISE * off, _LEAST * largest), null, 0.0)
    moves = (float(part.max(initial=0.0)) > _MOVES * largest for part in (size[:n], size[n:]))
    return Null(null, *moves)
