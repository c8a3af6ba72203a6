"""Balls. On the boundary, the derivative is that inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .box import between
from .spheres import direction, floating, length, radius_of, signed

__all__ = ["projection_l1_ball", "projection_l2_ball", "projection_linf_ball"]


def projection_l1_ball(x: Any, max_value: Any = 1.0) -> jax.Array:
    """Project onto `{p: ‖p‖₁ ≤ max_value}`.

        p = x  if ‖x‖₁ ≤ max_value        else that onto the sphere

    "Efficient projections onto the l1-ball for learning in high dimensions", J. Duchi,
    S. Shalev-Shwartz, Y. Singer and T. Chandra, ICML 2008.

    Args:
        x: An array of any shape.
        max_value: The radius, at least 0.

    Returns:
        p, shaped like x.

    Raises:
        InputError: `max_value` is negative (if traced: NaN).
    """
    nonempty, r = radius_of(x, max_value, "projection_l1_ball: max_value")
    x = nonempty * jnp.asarray(x, r.dtype)
    inside = jnp.sum(jnp.abs(lax.stop_gradient(x))) <= lax.stop_gradient(r)
    # Inside, stand-ins keep what is not chosen finite.
    beyond = signed(jnp.where(inside, 1.0, x), jnp.where(inside, 1.0, r))
    return nonempty * jnp.where(inside, x, beyond)


def projection_l2_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto `{p: ‖p‖₂ ≤ max_value}`.

        p = x  if ‖x‖₂ ≤ max_value        else max_value x / ‖x‖₂

    Args:
        x: A pytree.
        max_value: The radius, at least 0.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: `max_value` is negative (if traced: NaN).
    """
    nonempty, r = radius_of(x, max_value, "projection_l2_ball: max_value")
    x = floating(x)
    inside = length(x) <= lax.stop_gradient(r)
    r = jnp.where(inside, 1.0, r)
    return jax.tree.map(
        lambda x, u: nonempty * jnp.where(inside, x, r * u), x, direction(x, inside)
    )


def projection_linf_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto `{p: ‖p‖∞ ≤ max_value}`.

        p = min(max(x, −max_value), max_value)

    Args:
        x: A pytree.
        max_value: The radius, at least 0.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: `max_value` is negative (if traced: NaN).
    """
    nonempty, r = radius_of(x, max_value, "projection_linf_ball: max_value")
    x, r = jax.tree.map(lambda x: nonempty * x, x), jax.tree.map(lambda _: nonempty * r, x)
    return between(x, jax.tree.map(jnp.negative, r), r)
