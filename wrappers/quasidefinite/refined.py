"""Iterative refinement: v + K⁻¹ (r − K v), with an approximate K⁻¹, until nothing is gained.

Defects are measured as those of the equilibrated system, e K e (v / e) = e r: what is small beside
the whole of r may be all that some unknowns have, if rows or unknowns are in different units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from backsolve.adjoint.norms import frobenius_norm

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
        backward: ‖K v − r‖ / (‖K‖ ‖v‖ + ‖r‖), equilibrated.
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
        e, norm = self.sides, self.equilibrated_norm
        v = np.zeros_like(r) if start is None else start
        defect = r if start is None else r - self.product(v)
        left, size = frobenius_norm(e * defect), frobenius_norm(e * r)
        for _ in range(_ROUNDS):
            if left <= max(_ENOUGH * (norm * frobenius_norm(v / e) + size), enough * size):
                break
            step = solve(defect)
            if step is None:
                break
            w = v + step
            after = r - self.product(w)
            next_left = frobenius_norm(e * after)
            # Slow progress is that of a nearly singular K, and comes to its end all the same.
            slow = not next_left < 0.9 * left
            if not slow or next_left < left:
                v, defect, left = w, after, next_left
            if slow:
                break
        return self._found(v, defect, r, left, size)

    def _found(
        self, v: np.ndarray, defect: np.ndarray, r: np.ndarray, left: float, size: float
    ) -> Found:
        terms = self.equilibrated_norm * frobenius_norm(v / self.sides) + size
        as_it_is, whole = frobenius_norm(defect), frobenius_norm(r)
        visible = as_it_is > _VISIBLE * (self.norm * frobenius_norm(v) + whole)
        relative = left / size if size else left
        if visible:
            relative = max(relative, as_it_is / whole if whole else as_it_is)
        return Found(v, relative, left / terms if terms else 0.0)
