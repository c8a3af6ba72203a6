"""Linear systems and linear least squares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["linear_system", "normal_equations"]


def linear_system(x: Any, A: Any, b: Any) -> jax.Array:
    """Return `A x − b`.

    Args:
        x: `(n,)`.
        A: `(n, n)` array or `backsolve.CSR`.
        b: `(n,)`.
    """
    return A @ x - b


def normal_equations(x: Any, A: Any, b: Any) -> jax.Array:
    """Return `Aᵀ (A x − b)`, half the gradient of ‖A x − b‖².

    Its Jacobian AᵀA squares the condition number of A: `backsolve.lapack.lstsq` does not.

    Args:
        x: `(n,)`.
        A: `(m, n)` array or `backsolve.CSR`, of full column rank.
        b: `(m,)`.
    """
    A = A if hasattr(A, "T") else jnp.asarray(A)
    return A.T @ (A @ x - b)
