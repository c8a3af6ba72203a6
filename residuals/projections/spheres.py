"""Spheres, which are not convex: where several points are nearest, one of them is returned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .emptiness import one_if_nonempty, without_derivative
from .simplex import onto_simplex

__all__ = [
    "direction",
    "floating",
    "length",
    "projection_l1_sphere",
    "projection_l2_sphere",
    "radius_of",
    "signed",
]


def projection_l1_sphere(x: Any, value: Any = 1.0) -> jax.Array:
    """Project onto `{p: ‖p‖₁ = value}`.

        p = σ ⊙ Π(σ ⊙ x),  σ the signs of x, Π onto the simplex

    The sign of 0 is taken for +1: p then lies on the sphere, also for x = 0.

    "Efficient projections onto the l1-ball for learning in high dimensions", J. Duchi,
    S. Shalev-Shwartz, Y. Singer and T. Chandra, ICML 2008.

    Args:
        x: An array of any shape.
        value: The radius, at least 0.

    Returns:
        p, shaped like x.

    Raises:
        InputError: `value` is negative (if traced: NaN).
    """
    nonempty, value = radius_of(x, value, "projection_l1_sphere: value")
    return nonempty * signed(nonempty * jnp.asarray(x, value.dtype), value)


def projection_l2_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project onto `{p: ‖p‖₂ = value}`.

        p = value x / ‖x‖₂

    For x = 0 every point of the sphere is nearest. The one with equal entries is returned, and its
    derivative in x, which does not exist, is NaN.

    Args:
        x: A pytree.
        value: The radius, at least 0.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: `value` is negative (if traced: NaN).
    """
    nonempty, value = radius_of(x, value, "projection_l2_sphere: value")
    x = floating(x)
    centre = length(x) == 0
    return jax.tree.map(lambda u: nonempty * value * without_derivative(u, centre), direction(x))


def radius_of(x: Any, radius: Any, name: str) -> tuple[Any, jax.Array]:
    """Return 1 if the radius is at least 0, as does `one_if_nonempty`; and the radius as float."""
    nonempty = one_if_nonempty(
        lambda radius: radius >= 0,
        radius,
        otherwise=name + " is {}; a radius is at least 0",
    )
    return nonempty, jnp.asarray(radius, jnp.result_type(*jax.tree.leaves(x), radius, float))


def signed(x: jax.Array, radius: jax.Array) -> jax.Array:
    """Return the projection of x onto the simplex that lies in the orthant of x."""
    σ = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)
    return σ * jnp.reshape(onto_simplex(jnp.ravel(σ * x), radius), x.shape)


def floating(x: Any) -> Any:
    """Return the pytree with integers as floating-point numbers."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, float)), x)


def length(x: Any) -> jax.Array:
    """Return `‖x‖₂` of a pytree as a constant, without overflow on the way."""
    x = lax.stop_gradient(x)
    m = _largest(x)
    scaled = [leaf / jnp.where(m == 0, 1.0, m) for leaf in jax.tree.leaves(x)]
    return m * jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in scaled))


def direction(x: Any, ignored: Any = False) -> Any:
    """Return `x / ‖x‖₂` of a pytree, without overflow on the way.

    Where x is zero its entries are equal, where x is ignored they are so and have no slope.
    """
    # Divided by any constant, x has the same direction.
    m = _largest(lax.stop_gradient(x))

    def scaled(x):
        return jnp.where(ignored, 1.0, jnp.where(m == 0, x + 1.0, x / jnp.where(m == 0, 1.0, m)))

    x = jax.tree.map(scaled, x)
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(x)))
    return jax.tree.map(lambda leaf: leaf / norm, x)


def _largest(x: Any) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(x)]))
