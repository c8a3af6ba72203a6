"""The cone of positive semidefinite matrices."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from backsolve.adjoint.status import InputError

from .rules import homogeneous, vector

__all__ = ["pack", "semidefinite", "unpack"]


def semidefinite(v: Any, triangle: str = "lower") -> jax.Array:
    """Project v, a packed symmetric matrix, onto the positive semidefinite ones: its own dual.

        X = Q diag(w) Qᵀ          Π(X) = Q diag(max(w, 0)) Qᵀ

    "Proximal algorithms", N. Parikh and S. Boyd, Foundations and Trends in Optimization 1 (2014),
    section 6.3.

    Args:
        v: `(k (k + 1) / 2,)`, packed as by `pack`.
        triangle: "lower" (SCS) or "upper" (Clarabel).
    """
    return pack(_scaled(unpack(v, triangle)), triangle)


def pack(X: Any, triangle: str = "lower") -> jax.Array:
    """Return one triangle of X `(k, k)` by columns, off-diagonal entries times √2.

    Inner products stay what they are: `pack(X) @ pack(Y) = tr(X Y)`.

    Args:
        X: Symmetric.
        triangle: "lower" (SCS) or "upper" (Clarabel).
    """
    X = jnp.asarray(X)
    if X.ndim != 2 or X.shape[0] != X.shape[1]:
        raise InputError(f"X must be square, found shape {X.shape}")
    row, column = _triangle(X.shape[0], triangle)
    return X[row, column] * np.where(row == column, 1.0, math.sqrt(2)).astype(X.dtype)


def unpack(v: Any, triangle: str = "lower") -> jax.Array:
    """Return the symmetric matrix that `pack` gives v for."""
    v = vector(v)
    k = (math.isqrt(8 * v.size + 1) - 1) // 2
    row, column = _triangle(k, triangle)
    place = np.zeros((k, k), int)
    place[row, column] = place[column, row] = np.arange(v.size)
    return v[place] * np.where(np.eye(k), 1.0, math.sqrt(0.5)).astype(v.dtype)


def _triangle(k: int, triangle: str) -> tuple[np.ndarray, np.ndarray]:
    # By columns of one triangle is by rows of the other.
    if triangle == "lower":
        column, row = np.triu_indices(k)
    elif triangle == "upper":
        column, row = np.tril_indices(k)
    else:
        raise InputError(f'triangle must be "lower" or "upper", not {triangle!r}')
    return row, column


@jax.custom_jvp
def _projection(X: jax.Array) -> jax.Array:
    w, Q = jnp.linalg.eigh(X)
    return (Q * jnp.where(w > 0, w, 0.0)) @ Q.T


@_projection.defjvp
def _rule(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (X,), (E,) = primals, tangents
    return _projection(X), _derivative(X, E)


_scaled = homogeneous(_projection)


def _derivative(X: jax.Array, E: jax.Array) -> jax.Array:
    """Return `D = DΠ(X) E = Q (Ω ∘ QᵀE Q) Qᵀ`, `Ωᵢⱼ = (wᵢ⁺ + wⱼ⁺) / (|wᵢ| + |wⱼ|)`.

    Ω is (wᵢ⁺ − wⱼ⁺) / (wᵢ − wⱼ) of Daleckii and Krein (1965), so written that equal eigenvalues
    are no special case. "Semismooth matrix-valued functions", D. Sun and J. Sun, Mathematics of
    Operations Research 27 (2002).

    The formula is the solution of a linear system, with P = Π(X),

        |X| D + D |X| − (P G + G P) = 0          G = E

    and derivatives of higher order are those of the system. Those of Q do not exist where
    eigenvalues are equal.
    """
    w, Q = jnp.linalg.eigh(lax.stop_gradient(X))
    P = _projection(X)
    size = jnp.abs(w)[:, None] + jnp.abs(w)
    positive = jnp.where(w > 0, w, 0.0)

    def scaled(numerator, M):
        Ω = jnp.where(size > 0, numerator / jnp.where(size > 0, size, 1.0), 0.0)
        return Q @ (Ω * (Q.T @ M @ Q)) @ Q.T

    def multiply(DG):
        D, G = DG
        return jnp.stack([_anticommutator(2 * P - X, D) - _anticommutator(P, G), G])

    def solve(_, right):
        first, second = right
        D = scaled(1.0, first) + scaled(positive[:, None] + positive, second)
        return jnp.stack([D, second])

    def solve_transposed(_, right):
        first, second = right
        G = second + scaled(positive[:, None] + positive, first)
        return jnp.stack([scaled(1.0, first), G])

    right = jnp.stack([jnp.zeros_like(E), E])
    return lax.custom_linear_solve(multiply, right, solve, solve_transposed)[0]


def _anticommutator(M: Any, N: Any) -> Any:
    return M @ N + N @ M
