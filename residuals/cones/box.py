"""The box cone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

from .rules import homogeneous

__all__ = ["box"]


@homogeneous
def box(v: jax.Array, l: Any, u: Any) -> jax.Array:
    """Project v = (t₀, s) onto `{(t, s): t l ≤ s ≤ t u, t ≥ 0}`.

        Π(t₀, s) = (t, clip(s, t l, t u))          φ(t) = t − t₀ + Σ aᵢ (aᵢ t − sᵢ) = 0

    with a the bounds that s violates at t: uᵢ where `sᵢ > t uᵢ`, lᵢ where `sᵢ < t lᵢ`. φ increases
    and is linear between the ratios sᵢ / uᵢ and sᵢ / lᵢ. These are sorted, and bisection finds the
    two that enclose the root; there a is known, and `t = (t₀ + aᵀs) / (1 + aᵀa)`. A φ above zero
    at zero gives t = 0.

    The cone is SCS's (https://www.cvxgrp.org/scs/api/cones.html, bl and bu).

    Args:
        v: `(1 + n,)`, t₀ first.
        l: `(n,)`, −inf where there is no bound.
        u: `(n,)`, inf where there is no bound; l ≤ u.
    """
    if not v.size:
        raise InputError("v is empty, but (t, s) has t at least")
    l, u = jnp.asarray(l, v.dtype), jnp.asarray(u, v.dtype)
    t0, s = v[0], v[1:]

    def violated(t):
        above, below = s > t * _finite(u), s < t * _finite(l)
        # Between bounds that are alike nothing moves.
        return jnp.isfinite(u) & above, jnp.isfinite(l) & below | (l == u)

    def bounds(above, below):
        return jnp.where(above, _finite(u), jnp.where(below, _finite(l), 0.0))

    def φ(t):
        a = bounds(*violated(t))
        return t - t0 + jnp.sum(a * (a * t - s))

    above, below = violated(lax.stop_gradient(_near_root(φ, _ratios(s, l, u))))
    a = bounds(above, below)
    t = (t0 + a @ s) / (1 + a @ a)
    tip = (φ(jnp.zeros_like(t)) >= 0) | (t <= 0)
    t = jnp.where(tip, 0.0 * t, t)
    held = above | below | (tip & jnp.isfinite(l) & jnp.isfinite(u))
    return jnp.concatenate([t[None], jnp.where(held, a * t, s)])


def _near_root(φ: Any, ratios: Any) -> Any:
    """Return a point between the same two ratios as the root of φ; behind the last, if it is."""

    def halve(_, bracket):
        first, last = bracket
        middle = (first + last) // 2
        low = φ(ratios[middle]) < 0
        return jnp.where(low, middle, first), jnp.where(low, last, middle)

    bracket = (jnp.int32(0), jnp.int32(ratios.size))
    first, _ = lax.fori_loop(0, ratios.size.bit_length(), halve, bracket)
    ratios = jnp.concatenate([ratios, 2 * ratios[-1:] + 1])
    return 0.5 * (ratios[first] + ratios[first + 1])


def _ratios(s: Any, l: Any, u: Any) -> Any:
    """Return zero and the positive sᵢ / lᵢ and sᵢ / uᵢ, sorted."""
    bounds = jnp.concatenate([_finite(l), _finite(u)])
    ratios = jnp.concatenate([s, s]) / jnp.where(bounds == 0, 1.0, bounds)
    ratios = jnp.where((bounds != 0) & (ratios > 0) & jnp.isfinite(ratios), ratios, 0.0)
    return jnp.sort(lax.stop_gradient(jnp.concatenate([jnp.zeros(1, s.dtype), ratios])))


def _finite(bound: Any) -> Any:
    return jnp.where(jnp.isfinite(bound), bound, 0.0)
