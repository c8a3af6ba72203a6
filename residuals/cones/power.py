"""The power cone and its dual."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .rules import dual, homogeneous
from .surface import increasing_root, largest_exponent, slide

__all__ = ["dual_power", "power"]


def power(v: Any, α: Any) -> jax.Array:
    """Project v = (x, y, z) onto `{(x, y, z): xᵅ y¹⁻ᵅ ≥ |z|, x ≥ 0, y ≥ 0}`.

    On the curved part of the boundary the third component is ±r, and with b = |z| − r

        p = (½ (x + √(x² + 4 α r b)), ½ (y + √(y² + 4 (1 − α) r b)), ±r),  p_xᵅ p_y¹⁻ᵅ = r

    "Differential properties of Euclidean projection onto power cone", L. T. K. Hien, Mathematical
    Methods of Operations Research 82 (2015).

    Args:
        v: `(3,)`.
        α: Between 0 and 1, a constant: there is no derivative by it.
    """
    return _scaled(v, α)


def dual_power(v: Any, α: Any) -> jax.Array:
    """Project v = (x, y, z) onto `{(x, y, z): (x / α)ᵅ (y / (1 − α))¹⁻ᵅ ≥ |z|, x ≥ 0, y ≥ 0}`.

    Args:
        v: `(3,)`.
        α: Between 0 and 1, a constant: there is no derivative by it.
    """
    return dual(power)(v, α)


@jax.custom_jvp
def _projection(v: jax.Array, α: Any) -> jax.Array:
    inside, polar, v_curved = _regions(v, α)
    p, *_ = _curved(v_curved, α)
    return jnp.select([inside, polar], [v, 0.0 * v], p)


@functools.partial(_projection.defjvp, symbolic_zeros=True)
def _derivative(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (v, α), (dv, dα) = primals, tangents
    if not isinstance(dα, SymbolicZero):
        raise TypeError("a power cone has no derivative by α: make α a constant")
    inside, polar, v_curved = _regions(v, α)
    p, w, n, κ = _curved(v_curved, α)
    dp = jnp.select([inside, polar], [dv, 0.0 * dv], slide(w, n, κ, dv))
    return jnp.select([inside, polar], [v, 0.0 * v], p), dp


_scaled = homogeneous(_projection)


def _regions(v: Any, α: Any) -> tuple[Any, Any, Any]:
    """Return where v lies in the cone or in its polar; and v, or a stand-in that stays finite."""
    x, y, z = v

    def mean(x, y):
        return jnp.maximum(x, 0.0) ** α * jnp.maximum(y, 0.0) ** (1 - α)

    inside = (x >= 0) & (y >= 0) & (mean(x, y) >= jnp.abs(z))
    polar = (x <= 0) & (y <= 0) & (mean(-x / α, -y / (1 - α)) >= jnp.abs(z))
    curved = ~(inside | polar)
    return inside, polar, jnp.where(curved, v, jnp.array([0.0, 0.0, 1.0], v.dtype))


def _curved(v: Any, α: Any) -> tuple[Any, Any, Any, Any]:
    """Return p, and p̂, n and κ, with which it slides along the boundary.

    n = (α p_y, (1 − α) p_x, ∓p_x¹⁻ᵅ p_yᵅ)          κ = 1 / (1 + α (1 − α) (b / r) |p|² / |n|²)

    r and b are known by `b / r = exp(−t)`, to full relative precision however small they are.
    """
    x, y, z = v
    R = largest_exponent(v.dtype)
    # At z = 0 there is an edge, not a curved part; what holds beside it holds there.
    height = jnp.maximum(jnp.abs(z), jnp.finfo(v.dtype).eps)

    def components(t):
        r, b = height * jax.nn.sigmoid(t), height * jax.nn.sigmoid(-t)
        return _positive(x, α * r * b), _positive(y, (1 - α) * r * b), r

    def φ(t):
        p_x, p_y, r = components(t)
        return jnp.log(r) - α * jnp.log(p_x) - (1 - α) * jnp.log(p_y)

    t = increasing_root(φ, jnp.full_like(z, -R), jnp.full_like(z, R))
    p_x, p_y, r = components(t)
    p = jnp.stack([p_x, p_y, jnp.where(z < 0, -r, r)])
    w = p / jnp.linalg.norm(p)
    n = jnp.stack([α * w[1], (1 - α) * w[0], -jnp.sign(w[2]) * w[0] ** (1 - α) * w[1] ** α])
    κ = 1 / (1 + α * (1 - α) * jnp.exp(-t) / (n @ n))
    return jnp.where(z == 0, p.at[2].set(0.0), p), w, n, κ


def _positive(x: Any, c: Any) -> Any:
    """Return the positive root of `p (p − x) = c`."""
    root = jnp.sqrt(x * x + 4 * c)
    return jnp.where(x > 0, 0.5 * (x + root), 2 * c / jnp.where(x > 0, 1.0, root - x))
