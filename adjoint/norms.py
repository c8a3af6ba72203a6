"""Inner products, and Euclidean norms that neither overflow nor underflow on the way."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["column_dots", "column_norms", "frobenius_norm"]


def frobenius_norm(array: np.ndarray) -> float:
    """Return the root of the sum of squares; NaN or inf if the array holds one."""
    flat = array if array.ndim == 1 else array.ravel(order="K")
    if flat.dtype.kind != "f":  # integers overflow
        flat = flat.astype(np.float64)
    squares = float(flat.dot(flat))
    if 1e-290 < squares < 1e290:
        return math.sqrt(squares)
    largest = float(np.abs(flat).max(initial=0.0))  # beyond the range of squares, or not finite
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    flat = flat / largest
    return largest * math.sqrt(float(flat.dot(flat)))


def column_norms(V: np.ndarray) -> list[float]:
    """Return the Euclidean norm of each column of `(n, k)`; NaN or inf where one is not finite."""
    if V.shape[1] == 1:
        v = V[:, 0]
        squares = float(v.dot(v))
        return [math.sqrt(squares) if 1e-290 < squares < 1e290 else frobenius_norm(v)]
    if V.shape[1] <= 4:
        return [frobenius_norm(column) for column in V.T]
    squares = np.einsum("ij,ij->j", V, V).tolist()
    return [
        math.sqrt(s) if 1e-290 < s < 1e290 else frobenius_norm(V[:, j])
        for j, s in enumerate(squares)
    ]


def column_dots(U: np.ndarray, V: np.ndarray) -> list[float]:
    """Return uᵀ v of each pair of columns of `(n, k)`."""
    if U.shape[1] == 1:
        return [float(U[:, 0] @ V[:, 0])]
    return np.einsum("ij,ij->j", U, V).tolist()
