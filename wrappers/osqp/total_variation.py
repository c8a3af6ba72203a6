"""Total variation in one dimension, by its dual: a quadratic program with box constraints.

    p = x − Dᵀ u        minimise ½ ‖x − Dᵀ u‖²  subject to  |uᵢ| ≤ λᵢ        (D p)ᵢ = pᵢ₊₁ − pᵢ

D Dᵀ is tridiagonal and regular, and so is every part of it: u is unique, and where p is constant
its derivative is that of a mean.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.jax_compat import is_traced
from backsolve.adjoint.sparse import CSR, Pattern
from backsolve.adjoint.status import InputError
from backsolve.residuals.prox import prox_lasso

from .solver import solve

__all__ = ["prox_fused_lasso", "prox_total_variation"]


def prox_total_variation(x: Any, tvreg: Any = 1.0, scaling: Any = 1.0, **settings: Any) -> Any:
    """Return the proximal operator of the total variation of a signal, with OSQP.

        argmin ½ ‖p − x‖² + scaling Σ tvregᵢ |pᵢ₊₁ − pᵢ|

    p is exact on the active set that OSQP found, in O(n), and is constant in pieces; so is its
    derivative: see `backsolve.osqp.solve`, also for kinks. Equal neighbours in x are one only where
    x rises, or falls, both before and after them.

    L. I. Rudin, S. Osher and E. Fatemi, "Nonlinear total variation based noise removal algorithms",
    Physica D 60 (1992).

    Args:
        x: `(n,)`.
        tvreg: Weight, at least zero: a number, or one for each pair of neighbours, `(n − 1,)`; None
            for 1.
        scaling: Factor of the penalty, at least zero.
        **settings: OSQP's settings, and fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape, type or setting, or a weight below zero.
        SolverError: If x is not finite, a traced weight is below zero, or OSQP stops at a limit.
        SolverNotFound: If OSQP is not installed.
    """
    x = jnp.asarray(real_array(x, "x", ndim=1))
    m = x.shape[0] - 1
    λ = jnp.asarray(real_array(1.0 if tvreg is None else tvreg, "tvreg", ndim=(0, 1)))
    if λ.ndim and λ.shape != (m,):
        raise InputError(f"tvreg has shape {λ.shape}: one number, or ({m},) for x of {x.shape}")
    λ = λ * jnp.asarray(real_array(scaling, "scaling", ndim=0))
    if not is_traced(λ) and (λ < 0).any():
        raise InputError(f"tvreg times scaling must be at least zero, found {float(λ.min()):.6g}")
    if m < 1:
        return x
    λ = jnp.broadcast_to(λ.astype(x.dtype), (m,))
    P, identity = _laplacian(m), _diagonal(m)
    P = CSR.of(np.where(P.rows == P.indices, 2.0, -1.0).astype(x.dtype), P)
    A = CSR.of(np.ones(m, x.dtype), identity)
    q = x[:-1] - x[1:]
    # p(a x, a λ) = a p(x, λ): OSQP's tolerances are absolute. A power of two rounds nothing.
    a = _power_of_two(jnp.max(jnp.abs(lax.stop_gradient(q))))
    u = a * solve(P, q / a, A, -λ / a, λ / a, **settings).x
    return x + jnp.diff(u, prepend=0, append=0)


def prox_fused_lasso(
    x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0, **settings: Any
) -> Any:
    """Return the proximal operator of the fused lasso, with OSQP.

        argmin ½ ‖p − x‖² + scaling (Σ l1regᵢ |pᵢ| + Σ tvregᵢ |pᵢ₊₁ − pᵢ|)

    That of the total variation, and then soft thresholding.

    J. Friedman, T. Hastie, H. Höfling and R. Tibshirani, "Pathwise coordinate optimization", Annals
    of Applied Statistics 1 (2007).

    Args:
        x: `(n,)`.
        hyperparams: `(l1reg, tvreg)`: l1reg one number, for with several thresholding would not do;
            tvreg as for `prox_total_variation`. None for `(1, 1)`.
        scaling: Factor of the penalty, at least zero.
        **settings: OSQP's settings, and fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape, type or setting, or a weight below zero.
        SolverError: If x is not finite, a traced weight is below zero, or OSQP stops at a limit.
        SolverNotFound: If OSQP is not installed.
    """
    try:
        l1reg, tvreg = (1.0, 1.0) if hyperparams is None else hyperparams
    except (TypeError, ValueError):
        raise InputError(
            f"hyperparams must be two, (l1reg, tvreg), found {type(hyperparams).__name__}"
        ) from None
    l1reg = real_array(1.0 if l1reg is None else l1reg, "hyperparams[0]", ndim=0)
    return prox_lasso(prox_total_variation(x, tvreg, scaling, **settings), l1reg, scaling)


def _power_of_two(size: jax.Array) -> jax.Array:
    """Return a power of two that is near a size; 1 for none."""
    mantissa, _ = jnp.frexp(size)
    usual = (size >= jnp.finfo(size.dtype).tiny) & jnp.isfinite(size)
    return jnp.where(usual, size / jnp.where(usual, 2 * mantissa, 1.0), 1.0)


@functools.lru_cache(maxsize=64)
def _laplacian(m: int) -> Pattern:
    """Return the pattern of D Dᵀ, tridiagonal."""
    columns = np.arange(m)[:, None] + np.array([-1, 0, 1])
    inside = (columns >= 0) & (columns < m)
    return Pattern.of(columns[inside], np.r_[0, np.cumsum(inside.sum(axis=1))], (m, m))


@functools.lru_cache(maxsize=64)
def _diagonal(m: int) -> Pattern:
    return Pattern.of(np.arange(m), np.arange(m + 1), (m, m))
