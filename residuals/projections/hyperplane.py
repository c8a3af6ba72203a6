"""The hyperplane and the half-space: one linear equation, one inequality."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .emptiness import one_if_nonempty
from .spheres import floating

__all__ = ["projection_halfspace", "projection_hyperplane"]


def projection_hyperplane(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto `{p: aᵀp = b}`.

        p = x − a (aᵀx − b) / aᵀa

    Args:
        x: A pytree.
        hyperparams: a, a pytree like x, not zero; and b, a number.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: a is zero (if traced: NaN).
    """
    a, b = hyperparams
    one = one_if_nonempty(
        _any_nonzero,
        a,
        otherwise="projection_hyperplane: a is zero, and aᵀp = b is the equation of no hyperplane",
    )
    x, a, excess, square = _parts(x, a, b)
    return jax.tree.map(lambda x, a: one * (x - excess / square * a), x, a)


def projection_halfspace(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto `{p: aᵀp ≤ b}`.

        p = x − a max(aᵀx − b, 0) / aᵀa

    On the boundary, the derivative is that inside.

    Args:
        x: A pytree.
        hyperparams: a, a pytree like x; and b, a number.

    Returns:
        p, a pytree like x.

    Raises:
        InputError: a is zero and b negative (if traced: NaN).
    """
    a, b = hyperparams
    nonempty = one_if_nonempty(
        lambda a, b: _any_nonzero(a) | (b >= 0),
        a,
        b,
        otherwise="projection_halfspace: a is zero and b is {1}, and 0 ≤ {1} holds nowhere",
    )
    x, a, excess, square = _parts(x, a, b)
    scale = jnp.where(excess <= 0, 0.0, excess / square)
    return jax.tree.map(lambda x, a: nonempty * (x - scale * a), x, a)


def _any_nonzero(a: Any) -> Any:
    return jnp.any(jnp.array([jnp.any(jnp.not_equal(leaf, 0)) for leaf in jax.tree.leaves(a)]))


def _parts(x: Any, a: Any, b: Any) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Return x, and a, aᵀx − b and aᵀa with a and b divided by the largest entry of a."""
    x, a = floating(x), floating(a)
    largest = jnp.stack([jnp.max(jnp.abs(a), initial=0.0) for a in jax.tree.leaves(a)])
    m = lax.stop_gradient(jnp.max(largest))
    m = jnp.where(m == 0, 1.0, m)
    a = jax.tree.map(lambda a: a / m, a)
    excess = _dot(a, x) - b / m
    square = _dot(a, a)
    return x, a, excess, jnp.where(square == 0, 1.0, square)


def _dot(a: Any, x: Any) -> Any:
    return sum(jax.tree.leaves(jax.tree.map(lambda a, x: jnp.sum(a * x), a, x)))
