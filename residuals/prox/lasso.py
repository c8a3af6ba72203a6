"""The ℓ1 norm: soft thresholding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .leafwise import leafwise

__all__ = ["cut", "prox_lasso", "prox_non_negative_lasso", "shrink"]


def shrink(u: jax.Array, t: jax.Array) -> jax.Array:
    """Return `sign(u) max(|u| − t, 0)`."""
    # At |u| = t the derivative is that of the side that moves: at u = t = 0 that of S(u, 0) = u.
    return jnp.where(jnp.abs(u) < t, 0.0 * u, u - jnp.where(u < 0, -t, t))


def cut(u: jax.Array, t: jax.Array) -> jax.Array:
    """Return `max(u − t, 0)`."""
    return jnp.where(u < t, 0.0 * u, u - t)


def prox_lasso(x: Any, l1reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the ℓ1 norm.

        argmin ½ ‖p − x‖² + scaling Σ l1regᵢ |pᵢ|        pᵢ = sign(xᵢ) max(|xᵢ| − scaling l1regᵢ, 0)

    Args:
        x: A pytree of arrays.
        l1reg: Weight, at least zero: a number, an array, or a pytree like x; None for 1.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l1reg does not fit x.
    """
    l1reg = 1.0 if l1reg is None else l1reg
    return leafwise(lambda u, λ, s: shrink(u, s * λ), x, l1reg=l1reg, scaling=scaling)


def prox_non_negative_lasso(x: Any, l1reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Return the proximal operator of the ℓ1 norm on the nonnegative orthant.

        argmin ½ ‖p − x‖² + scaling Σ l1regᵢ pᵢ  over p ≥ 0        pᵢ = max(xᵢ − scaling l1regᵢ, 0)

    Args:
        x: A pytree of arrays.
        l1reg: As for `prox_lasso`.
        scaling: Factor of the penalty, at least zero.

    Returns:
        p, like x.

    Raises:
        InputError: If l1reg does not fit x.
    """
    l1reg = 1.0 if l1reg is None else l1reg
    return leafwise(lambda u, λ, s: cut(u, s * λ), x, l1reg=l1reg, scaling=scaling)
