"""The curved boundary of a cone in three dimensions: finding a point of it, and moving along it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["increasing_root", "largest_exponent", "slide"]


def largest_exponent(dtype: Any) -> float:
    """Return R such that exp(2 R) does not overflow."""
    return 0.4 * math.log(jnp.finfo(dtype).max)


def increasing_root(φ: Callable[[Any], Any], lower: Any, upper: Any) -> Any:
    """Return the t between lower and upper where φ changes sign, by bisection.

    `φ'(t) dt + dφ = 0` gives its derivatives, of any order.

    Args:
        φ: A function of a scalar, below zero to the left of its root and above it to the right.
        lower: Scalar.
        upper: Scalar, at most 2 R above lower.
    """
    halvings = jnp.finfo(jnp.result_type(lower)).nmant + 10

    def halve(_, bracket):
        lower, upper = bracket
        middle = 0.5 * (lower + upper)
        low = φ(middle) < 0
        return jnp.where(low, middle, lower), jnp.where(low, upper, middle)

    def solve(_, start):
        lower, upper = lax.fori_loop(0, halvings, halve, bracket)
        return 0.5 * (lower + upper)

    bracket = (lax.stop_gradient(lower), lax.stop_gradient(upper))
    return lax.custom_root(φ, bracket[0], solve, lambda slope, dφ: dφ / slope(jnp.ones_like(dφ)))


def slide(p: jax.Array, n: jax.Array, κ: Any, dv: jax.Array) -> jax.Array:
    """Return `DΠ(v) dv = p̂ p̂ᵀdv + κ τ τᵀdv`, where Π(v) is a smooth point of the boundary.

    A projection follows v along the ray through Π(v), not at all along the normal, and by
    `0 ≤ κ ≤ 1` along the direction τ that the boundary curves in.

    Args:
        p: `(3,)`, along Π(v).
        n: `(3,)`, along v − Π(v).
        κ: `1 / (1 + distance times curvature)`.
        dv: `(3,)`.
    """
    p, n = p / jnp.linalg.norm(p), n / jnp.linalg.norm(n)
    τ = jnp.cross(n, p)
    return p * (p @ dv) + κ * τ * (τ @ dv)
