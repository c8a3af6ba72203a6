"""Directions to differentiate along, and derivatives that know no derivative rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["central_difference", "direction", "inner", "is_moving"]


def is_moving(leaf: Any) -> bool:
    """Tell whether a leaf is floating, so that it may be differentiated by."""
    return np.asarray(leaf).dtype.kind == "f"


def direction(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """Return a random array of the size of the leaf's entries, zero where these are infinite."""
    array = np.asarray(leaf, np.float64)
    finite = np.isfinite(array)
    size = float(np.sqrt(np.mean(array[finite] ** 2))) if finite.any() else 0.0
    return np.where(finite, (size or 1.0) * rng.standard_normal(array.shape), 0.0)


def inner(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return ⟨a, b⟩ of two lists of arrays."""
    return sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))


def central_difference(
    f: Callable[[float], Any], *, step: float = 1e-2, levels: int = 8
) -> tuple[np.ndarray, float]:
    """Differentiate a vector function of a number at 0; also return an estimate of the error.

    Central differences `(f(h) − f(−h)) / 2h` with halved steps, extrapolated to h = 0; of all
    extrapolants the one that agrees best with those it was made from is taken, so that neither
    curvature nor rounding asks for a choice of h. (C. J. F. Ridders, "Accurate computation of F'(x)
    and F'(x) F''(x)", Adv. Eng. Software 4, 1982.)
    """
    previous: list[np.ndarray] = []
    best, error = np.zeros(0), np.inf
    for i in range(levels):
        h = step / 2**i
        row = [(np.asarray(f(h), np.float64) - np.asarray(f(-h), np.float64)) / (2 * h)]
        for j, coarse in enumerate(previous):
            row.append(row[j] + (row[j] - coarse) / (4.0 ** (j + 1) - 1.0))
            change = max(np.linalg.norm(row[-1] - row[j]), np.linalg.norm(row[-1] - coarse))
            if change < error:
                best, error = row[-1], float(change)
        previous = row
    return best, error
