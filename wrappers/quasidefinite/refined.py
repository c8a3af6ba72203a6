"""Iterative refinement: v + K⁻¹ (r − K v), with an approximate K⁻¹, until nothing is gained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backsolve.adjoint.norms import frobenius_norm

__all__ = ["CONSISTENT", "Refined"]

_ROUNDS = 40
_ENOUGH = 1e-15  # backward error at which refinement ends
CONSISTENT = 1e-7  # ‖K v − r‖ / ‖r‖ up to which K v = r has a solution


class Refined:
    """A matrix K that is known by its products.

    Attributes:
        norm: ‖K‖, or what comes near it.
    """

    norm: float

    def product(self, v: np.ndarray) -> np.ndarray:
        """Return K v."""
        raise NotImplementedError

    def refined(
        self,
        solve: Callable[[np.ndarray], np.ndarray | None],
        r: np.ndarray,
        start: np.ndarray | None = None,
        enough: float = 0.0,
    ) -> tuple[np.ndarray, float]:
        """Return v and ‖K v − r‖, by an approximate solve, which may give up with None.

        Args:
            solve: K⁻¹ r, approximately.
            r: Right-hand side.
            start: Where to start from.
            enough: ‖K v − r‖ / ‖r‖ that will do.
        """
        v = np.zeros_like(r) if start is None else start
        defect = r if start is None else r - self.product(v)
        left, size = frobenius_norm(defect), frobenius_norm(r)
        for _ in range(_ROUNDS):
            if left <= max(_ENOUGH * (self.norm * frobenius_norm(v) + size), enough * size):
                break
            step = solve(defect)
            if step is None:
                break
            w = v + step
            after = r - self.product(w)
            norm = frobenius_norm(after)
            # Slow progress is that of a nearly singular K, and comes to its end all the same.
            if not norm < 0.9 * left:
                if norm < left:
                    v, left = w, norm
                break
            v, defect, left = w, after, norm
        return v, left
