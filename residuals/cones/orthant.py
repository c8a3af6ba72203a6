"""The cones that are products of lines: zero, everything, and the nonnegative orthant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["free", "nonnegative", "zero"]


def zero(v: Any) -> jax.Array:
    """Project v `(n,)` onto {0}, the dual of which is everything."""
    return jnp.zeros_like(v)


def free(v: Any) -> jax.Array:
    """Project v `(n,)` onto everything: itself."""
    return jnp.asarray(v)


def nonnegative(v: Any) -> jax.Array:
    """Project v `(n,)` onto `{p ≥ 0}`, which is its own dual."""
    # Not max(0, v): its derivative at zero would be the mean of both sides.
    return jnp.where(v > 0, v, 0.0 * v)
