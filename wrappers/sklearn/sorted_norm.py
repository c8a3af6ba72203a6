"""The sorted ℓ1 norm, and OSCAR, which is one.

    g(p) = Σ λᵢ |p|₍ᵢ₎        |p|₍₁₎ ≥ |p|₍₂₎ ≥ …,  λ₁ ≥ λ₂ ≥ … ≥ 0

The solution has the signs and the order of x. Without them it is the isotonic regression,
decreasing and at least zero, of the sorted |x| minus λ.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.status import InputError
from backsolve.residuals.prox import prox_lasso

from .isotonic import isotonic_l2_pav

__all__ = ["prox_oscar", "prox_owl"]


def prox_owl(x: Any, weights: Any = 1.0, scaling: Any = 1.0, **policy: Any) -> jax.Array:
    """Return the proximal operator of the sorted ℓ1 norm (OWL, SLOPE).

        argmin ½ ‖p − x‖² + scaling Σ λᵢ |p|₍ᵢ₎        λ the weights, from the largest on

    M. Bogdan et al., "SLOPE: adaptive variable selection via convex optimization", Annals of
    Applied Statistics 9 (2015); X. Zeng and M. A. T. Figueiredo, "The ordered weighted ℓ1 norm:
    atomic formulation, projections, and algorithms", arXiv:1409.4271 (2014).

    Args:
        x: `(n,)`.
        weights: `(n,)`, at least zero, in any order; or one number, which is `prox_lasso`; None
            for 1.
        scaling: Factor of the penalty, at least zero.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape or type.
        SolverError: If x or the weights are not finite.
        SolverNotFound: If scikit-learn is not installed.
    """
    x = jnp.asarray(real_array(x, "x", ndim=1))
    λ = jnp.asarray(real_array(1.0 if weights is None else weights, "weights", ndim=(0, 1)))
    s = jnp.asarray(real_array(scaling, "scaling", ndim=0)).astype(x.dtype)
    if not λ.ndim:
        return prox_lasso(x, λ, s)
    if λ.shape != x.shape:
        raise InputError(f"weights has shape {λ.shape}, but x has {x.shape}: one for each, or one")
    λ = jnp.sort(λ.astype(x.dtype), descending=True)
    sign = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)  # of zero too: |x| has a derivative there
    size = sign * x
    order = jnp.argsort(lax.stop_gradient(size), descending=True)
    sorted_p = isotonic_l2_pav(size[order] - s * λ, y_min=0.0, increasing=False, **policy)
    return sign * jnp.zeros_like(x).at[order].set(sorted_p, unique_indices=True)


def prox_oscar(x: Any, hyperparams: Any = (1.0, 1.0), scaling: Any = 1.0, **policy: Any) -> Any:
    """Return the proximal operator of OSCAR, which gives entries of like size the same size.

        argmin ½ ‖p − x‖² + scaling (l1reg Σ |pᵢ| + pairwise Σ max(|pᵢ|, |pⱼ|) over i < j)

    It is the sorted ℓ1 norm with `λᵢ = l1reg + pairwise (n − i)`.

    H. D. Bondell and B. J. Reich, "Simultaneous regression shrinkage, variable selection, and
    supervised clustering of predictors with OSCAR", Biometrics 64 (2008).

    Args:
        x: `(n,)`.
        hyperparams: `(l1reg, pairwise)`, two numbers, at least zero; None for `(1, 1)`.
        scaling: Factor of the penalty, at least zero.
        **policy: Fields of `backsolve.Policy` for this call.

    Returns:
        p `(n,)`.

    Raises:
        InputError: On a wrong shape or type.
        SolverError: If x or hyperparams are not finite.
        SolverNotFound: If scikit-learn is not installed.
    """
    try:
        l1reg, pairwise = (1.0, 1.0) if hyperparams is None else hyperparams
    except (TypeError, ValueError):
        raise InputError(
            f"hyperparams must be two, (l1reg, pairwise), found {type(hyperparams).__name__}"
        ) from None
    x = jnp.asarray(real_array(x, "x", ndim=1))
    l1reg, pairwise = (
        jnp.asarray(real_array(a, name, ndim=0)).astype(x.dtype)
        for a, name in ((l1reg, "hyperparams[0]"), (pairwise, "hyperparams[1]"))
    )
    return prox_owl(x, l1reg + pairwise * jnp.arange(x.size, dtype=x.dtype), scaling, **policy)
