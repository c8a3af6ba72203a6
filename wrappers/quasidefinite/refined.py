"""Iterative refinement: v + K⁻¹ (r − K v), with an approximate K⁻¹, until nothing is gained.

Defects are measured as they are, and as those of the equilibrated system e K e (v / e) = e r. Where
rows or unknowns are in different units, what is small beside the whole of r may be all that some of
them have, in either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from backsolve.adjoint.norms import frobenius_norm
from backsolve.adjoint.verdict import ratio

__all__ = ["CONSISTENT", "ROUNDED", "Found", "Refined"]

_ROUNDS = 40
_ENOUGH = 1e-15  # backward error at which refinement ends
_VISIBLE = 1e-12  # backward error from which on a defect is not that of rounding
ROUNDED = 1e-13  # backward error that nobody need mend
CONSISTENT = 1e-7  # ‖K v − r‖ / ‖r‖ up to which K v = r has a solution


class Found(NamedTuple):
    """A solution of K v = r.

    Attributes:
        v: The solution.
        left: ‖K v − r‖ / ‖r‖, equilibrated or, if it is not from rounding, as it is: the larger.
        backward: ‖K v − r‖ / (‖K‖ ‖v‖ + ‖r‖), the larger of both.
    """

    v: np.ndarray
    left: float
    backward: float


class Refined:
    """A matrix K that is known by its products.

    Attributes:
        norm: ‖K‖, or what comes near it.
        sides: e, by which rows and columns of K are multiplied to bring its entries near one.
    """

    norm: float
    sides: np.ndarray | float = 1.0

    @property
    def equilibrated_norm(self) -> float:
        """‖e K e‖, or what comes near it."""
        return self.norm

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        raise NotImplementedError

    def refined(
        self,
        solve: Callable[[np.ndarray], np.ndarray | None],
        r: np.ndarray,
        start: np.ndarray | None = None,
        enough: float = 0.0,
    ) -> Found:
        """Solve K v = r by an approximate solve, which may give up with None.

        Args:
            solve: K⁻¹ r, approximately.
            r: Right-hand side.
            start: Where to start from.
            enough: ‖K v − r‖ / ‖r‖ that will do, equilibrated.
        """
        v = np.zeros_like(r) if start is None else start
        defect = r if start is None else r - self.product(v)
        sizes, whole = self._sizes(defect), self._sizes(r)
        for _ in range(_ROUNDS):
            found = self._found(v, sizes, whole)
            if found.backward <= _ENOUGH or found.left <= enough:
                return found
            step = solve(defect)
            if step is None:
                return found
            w = v + step
            after = r - self.product(w)
            (scaled, plain), (next_scaled, next_plain) = sizes, self._sizes(after)
            # Slow progress is that of a nearly singular K, and comes to its end all the same.
            gained = next_scaled < 0.9 * scaled or next_plain < 0.9 * plain
            if gained or (next_scaled <= scaled and next_plain <= plain):
                v, defect, sizes = w, after, (next_scaled, next_plain)
            if not gained:
                break
        return self._found(v, sizes, whole)

    def _sizes(self, defect: np.ndarray) -> tuple[float, float]:
        """Return the size equilibrated, and as it is."""
        return frobenius_norm(self.sides * defect), frobenius_norm(defect)

    def _found(
        self, v: np.ndarray, sizes: tuple[float, float], whole: tuple[float, float]
    ) -> Found:
        terms = (
            self.equilibrated_norm * frobenius_norm(v / self.sides) + whole[0],
            self.norm * frobenius_norm(v) + whole[1],
        )
        backward = ratio(sizes[0], terms[0]), ratio(sizes[1], terms[1])
        left = ratio(sizes[0], whole[0])
        if backward[1] > _VISIBLE:
            left = max(left, ratio(sizes[1], whole[1]))
        return Found(v, left, max(backward))
