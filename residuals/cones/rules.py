"""What holds for the projection onto every cone: homogeneity, and Moreau's decomposition."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from backsolve.adjoint.status import InputError

__all__ = ["dual", "homogeneous", "vector"]


def vector(v: Any) -> jax.Array:
    """Return v as an array in JAX.

    Raises:
        InputError: If it is no vector.
    """
    v = jnp.asarray(v)
    if v.ndim != 1:
        raise InputError(f"v must be a vector, found shape {v.shape}")
    return v


def homogeneous(projection: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the same projection as `Π(v) = m Π(v / m)`, with m so that 1 ≤ max |v / m| < 2.

    Squares and exponentials in Π then neither overflow nor vanish. m is a power of two: nothing is
    rounded. It is a constant to derivatives, for `Π(v) = m Π(v / m)` holds with every m > 0.

    Args:
        projection: `Π(v, *parameters)`, for v `(n,)`.
    """

    @jax.jit  # once for all calls: without it, a call outside of jit compiles its loops anew
    @functools.wraps(projection)
    def scaled(v: Any, *parameters: Any) -> jax.Array:
        v = jnp.asarray(v)
        if not v.ndim:
            raise InputError("v must be a vector, found a number")
        largest = jnp.max(jnp.abs(lax.stop_gradient(v)), initial=0.0)
        mantissa, _ = jnp.frexp(largest)
        normal = largest >= jnp.finfo(v.dtype).tiny
        m = jnp.where(normal, largest / jnp.where(normal, 2 * mantissa, 1.0), 1.0)
        return m * projection(v / m, *parameters)

    return scaled


def dual(projection: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the projection onto the dual cone, `Π*(v) = v + Π(−v)`.

    J.-J. Moreau, "Décomposition orthogonale d'un espace hilbertien selon deux cônes mutuellement
    polaires", C. R. Acad. Sci. Paris 255 (1962).

    Args:
        projection: `Π(v, *parameters)` onto a closed convex cone.
    """

    def onto_dual(v: Any, *parameters: Any) -> jax.Array:
        v = jnp.asarray(v)
        if not v.ndim:
            raise InputError("v must be a vector, found a number")
        return v + projection(-v, *parameters)

    return onto_dual
