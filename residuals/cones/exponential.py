"""The exponential cone and its dual."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .rules import dual, homogeneous
from .surface import increasing_root, largest_exponent, slide

__all__ = ["dual_exponential", "exponential"]


def exponential(v: Any) -> jax.Array:
    """Project v = (x, y, z) onto `cl {(x, y, z): y exp(x / y) ≤ z, y > 0}`.

    On the curved part of the boundary, v is a point of the cone and one of its polar,

        v = a w + b n          w = (ρ, 1, exp(ρ))          n = (1, 1 − ρ, −exp(−ρ))

    with a, b > 0. The first two components give a and b by ρ, the third an increasing equation
    for ρ. "Projection onto the exponential cone: a univariate root-finding problem",
    H. A. Friberg, Optimization Methods and Software 38 (2023).

    Args:
        v: `(3,)`.
    """
    return _scaled(v)


def dual_exponential(v: Any) -> jax.Array:
    """Project v = (x, y, z) onto `cl {(x, y, z): −x exp(y / x) ≤ e z, x < 0}`, the dual.

    Args:
        v: `(3,)`.
    """
    return dual(exponential)(v)


@jax.custom_jvp
def _projection(v: jax.Array) -> jax.Array:
    inside, polar, flat, v_curved = _regions(v)
    p, *_ = _curved(v_curved)
    return jnp.select([inside, polar, flat], [v, 0.0 * v, v * _kept(v)], p)


@_projection.defjvp
def _derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (v,), (dv,) = primals, tangents
    inside, polar, flat, v_curved = _regions(v)
    p, w, n, κ = _curved(v_curved)
    p = jnp.select([inside, polar, flat], [v, 0.0 * v, v * _kept(v)], p)
    dp = jnp.select([inside, polar, flat], [dv, 0.0 * dv, dv * _kept(v)], slide(w, n, κ, dv))
    return p, dp


_scaled = homogeneous(_projection)


def _regions(v: Any) -> tuple[Any, Any, Any, Any]:
    """Return where v lies in the cone, in its polar, or by a flat face; and v, or a stand-in.

    The face is `x ≤ 0, y ≥ 0, z ≥ 0`: y exp(x / y) is there zero to working precision, and so is
    x exp(y / x) beyond its edge. Elsewhere than by the curved part a stand-in keeps what is not
    chosen finite.
    """
    x, y, z = v
    R = largest_exponent(v.dtype)
    y_, x_ = jnp.where(y > 0, y, 1.0), jnp.where(x > 0, x, 1.0)
    flat = (x + R * jnp.maximum(y, 0.0) <= 0) | ((x > 0) & (y + R * x <= x))
    inside = (y > 0) & (y * jnp.exp(x / y_) <= z)
    polar = (x > 0) & (x * jnp.exp(y / x_ - 1) <= -z)
    curved = ~(flat | inside | polar)
    return inside, polar, flat, jnp.where(curved, v, jnp.ones_like(v))


def _kept(v: Any) -> Any:
    return jnp.stack([v[0] <= 0, v[1] > 0, v[2] > 0])


def _curved(v: Any) -> tuple[Any, Any, Any, Any]:
    """Return p = a w, and w, n and κ, with which it slides along the boundary.

    With w' = dw/dρ, n' = dn/dρ and the unit vector τ across w and n, τᵀw' = exp(ρ) |n| / |w| and
    τᵀn' = exp(−ρ) |w| / |n|, so that `κ = a τᵀw' / (a τᵀw' + b τᵀn')`.
    """
    x, y, z = v
    R = largest_exponent(v.dtype)

    def parts(ρ):
        E = jnp.exp(jnp.where(ρ > 0, -ρ, ρ))
        det = ρ * ρ - ρ + 1
        return E, (y + (ρ - 1) * x) / det, (x - ρ * y) / det

    def φ(ρ):
        E, a, b = parts(ρ)
        return jnp.where(ρ > 0, a - (z + b * E) * E, (a * E - z) * E - b)

    lower = jnp.where(x > 0, 1 - y / jnp.where(x > 0, x, 1.0), -R)
    upper = jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), R)
    ρ = increasing_root(φ, jnp.clip(lower, -R, R), jnp.clip(upper, -R, R))
    E, a, b = parts(ρ)
    # w for ρ > 0 and n for ρ < 0 are divided by their exponential, so that nothing overflows. The
    # third equation gives their factors, where the first two would cancel.
    one, right = jnp.ones_like(ρ), ρ > 0
    w = jnp.where(right, jnp.stack([ρ * E, E, one]), jnp.stack([ρ, one, E]))
    n = jnp.where(right, jnp.stack([one, 1 - ρ, -E]), jnp.stack([E, (1 - ρ) * E, -one]))
    p = jnp.where(right, jnp.maximum(z + b * E, 0.0), jnp.maximum(a, 0.0)) * w
    forward = jnp.maximum(jnp.where(right, (z + b * E) * E, a), 0.0) * (n @ n)
    backward = jnp.maximum(jnp.where(right, b, (a * E - z) * E), 0.0) * (w @ w)
    total = forward + backward
    return p, w, n, jnp.where(total > 0, forward / jnp.where(total > 0, total, 1.0), 1.0)
