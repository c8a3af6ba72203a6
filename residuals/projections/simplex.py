"""The simplex: vectors that are nonnegative and sum to a given value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

from .emptiness import one_if_nonempty
from .ranked import ranked

__all__ = [
    "kl_projection_simplex",
    "onto_simplex",
    "projection_simplex",
    "projection_sparse_simplex",
    "threshold",
]


def projection_simplex(x: Any, value: Any = 1.0) -> jax.Array:
    """Project onto `{p: p ≥ 0, 1ᵀp = value}`.

        p = max(x − τ, 0),  τ so that 1ᵀp = value

    A shift of x shifts τ and leaves p: x is measured from its largest entry, so that its size does
    not matter. With s the support of p, `dp = s ⊙ (dx + (dvalue − sᵀdx) / sᵀs)`.

    "Validation of subgradient optimization", M. Held, P. Wolfe and H. P. Crowder, Mathematical
    Programming 6 (1974).

    Args:
        x: `(n,)`; −inf is admitted, where p is to be zero.
        value: What p sums to, at least 0; None is 1.

    Returns:
        p `(n,)`.

    Raises:
        InputError: x is not a vector, or `value` is negative (if traced: NaN).
    """
    x, value, nonempty = _arguments(x, value, "projection_simplex")
    return nonempty * onto_simplex(x, value)


def projection_sparse_simplex(
    x: Any, max_nz: int, use_approx_max_nz: bool = False, value: Any = 1.0
) -> jax.Array:
    """Project onto `{p: p ≥ 0, 1ᵀp = value, at most max_nz entries are not 0}`.

    That is the projection of the max_nz largest entries of x onto their simplex. The set is not
    convex: where entries are equal, several points may be nearest, and p is one of them.

    "Sparse projections onto the simplex", A. Kyrillidis, S. Becker, V. Cevher and C. Koch, ICML
    2013.

    Args:
        x: `(n,)`.
        max_nz: How many entries may differ from 0; if more than n, all.
        use_approx_max_nz: Whether `jax.lax.approx_max_k` chooses the largest entries, faster on
            some accelerators, and not always right.
        value: What p sums to, at least 0; None is 1.

    Returns:
        p `(n,)`.

    Raises:
        InputError: x is not a vector, max_nz is less than 1, or `value` is negative (if traced:
            NaN).
    """
    x, value, nonempty = _arguments(x, value, "projection_sparse_simplex")
    if max_nz < 1:
        raise InputError(
            f"projection_sparse_simplex: max_nz is {max_nz}; at least one entry must differ from 0"
        )
    largest = lax.approx_max_k if use_approx_max_nz else lax.top_k
    _, kept = largest(lax.stop_gradient(x), min(max_nz, x.size))
    return nonempty * jnp.zeros_like(x).at[kept].set(onto_simplex(x[kept], value))


def kl_projection_simplex(x: Any, value: Any = 1.0) -> jax.Array:
    """Project exp(x) onto the simplex, in the sense of Kullback and Leibler: softmax.

        p = argmin KL(p, exp(x)) over p ≥ 0, 1ᵀp = value        p = value exp(x) / 1ᵀexp(x)

    "Efficient and Modular Implicit Differentiation", M. Blondel et al., NeurIPS 2022, appendix C.

    Args:
        x: `(n,)`; −inf is admitted, where p is to be zero.
        value: What p sums to, at least 0; None is 1.

    Returns:
        p `(n,)`.

    Raises:
        InputError: x is not a vector, or `value` is negative (if traced: NaN).
    """
    x, value, nonempty = _arguments(x, value, "kl_projection_simplex")
    return nonempty * value * jax.nn.softmax(x)


def _arguments(x: Any, value: Any, name: str) -> tuple[jax.Array, jax.Array, Any]:
    value = 1.0 if value is None else value
    if jnp.ndim(x) != 1 or jnp.size(x) == 0:
        raise InputError(
            f"{name}: x has shape {jnp.shape(x)}; give a vector with at least one entry, and use "
            "jax.vmap for several"
        )
    nonempty = one_if_nonempty(
        lambda value: value >= 0,
        value,
        otherwise=name + ": value is {}; nonnegative entries cannot sum to less than 0",
    )
    dtype = jnp.result_type(x, value, float)
    return nonempty * jnp.asarray(x, dtype), jnp.asarray(value, dtype), nonempty


@jax.custom_jvp
@jax.jit
def onto_simplex(x: jax.Array, value: jax.Array) -> jax.Array:
    """Return what `projection_simplex` does, unchecked, of arrays of one type."""
    τ, _ = threshold(x, value)
    # From the largest entry, so that nothing is lost where x is huge.
    return jnp.maximum((x - jnp.max(x)) - τ, 0.0)


@onto_simplex.defjvp
@jax.jit
def _derivative(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, value), (dx, dvalue) = primals, tangents
    _, s = threshold(lax.stop_gradient(x), lax.stop_gradient(value))
    dτ = (jnp.sum(dx, where=s) - dvalue) / jnp.sum(s)
    known = jnp.where(jnp.any(s), 1.0, jnp.nan)  # NaN in x leaves no support
    return onto_simplex(x, value), known * jnp.where(s, dx - dτ, 0.0)


def threshold(x: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return τ, from the largest entry of x, and the support of `max(x − max x − τ, 0)`.

    If `value` is 0, the support is that of all small values.
    """
    d, rank = ranked(-x)
    d = d[0] - d  # descends from 0
    # τ ≥ −value: entries below that are as good as equal to it, and rounding does not grow with x.
    above = (d > -value) | (d == 0)
    d = jnp.maximum(d, -value)
    k = jnp.arange(1, x.size + 1, dtype=x.dtype)
    positive = k * d - jnp.cumsum(d) + value > 0
    count = jnp.sum(positive & (d > -value))  # where rounding has no say
    s = above & (d >= d[jnp.maximum(count - 1, 0)]) & ~jnp.isnan(d[-1])
    τ = (jnp.sum(d, where=s) - value) / jnp.sum(s)
    # Once more with the same support: the sum of p, not only τ, is then right to rounding.
    τ = τ + (jnp.sum(d - τ, where=s) - value) / jnp.sum(s)
    return τ, s[rank]
